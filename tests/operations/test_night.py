"""What docs/deploy.md has somebody do at three in the morning, done on the mesh that it describes."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operations.pages import block, commands

PARTS = ("before", "look", "see", "hold", "cancel", "go on", "redrive", "after")
COMMANDS = [command for part in PARTS for command in commands(f"night, {part}")]
WITHIN_S = 40.0
TOLD = {
    "mesh agents": (r"charge +money 0\.7 +team-money +2 +2/2",),
    "mesh trace checkout/order-1": (r"checkout/order-1  parked", r"charge \w+-c0  running for .* on peer-\d"),
    "mesh status checkout/order-3 --tree": (r"charge \w+-c0  queued for",),
    "mesh decisions checkout": (r"5  checkout 2\.1  card",),
    "mesh events --since 1h --id order-1": ("decided .* card", "parked +checkout/order-1"),
    'mesh pause charge --reason "the provider hangs"': ("charge is paused",),
    'mesh cancel checkout/order-1 --reason "the provider hangs, the customer was told"': (
        "is cancelled; it was parked",
    ),
    "mesh status checkout/order-1": ("checkout/order-1 is cancelled by peer-",),
    "mesh resume charge": ("no longer paused",),
    "mesh result checkout/order-2": ('"charged 20"',),
    "mesh result checkout/order-4": ('"charged 40"',),
    "mesh dead ls": (r"charge/order-5\..* permanent .* refuses the card", r"checkout/order-5 .* TaskFailed"),
    "mesh dead redrive checkout/order-5": (r"checkout/order-5\.~redrive-\d+",),
    "mesh dead drop charge/order-5.~charge-ccc1079c202c-c0": (),
    "mesh report --by owner": (r"team-money", r"team-shop"),
}
"""What each command of the page answers, as patterns; what `mesh doctor` does, the test says."""
DOCTOR = (
    ("2 live, serving charge, checkout", "with 3 tasks waiting", r"the oldest task, charge/order-1\.", "none is open"),
    ("with 0 tasks waiting", "nothing is queued or runs", r"dead letters +none"),
)


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Path]:
    """The folder of the page's mesh, while it runs."""
    (tmp_path / "night.py").write_text(block("night.py"))
    environment = {**os.environ, "MESH_HOT_WAIT_S": "0.3"}
    command = [sys.executable, "-m", "mesh", "up", "night.py", "--replicas", "2"]
    with (
        (tmp_path / "up.log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            until(tmp_path, "mesh agents", (r"charge +money 0\.7 +team-money +2 ",))
            yield tmp_path
        finally:
            process.terminate()
            process.wait(30)


def test_the_page_leads_from_the_alert_to_the_end(night: Path) -> None:
    looks = iter(DOCTOR)

    for command in COMMANDS:
        until(night, command, next(looks) if command == "mesh doctor" else TOLD.get(command, ()))

    assert not list(looks)


def test_every_command_of_the_page_is_held_to_what_it_says() -> None:
    asked = {command for command in COMMANDS if command.startswith("mesh ")}

    assert asked == {*TOLD, "mesh doctor"}


def until(folder: Path, command: str, patterns: tuple[str, ...]) -> None:
    """Run a command, again while what it says does not match yet, as somebody would who looks twice."""
    give_up_at = time.monotonic() + WITHIN_S
    while True:
        told = run(folder, command)
        missing = [pattern for pattern in patterns if not re.search(pattern, told)]
        if not missing:
            return
        assert time.monotonic() < give_up_at, f"{missing} is not in what {command!r} says:\n{told}"
        time.sleep(0.2)


def run(folder: Path, command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    return ended.stdout + ended.stderr
