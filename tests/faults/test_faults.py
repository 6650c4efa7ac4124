"""Each fault by itself, where it can be told what must come of it; then many at once for a short while."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from contracts.outcome import FailureKind, Status
from mesh.client import Mesh
from mesh.testing import eventually
from mesh.testing.faults import KillBroker, RestartBroker, Scene
from mesh.testing.history import What
from mesh.testing.kill_points import Point
from tests.faults.scene import ask, findings, scene, seed, settings
from tests.faults.storm import QUICK, Plan, storm
from tests.faults.workload import ATTEMPTS_OF_POISON, Job

LONG_S = 90.0
SHORT_STORM_WITHIN_S = 90.0


def runs(here: Scene, task: str) -> list[int]:
    """The processes that ran a task, in order."""
    return [int(entry.peer) for entry in here.history.read(What.RAN) if entry.task == task]


async def run_of(here: Scene, task: str, *, number: int = 1) -> int:
    """The process of a task's run, the first one or a later one, once it has begun."""
    found = await eventually(lambda: runs(here, task)[number - 1 : number], within_s=LONG_S)
    return found[0]


def release(folder: Path) -> None:
    (folder / "release").touch()


@pytest.mark.parametrize(
    "point",
    [pytest.param(Point.UNCOMMITTED, marks=pytest.mark.slow), Point.COMMITTED, Point.HALF_RELAYED, Point.RELAYED],
)
async def test_a_peer_killed_at_a_named_point_leaves_its_effects_once(point: Point, tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed(), points={point: 1.0}, times_max=2) as here:
        async with asyncio.TaskGroup() as fibers:
            for number in range(20):
                fibers.create_task(ask(here, "work", f"t{number}", Job(sends=2)))
        found = await findings(here)

    assert not found.violations, str(found)
    assert found.figures[f"fault_{point}"] == 2
    assert found.figures["results_done"] == 20 + 40 + 20


async def test_a_lost_ack_repeats_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed(), points={Point.ACK_LOST: 0.5}, times_max=8) as here:
        async with asyncio.TaskGroup() as fibers:
            for number in range(20):
                fibers.create_task(ask(here, "work", f"t{number}", Job(sends=1)))
        found = await findings(here)

    assert not found.violations, str(found)
    assert found.figures["fault_ack-lost"] >= 8
    assert found.figures["runs"] == 40


async def test_a_frozen_peers_task_is_taken_over_and_its_owner_comes_back_too_late(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed()) as here, asyncio.TaskGroup() as fibers:
        asked = fibers.create_task(ask(here, "hold", "h", Job(sends=2)))
        owner = await run_of(here, "hold/h")
        os.kill(owner, signal.SIGSTOP)

        successor = await run_of(here, "hold/h", number=2)
        os.kill(owner, signal.SIGCONT)
        release(tmp_path)
        outcome = await asked
        found = await findings(here)

    assert successor != owner
    assert outcome.status is Status.DONE
    assert not found.violations, str(found)
    assert found.figures["sent"] == 2


async def test_twenty_drains_hand_a_task_on_and_none_counts_as_an_attempt(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=3, seed=seed()) as here, asyncio.TaskGroup() as fibers:
        asked = fibers.create_task(ask(here, "hold", "h", Job()))
        for drained in range(20):
            owner = await run_of(here, "hold/h", number=drained + 1)
            os.kill(owner, signal.SIGTERM)
        await run_of(here, "hold/h", number=21)
        release(tmp_path)
        outcome = await asked
        found = await findings(here)

    assert outcome.status is Status.DONE
    assert not found.violations, str(found)


@pytest.mark.parametrize("fault", [KillBroker(), pytest.param(RestartBroker(), marks=pytest.mark.slow)])
async def test_broker_restarts_are_no_attempts(fault: KillBroker | RestartBroker, tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed()) as here, asyncio.TaskGroup() as fibers:
        asked = [fibers.create_task(ask(here, "hold", f"h{number}", Job(sends=1))) for number in range(4)]
        for number in range(4):
            await run_of(here, f"hold/h{number}")
        for round_ in range(4):
            await fault.strike(here)
            # A task that goes through shows that the peers are back.
            await ask(here, "work", f"t{round_}", Job())
        release(tmp_path)
        outcomes = [await asking for asking in asked]
        found = await findings(here)

    assert [outcome.status for outcome in outcomes] == [Status.DONE] * 4
    assert not found.violations, str(found)


