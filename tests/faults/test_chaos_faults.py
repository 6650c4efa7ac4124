"""Each fault of the chaos kit by itself: it strikes, everything promised holds, and what was in flight is answered."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.client import Mesh
from mesh.errors import Overloaded
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.chaos.agents import Job
from mesh.testing.chaos.game_day import Plan, Report, play
from mesh.testing.chaos.schedule import Planned
from mesh.testing.chaos.stage import local_stage
from mesh.testing.chaos.workloads import BUILT_IN, Wanted
from mesh.testing.faults import Fault, KillPeer, Scene
from mesh.testing.history import What
from mesh.testing.inner_faults import BlockLoop, DropAcks, LateAcks, ShiftClock, SlowHandler
from mesh.testing.network_faults import (
    CutPeer,
    CutSubmitter,
    DelayNetwork,
    PartitionHalf,
    PartitionPeer,
    ThrottlePeer,
)
from mesh.testing.stream_faults import FillStream
from mesh.testing.witness import findings, is_quiet
from tests.faults.scene import seed

ACK_WAIT_S = 1.0
LEAD_IN_S = 0.7
AFTER_S = 0.5
LEAVES = {"block-loop": "blocked", "slow-handler": "slowed", "drop-acks": "ack-lost", "late-acks": "ack-late"}
"""What a peer notes of an order that it obeyed."""
SHORT = Settings(ack_wait_s=ACK_WAIT_S, sweep_s=1.0, beat_s=0.5, grace_s=1.0)


@dataclass(frozen=True, slots=True)
class Steady:
    """The same task again and again: it sends another, and may fail for a while."""

    failing: float = 0.0
    targets: tuple[str, ...] = (BUILT_IN,)
    is_strict: bool = True

    def wanted(self, number: int) -> Wanted:
        return Wanted("chaos-work", Job(run_s=0.02, sends=number % 2, failing=self.failing))


@asynccontextmanager
async def stage(
    folder: Path, *, peers: int = 2, nodes: int = 1, command: Sequence[str] = ("-m", "mesh.cli.chaos.peer")
) -> AsyncIterator[Scene]:
    async with local_stage(
        folder / "stage",
        nodes=nodes,
        peers=peers,
        seed=seed(),
        settings=SHORT,
        targets=(BUILT_IN,),
        command=lambda briefing: (sys.executable, *command, briefing),
        env=os.environ,
    ) as scene:
        yield scene


async def struck(scene: Scene, *faults: Fault, lasting_s: float, failing: float = 0.0) -> Report:
    """A day with these faults at once."""
    planned = tuple(Planned(number, LEAD_IN_S, fault) for number, fault in enumerate(faults, 1))
    plan = Plan(for_s=LEAD_IN_S + lasting_s + AFTER_S, seed=1, faults=planned, key_prefix="t", answered_within_s=20.0)
    return await play(plan, scene, Steady(failing))


@pytest.mark.parametrize(
    "fault",
    [
        BlockLoop(1.5 * ACK_WAIT_S),
        pytest.param(SlowHandler(1.0), marks=pytest.mark.slow),
        pytest.param(DropAcks(1.0), marks=pytest.mark.slow),
        LateAcks(1.0, late_s=1.3 * ACK_WAIT_S),
        pytest.param(DelayNetwork(1.0), marks=pytest.mark.slow),
        PartitionPeer(1.5 * ACK_WAIT_S),
        CutSubmitter(0.3),
        pytest.param(CutPeer(0.5), marks=pytest.mark.slow),
        pytest.param(PartitionHalf(1.5 * ACK_WAIT_S), marks=pytest.mark.slow),
        pytest.param(ThrottlePeer(2.0), marks=pytest.mark.slow),
        pytest.param(FillStream(2.0), marks=pytest.mark.slow),
    ],
    ids=lambda fault: fault.name,
)
async def test_a_fault_by_itself_breaks_no_promise_and_what_was_in_flight_is_answered(
    fault: Fault, tmp_path: Path
) -> None:
    async with stage(tmp_path) as scene:
        report = await struck(scene, fault, lasting_s=getattr(fault, "for_s", 0.0))

    assert report.is_sound, report.violations
    assert report.faults == {fault.name: 1}
    assert report.answered == report.tasks > 20
    (event,) = report.timeline
    assert event.healed_after_s is not None
    assert event.in_flight_s is not None
    if fault.name in LEAVES:
        assert report.figures[f"fault_{LEAVES[fault.name]}"] > 0


@pytest.mark.parametrize("ahead_s", [7_200.0, -7_200.0])
async def test_retries_go_on_beside_a_peer_whose_clock_is_hours_off(ahead_s: float, tmp_path: Path) -> None:
    async with stage(tmp_path) as scene:
        report = await struck(scene, ShiftClock(1.0, ahead_s), lasting_s=1.0, failing=0.5)

    assert report.is_sound, report.violations
    assert report.answered == report.tasks > 20


async def test_a_full_stream_refuses_submitters_and_keeps_every_commit(tmp_path: Path) -> None:
    async with stage(tmp_path) as scene, asyncio.TaskGroup() as fibers:
        striking = fibers.create_task(FillStream(2.0, room=10).strike(scene))
        await eventually(lambda: scene.history.read(What.FAULT))
        refused = await refusals(scene.client)
        held = scene.history.read(What.ECHOED)
        await striking
        found = await findings(scene)

    assert refused
    assert not found.lost
    assert not found.repeated
    assert found.figures["results"] >= len(held)
    assert found.figures["results_done"] == found.figures["results"]


async def refusals(client: Mesh) -> list[Overloaded]:
    """What submitters were told until the first of them was refused."""
    for number in range(10_000):
        try:
            await client.submit("chaos-work", Job(), key=f"full-{number}")
        except Overloaded as error:
            return [error]
    return []


async def test_a_partitioned_half_does_not_keep_the_others_from_answering(tmp_path: Path) -> None:
    async with stage(tmp_path) as scene, asyncio.TaskGroup() as fibers:
        fibers.create_task(PartitionHalf(2 * ACK_WAIT_S).strike(scene))
        await eventually(lambda: scene.history.read(What.FAULT))
        handles = [await scene.client.submit("chaos-work", Job(), key=f"p{number}") for number in range(20)]
        outcomes = [await handle.outcome() for handle in handles]
        await eventually(lambda: is_quiet(scene.client.bus))

    assert {outcome.status for outcome in outcomes} == {"done"}


async def test_a_mesh_that_acks_before_it_commits_is_found_out(tmp_path: Path) -> None:
    broken = ("-m", "tests.faults.broken_peer")
    async with stage(tmp_path, peers=2, command=broken) as scene:
        planned = tuple(Planned(number, LEAD_IN_S + 0.3 * number, KillPeer()) for number in range(1, 4))
        plan = Plan(for_s=2.5, seed=1, faults=planned, key_prefix="t", answered_within_s=3.0)
        report = await play(plan, scene, Steady())

    assert not report.is_sound
    assert report.lost > 0
    assert report.verdict.startswith("broken: ")
    assert report.violations["lost"]
