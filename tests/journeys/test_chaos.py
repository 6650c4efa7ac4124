"""`mesh chaos` as an operator runs it: on a mesh of its own, on three nodes, with own agents, and on a staging mesh."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mesh import Agent, Mesh
from mesh.settings import Settings
from mesh.testing import hosting
from tests.journeys.conftest import MARK, left_behind

ENDS_WITHIN_S = 110.0
QUICK = {"MESH_ACK_WAIT_S": "1.5", "MESH_SWEEP_S": "2", "MESH_GRACE_S": "2"}
KEYS = {
    *("seed", "minutes", "nodes", "peers", "verdict", "tasks", "answered", "lost", "duplicated"),
    *("faults", "recovery_s", "timeline", "violations", "figures"),
}
OWN = '''
from mesh import Agent

agent = Agent("greeter", version="1")


@agent.handles("greet")
async def greet(name: str) -> str:
    """Say hello."""
    return f"hello {name}"
'''


def start(scratch: Path, mark: str, *options: str, cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mesh", "chaos", "game-day", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or scratch,
        # The server of another mesh must not be reached by a game day.
        env={**os.environ, MARK: mark, "TMPDIR": str(scratch), "MESH_NATS_URL": "nats://127.0.0.1:1", **more},
    )


def ended(day: subprocess.Popen[str]) -> dict[str, Any]:
    told, complaint = day.communicate(timeout=ENDS_WITHIN_S)
    assert day.returncode == 0, f"{told[-3000:]}\n{complaint}"
    report: dict[str, Any] = json.loads(told)
    return report


def test_half_a_minute_of_faults_loses_nothing_and_repeats_nothing(scratch: Path, marked: str) -> None:
    report = ended(start(scratch, marked, "--minutes", "0.5", "--seed", "7", "--json", **QUICK))

    assert report.keys() == KEYS
    assert (report["lost"], report["duplicated"], report["violations"]) == (0, 0, {})
    assert report["verdict"] == "every promise held"
    assert report["answered"] == report["tasks"] > 500
    assert report["seed"] == 7
    assert sum(report["faults"].values()) == len(report["timeline"]) > 2
    assert report["recovery_s"].keys() == report["faults"].keys()
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_minute_of_faults_on_three_nodes_loses_nothing_and_repeats_nothing(scratch: Path, marked: str) -> None:
    options = ("--minutes", "1", "--seed", "7", "--nodes", "3", "--peers", "3", "--json")

    report = ended(start(scratch, marked, *options, **QUICK))

    assert (report["lost"], report["duplicated"], report["nodes"]) == (0, 0, 3)
    assert left_behind(marked) == []


def test_own_agents_are_judged_by_their_results(scratch: Path, marked: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "names.jsonl").write_text('"Ada"\n"Grace"\n\n')
    options = ("--agents", "own.py:agent", "--capability", "greet", "--payload", "@names.jsonl", "--rate", "20")
    faults = ("--faults", "kill-peer,drain-peer", "--peers", "2")

    report = ended(
        start(scratch, marked, *options, *faults, "--minutes", "0.1", "--seed", "1", "--json", cwd=tmp_path, **QUICK)
    )

    assert report["answered"] == report["tasks"] > 50
    assert report["lost"] == 0
    assert report["faults"].keys() <= {"kill-peer", "drain-peer"}
    assert left_behind(marked) == []


async def test_a_staging_mesh_meets_only_safe_faults_and_its_own_tasks_go_on(
    mesh: Mesh, settings: Settings, scratch: Path, marked: str
) -> None:
    agent = Agent("greeter", version="1")

    @agent.handles("greet")
    async def greet(name: str) -> str:
        return f"hello {name}"

    options = ("--nats", str(settings.nats_url), "--safe-only", "--capability", "greet", "--payload", '"x"')
    async with hosting(agent, settings=settings):
        handle = await mesh.submit(greet, "Ada", key="theirs")
        day = start(
            scratch,
            marked,
            *options,
            "--minutes",
            "0.1",
            "--rate",
            "20",
            "--json",
            MESH_PREFIX=settings.prefix,
            **QUICK,
        )
        report = await asyncio.to_thread(ended, day)
        again = await mesh.submit(greet, "Ada", key="theirs")

        assert await handle.result() == await again.result() == "hello Ada"
        assert not again.is_new

    assert report["answered"] == report["tasks"] > 50
    assert report["figures"]["results"] == report["tasks"]
    assert report["faults"].keys() <= {"submit-again", "cancel", "cut-submitter"}
    assert (report["lost"], report["duplicated"]) == (0, 0)


def test_a_game_day_that_is_interrupted_leaves_nothing_behind(scratch: Path, marked: str) -> None:
    day = start(scratch, marked, "--minutes", "5", "--seed", "1", "--peers", "2", **QUICK)
    assert day.stderr is not None
    told = next(line for line in day.stderr if "ready" in line)

    day.send_signal(signal.SIGINT)
    day.communicate(timeout=ENDS_WITHIN_S)

    assert "2 peers are ready" in told
    assert day.returncode == 130
    assert left_behind(marked) == []
    assert list(scratch.iterdir()) == []
