"""Decisions under faults: each is in the record of its task, and in the stream of events once, whoever dies."""

import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contracts.decision import keyed
from mesh.bus.commit import read_outcome
from mesh.bus.records import read_range
from mesh.testing.faults import DrainPeer, FreezePeer, KillBroker, KillPeer, RestartBroker, Scene, repeated_until_done
from mesh.testing.kill_points import Point
from tests.faults.deciders import Case
from tests.faults.scene import ACK_WAIT_S, ask, findings, scene, seed
from tests.faults.test_workflow_faults import striking

DECIDERS: dict[str, Any] = {"workload": "tests.faults.deciders", "hot_wait_s": 0.05, "events_bytes_max": 2**28}
STORM = {
    Point.UNCOMMITTED: 0.002,
    Point.COMMITTED: 0.005,
    Point.UNTOLD: 0.005,
    Point.TOLD: 0.005,
    Point.PARK_BEGUN: 0.005,
    Point.PARKED: 0.005,
    Point.ACK_LOST: 0.01,
}


async def decided(here: Scene) -> tuple[Counter[str], Counter[str]]:
    """Subjects of the decisions that the records tell of, and of those in the stream, with how often each is there."""
    bus, recorded, told = here.client.bus, Counter[str](), Counter[str]()
    async for stored in read_range(bus, bus.subjects.stream, bus.subjects.results_of("judge")):
        task = bus.subjects.parse(stored.subject).identity
        recorded.update(bus.subjects.decided(task, key) for key, _ in keyed(read_outcome(stored).decisions))
    (every,) = bus.subjects.events_of("decided")
    async for stored in read_range(bus, bus.subjects.event_stream, every):
        told[stored.subject] += 1
    return recorded, told


@pytest.mark.parametrize(
    "point",
    [
        Point.COMMITTED,
        Point.UNTOLD,
        pytest.param(Point.TOLD, marks=pytest.mark.slow),
        pytest.param(Point.PARKED, marks=pytest.mark.slow),
    ],
)
async def test_a_peer_killed_at_a_named_point_leaves_each_decision_told_once(point: Point, tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed(), points={point: 1.0}, times_max=2, **DECIDERS) as here:
        async with asyncio.TaskGroup() as fibers:
            for number in range(8):
                fibers.create_task(ask(here, "judge", f"t{number}", Case(choices=3)))
                fibers.create_task(ask(here, "judge", f"w{number}", Case(choices=2, waits_s=0.3), is_workflow=True))
            fibers.create_task(ask(here, "judge", "lost", Case(choices=2, is_lost=True), is_doomed=True))
        found = await findings(here)
        recorded, told = await decided(here)

    assert not found.violations, str(found)
    assert found.figures[f"fault_{point}"] >= 1
    assert recorded.total() == len(recorded) == 8 * 3 + 8 * 3 + 2
    assert told == recorded


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_decision_of_a_storm_is_told_once(tmp_path: Path) -> None:
    chosen = seed()
    dice, tasks, began = random.Random(chosen), 4_000, time.monotonic()
    faults = (KillPeer(), KillPeer(), FreezePeer(for_s=2 * ACK_WAIT_S), DrainPeer(), KillBroker(), RestartBroker())
    async with scene(tmp_path, peers=4, seed=chosen, points=STORM, **DECIDERS) as here:
        numbers = iter(range(tasks))

        async def ask_in_turn() -> None:
            for number in numbers:
                is_lost = dice.random() < 0.05
                case = Case(dice.randrange(4), dice.choice((0.0, 0.0, 0.0, 0.2, 1.0)), is_lost)
                await ask(here, "judge", f"t{number}", case, is_doomed=is_lost, is_workflow=case.waits_s > 0)

        async with striking(here, faults, every_s=2.0), asyncio.TaskGroup() as fibers:
            for _ in range(100):
                fibers.create_task(ask_in_turn())
        found = await findings(here)
        recorded, told = await repeated_until_done(lambda: decided(here))

    figures = {name: count for name, count in found.figures.items() if name.startswith("fault")}
    sys.stdout.write(f"{time.monotonic() - began:.1f} s, {len(recorded)} decisions, {figures}\n")
    assert not found.violations, str(found)
    assert recorded.total() == len(recorded)
    assert told == recorded
