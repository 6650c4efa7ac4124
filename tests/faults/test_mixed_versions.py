"""A fleet in the middle of an upgrade: peers of two versions, tasks, and kills."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from contracts import wire
from contracts.outcome import Status
from mesh import Mesh
from mesh.bus import topology
from mesh.bus.records import read_range
from mesh.local.server import local_server
from mesh.testing import eventually
from mesh.testing.faults import Scene
from mesh.testing.fleet import Fleet
from mesh.testing.history import History, What
from mesh.testing.witness import listening
from tests.faults import mixed_peer
from tests.faults.scene import ROOT, _environment, ask, findings, seed, settings
from tests.faults.workload import Job, Orders

PEERS = 4
READY_WITHIN_S = 60.0


@pytest.mark.parametrize("tasks", [30, pytest.param(400, marks=pytest.mark.slow)])
async def test_a_fleet_of_two_versions_loses_and_repeats_nothing_while_peers_are_killed(
    tasks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = seed()
    dice = random.Random(chosen)
    orders = Orders(history=str(tmp_path / "history.jsonl"), seed=chosen, release=str(tmp_path / "release"))
    with local_server(tmp_path / "store") as server, History(Path(orders.history)) as history:
        ours = settings(server.url, hot_wait_s=0.0)
        fleet = Fleet(
            [sys.executable, "-m", "tests.faults.mixed_peer", msgspec.json.encode(orders).decode()],
            size=PEERS,
            env=_environment(ours),
            envs=[{"NEWER": "1"}, {"NEWER": "1"}],
            cwd=ROOT,
            history=history,
            log=tmp_path / "peers.log",
        )
        # Whoever looks at the end, and waits for results, is of the later version.
        monkeypatch.setattr(wire, "FORMAT", mixed_peer.NEWER)
        async with Mesh.connect(settings=ours) as client:
            await topology.ensure(client.bus, topology.of_mesh(ours))
            async with listening(client.bus, history), fleet.running():
                await eventually(lambda: len(history.read(What.READY)) >= PEERS, within_s=READY_WITHIN_S)
                here = Scene(fleet, server, client, history, dice)
                async with asyncio.TaskGroup() as fibers:
                    asked = [
                        fibers.create_task(ask(here, "work", f"w{number}", Job(run_s=0.05, sends=2)))
                        if number % 2
                        else fibers.create_task(ask(here, "journey", f"j{number}", Job(), is_workflow=True))
                        for number in range(tasks)
                    ]
                    for number in range(1, 4):
                        await eventually(lambda n=number: _done(asked) >= n * tasks // 5, within_s=120)
                        os.kill(dice.choice(fleet.pids), signal.SIGKILL)
                found = await findings(here)
            bus = client.bus
            stored = [one async for one in read_range(bus, bus.subjects.stream, bus.subjects.results_of())]

    formats = {msgspec.json.decode(one.data, type=dict[str, object])["v"] for one in stored}
    assert not found.violations, str(found)
    assert {task.result().status for task in asked} == {Status.DONE}
    assert formats == {wire.PLAIN, mixed_peer.NEWER}, "both versions wrote results"


def _done(tasks: "list[asyncio.Task[object]]") -> int:
    return sum(task.done() for task in tasks)
