"""What docs/operating.md has an operator ask, asked of the mesh that it describes."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.conftest import MARK

PAGE = (Path(__file__).resolve().parents[2] / "docs/operating.md").read_text()
SHOP = re.search(r"^```python shop\.py\n((?:.*\n)*?)```$", PAGE, flags=re.MULTILINE)
COMMANDS = [
    line.removeprefix("$ ").partition("  #")[0]
    for block in re.findall(r"^```console\n((?:.*\n)*?)```$", PAGE, flags=re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("$ ")
]
SUBMITS = [command for command in COMMANDS if "mesh submit" in command]
QUESTIONS = [command for command in COMMANDS if "mesh submit" not in command]
WITHIN_S = 40

TOLD = {
    "mesh doctor": (
        "3 live, serving human, refund, score",
        "1 task waiting for lookup, which no peer has ever served",
        "1 proposal waits for a person",
        "2 tasks given up",
    ),
    "mesh dead ls": (r"refund/order-11 .* an order of -1 cannot be scored",),
    "mesh report": (r"score +11 +1 +1 ", r"refund +10 +1 +1 ", "21 tasks ended", "slowest, from stored to answered"),
    "mesh report --by peer --capability score": (r"peer-\d-",),
    "mesh inbox ls": (r"order-10 .* refund/order-10 .*risk 0\.90 .*kim, sam",),
    "mesh trace refund/order-10": (
        "refund/order-10  parked",
        r"score .* by risk-small, 912 tokens, \$0\.0031",
        r"decided ask \(confidence 0\.9\): the risk is high",
    ),
    "mesh events --kind decided --id order-10 --json": (r'"choice":"ask".*"confidence":0\.9.*"inputs":{"risk":0\.9}',),
    "mesh decisions refund": (r"9  refund 1\.4\.0  refund", r"1  refund 1\.4\.0  ask"),
    "mesh report --since 1d --by owner": (r"team-risk +11 .* \$0\.031", r"team-returns +10 "),
    "mesh map --capability refund": ("team-returns", r"refund +returns 1\.4\.0 .* 3 peers", r"asks +score 11"),
}
"""What each command of the page answers there, as patterns."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a mesh with the page's agents, once the page's tasks are submitted and what can end ended."""
    assert SHOP is not None
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(SHOP[1])
    environment = {**os.environ, "MESH_HOT_WAIT_S": "0.3", MARK: folder.name}
    command = [sys.executable, "-m", "mesh", "up", "shop.py", "mesh.human", "--replicas", "3"]
    with (
        (folder / "up.log").open("w") as log,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            _until(folder, "mesh agents", r"score +risk 0\.9 +team-risk +3 ")
            for submit in SUBMITS:
                _run(folder, submit)
            _until(folder, "mesh doctor", "1 proposal waits for a person")
            _until(folder, "mesh report", "21 tasks ended")
            yield folder
        finally:
            process.terminate()
            process.wait(30)


def test_every_question_of_the_page_is_tried_here() -> None:
    assert set(QUESTIONS) == set(TOLD)
    assert len(SUBMITS) == 4


@pytest.mark.parametrize("command", QUESTIONS)
def test_a_command_of_the_page_answers_its_question(shop: Path, command: str) -> None:
    told = _run(shop, command)

    for pattern in TOLD[command]:
        assert re.search(pattern, told), f"{pattern!r} is not in what {command!r} says:\n{told}"


def _run(folder: Path, command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    return ended.stdout + ended.stderr


def _until(folder: Path, command: str, pattern: str) -> None:
    give_up_at = time.monotonic() + WITHIN_S
    while not re.search(pattern, told := _run(folder, command)):
        assert time.monotonic() < give_up_at, f"{pattern!r} is not in what {command!r} says:\n{told}"
        time.sleep(0.2)
