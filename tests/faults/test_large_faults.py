"""Peers and brokers that die around large payloads and values: no record is left with a reference to nothing."""

import asyncio
from pathlib import Path

import pytest

from contracts.outcome import Outcome, Status
from contracts.subjects import Identity
from mesh.bus import objects
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.dead_letters import dead_letters
from mesh.bus.records import read_range
from mesh.testing.faults import Fault, FreezePeer, KillBroker, KillPeer, Scene
from mesh.testing.kill_points import Point
from tests.faults.scene import ACK_WAIT_S, ask, findings, scene, seed
from tests.faults.workload import Bulk

SIZE = 300_000
TASKS_IN_STORM = 300


async def owned(bus: Bus) -> dict[str, tuple[Identity, objects.Kept]]:
    """Every object that a record refers to, by its first chunk's subject, once nothing is queued any more."""
    subjects, found = bus.subjects, dict[str, tuple[Identity, objects.Kept]]()
    async for stored in read_range(bus, subjects.stream, subjects.results_of()):
        task, outcome = subjects.parse(stored.subject).identity, read_outcome(stored)
        if outcome.value_at is not None:
            found[subjects.chunk(task, outcome.value_at.name, 0)] = task, outcome.value_at
    async for letter in dead_letters(bus, up_to=2**62):
        if letter.kept is not None:
            found[subjects.chunk(letter.task, letter.kept.name, 0)] = letter.task, letter.kept
    return found


async def check_objects(here: Scene) -> int:
    """Every object that is referred to can be read; how many others stand, which go by their time to live."""
    bus = here.client.bus
    standing = await owned(bus)
    for task, kept in standing.values():
        assert len(await objects.get(bus, task, kept)) == kept.bytes
    info = await bus.api(f"STREAM.INFO.{bus.subjects.object_stream}", {"subjects_filter": ">"})
    firsts = {subject for subject in info["state"].get("subjects") or {} if subject.endswith(".0")}
    return len(firsts - standing.keys())


async def ask_large(here: Scene, tasks: int, *, sends: int = 1) -> list[Outcome]:
    async with asyncio.TaskGroup() as fibers:
        asked = [
            fibers.create_task(ask(here, "bulk", f"b{number}", Bulk("ab"[number % 2] * SIZE, SIZE, sends)))
            for number in range(tasks)
        ]
    async with asyncio.TaskGroup() as fibers:
        for number in range(2):
            fibers.create_task(ask(here, "spoil", f"s{number}", Bulk("s" * SIZE, SIZE), is_doomed=True))
    return [one.result() for one in asked]


@pytest.mark.parametrize("point", [Point.UNCOMMITTED, Point.COMMITTED, Point.HALF_RELAYED])
async def test_a_peer_killed_between_an_object_and_its_record_leaves_no_reference_to_nothing(
    point: Point, tmp_path: Path
) -> None:
    async with scene(tmp_path, peers=2, seed=seed(), points={point: 1.0}, times_max=2) as here:
        outcomes = await ask_large(here, 8)
        found = await findings(here)
        left_over = await check_objects(here)

    assert not found.violations, str(found)
    assert found.figures[f"fault_{point}"] == 2
    assert {outcome.status for outcome in outcomes} == {Status.DONE}
    assert [bytes(outcome.value)[1:2] for outcome in outcomes] == [b"a", b"b"] * 4  # type: ignore[arg-type]
    # Of each peer that died, the values and payloads that its runs had stored and not referred to yet.
    assert (2 if point is Point.UNCOMMITTED else 0) <= left_over <= 2 * 8 * 2


@pytest.mark.slow
async def test_large_tasks_survive_a_storm(tmp_path: Path) -> None:
    faults: list[Fault] = [KillPeer(), KillBroker(), FreezePeer(2 * ACK_WAIT_S)]
    async with scene(tmp_path, peers=3, seed=seed(), objects_bytes_max=2**30) as here:
        async with asyncio.TaskGroup() as fibers:
            asked = fibers.create_task(ask_large(here, TASKS_IN_STORM))
            strikes = 0
            while not asked.done():
                await faults[strikes % len(faults)].strike(here)
                strikes += 1
                await asyncio.wait([asked], timeout=1.0)
        found = await findings(here)
        left_over = await check_objects(here)
        here.tell(f"{left_over} objects left over")

    assert not found.violations, str(found)
    assert {outcome.status for outcome in asked.result()} == {Status.DONE}
    assert strikes >= len(faults)