async def test_a_task_that_kills_its_peer_ends_as_a_dead_letter(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed()) as here:
        outcome = await ask(here, "poison", "p", is_doomed=True)
        after = await ask(here, "work", "t", Job())
        found = await findings(here)

        assert outcome.failure is not None
        assert outcome.failure.kind is FailureKind.CRASHED
        assert len(runs(here, "poison/p")) == ATTEMPTS_OF_POISON
        assert after.status is Status.DONE
        assert not found.violations, str(found)
        assert found.figures["dead_letters"] == 1


async def test_one_key_from_fifty_submitters_at_once_starts_one_task(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed()) as here:

        async def submit() -> bool:
            async with Mesh.connect(settings=settings(here.server.url)) as client:
                handle = await client.submit("work", Job(run_s=0.1, sends=1), key="same")
                await handle.outcome()
                return handle.is_new

        async with asyncio.TaskGroup() as fibers:
            others = [fibers.create_task(submit()) for _ in range(50)]
            fibers.create_task(ask(here, "work", "same", Job(run_s=0.1, sends=1)))
        found = await findings(here)

        assert sum(other.result() for other in others) <= 1
        assert len(runs(here, "work/same")) == 1
        assert not found.violations, str(found)


async def test_a_submitter_that_gives_up_and_repeats_is_answered_once(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed()) as here:
        async with asyncio.TaskGroup() as fibers:
            for number in range(200):
                fibers.create_task(ask(here, "work", f"t{number}", Job(sends=1), patience_s=0.001))
        found = await findings(here)

    assert not found.violations, str(found)
    assert found.figures["confirmed"] == 200


async def test_cancelled_tasks_are_answered_once_running_or_queued(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed()) as here:
        async with asyncio.TaskGroup() as fibers:
            asked = [fibers.create_task(ask(here, "hold", f"h{number}", Job(sends=1))) for number in range(16)]
            await run_of(here, "hold/h0")
            for number in range(0, 16, 2):
                await here.client.cancel("hold", f"h{number}")
            outcomes = [await asking for asking in asked[::2]]
            release(tmp_path)
        found = await findings(here)

    assert {outcome.status for outcome in outcomes} == {Status.CANCELLED}
    assert not found.violations, str(found)
    assert found.figures["results_cancelled"] == 8


async def test_a_peer_that_drains_while_the_broker_is_away_ends_in_good_order(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=seed()) as here, asyncio.TaskGroup() as fibers:
        asked = fibers.create_task(ask(here, "hold", "h", Job()))
        await run_of(here, "hold/h")
        here.server.kill()
        for pid in here.fleet.pids:
            os.kill(pid, signal.SIGTERM)

        await eventually(lambda: len(here.history.read(What.ENDED)) >= 2, within_s=LONG_S)
        here.server.restart()
        release(tmp_path)
        outcome = await asked
        found = await findings(here)

    assert outcome.status is Status.DONE
    assert not found.violations, str(found)


@pytest.mark.timeout(240)
async def test_commits_under_way_when_the_broker_dies_are_not_lost(tmp_path: Path) -> None:
    plan = Plan(
        tasks=600,
        seed=seed(),
        peers=2,
        in_flight=100,
        strike_every=30,
        poison=0,
        refused=0,
        faults=((KillBroker(), 1),),
    )

    found = await storm(plan, tmp_path, within_s=SHORT_STORM_WITHIN_S)

    assert not found.violations, str(found)
    assert found.figures["confirmed"] == 600


@pytest.mark.timeout(240)
async def test_a_short_storm_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    plan = Plan(tasks=300, seed=seed(), peers=3, in_flight=100, strike_every=15, poison=1, refused=5, faults=QUICK)

    found = await storm(plan, tmp_path, within_s=SHORT_STORM_WITHIN_S)

    assert not found.violations, str(found)
    assert found.figures["confirmed"] == 300 + 1 + 5
