"""Three nodes and three replicas: a leader dies, a replica lags, the power goes. Nothing accepted is lost."""

import asyncio
import json
import random
import sys
from pathlib import Path

import pytest

from mesh.errors import SetupError
from mesh.testing.faults import FreezePeer, KillAll, KillBroker, KillLeader, KillPeer, RestartBroker
from mesh.testing.kill_points import Point
from mesh.testing.power import disk
from tests.faults.scene import ACK_WAIT_S, ROOT, ask, findings, scene, seed
from tests.faults.storm import ON_A_CLUSTER, Plan, storm
from tests.faults.test_order_faults import storm as storm_of_lines
from tests.faults.test_workflow_faults import EVERY_DEATH, ask_flow, flows, half_done, play
from tests.faults.workload import Job

LAGGING = 0.3
"""The share of all reads in which a replica has not come so far."""

slow = pytest.mark.slow


@pytest.mark.timeout(180)
async def test_a_leader_that_dies_under_load_takes_nothing_with_it(tmp_path: Path) -> None:
    plan = Plan(
        tasks=100,
        seed=seed(),
        peers=3,
        in_flight=40,
        strike_every=40,
        poison=0,
        refused=3,
        faults=((KillLeader(), 1),),
        cluster=True,
    )

    found = await storm(plan, tmp_path, within_s=120.0)

    assert not found.violations, str(found)
    assert found.figures["confirmed"] == 100 + 3
    assert found.figures["fault_kill-leader"] >= 1


async def test_no_finished_step_runs_again_and_nothing_stays_half_done_where_replicas_lag(tmp_path: Path) -> None:
    chosen = seed()
    trips = random.Random(chosen).sample(EVERY_DEATH, len(EVERY_DEATH) // 6)
    async with flows(tmp_path, peers=4, seed=chosen, points={Point.LAGGED: LAGGING}) as here:
        asking = [
            ask_flow(here, "trip", f"{trip.ends}-{trip.dies}".replace(" ", "-"), trip, is_doomed=trip.ends == "failed")
            for trip in trips
        ]
        found = await play(here, asking)

        assert not found.violations, str(found)
        assert found.figures["fault_lagged"] >= 1
        assert half_done(here.history.read()) == []


async def test_no_finished_task_runs_again_where_replicas_lag(tmp_path: Path) -> None:
    points = {Point.ACK_LOST: 0.3, Point.LAGGED: LAGGING}
    async with scene(tmp_path, peers=2, seed=seed(), points=points) as here:
        async with asyncio.TaskGroup() as fibers:
            for number in range(20):
                fibers.create_task(ask(here, "work", f"t{number}", Job(sends=1)))
        found = await findings(here)

    assert not found.violations, str(found)
    assert found.figures["fault_ack-lost"] >= 5
    assert found.figures["runs"] == 40


@slow
@pytest.mark.timeout(900)
async def test_a_cluster_under_every_fault_at_once_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    plan = Plan(tasks=3_000, seed=seed(), strike_every=30, faults=ON_A_CLUSTER, cluster=True)

    found = await storm(plan, tmp_path, within_s=800.0)

    assert not found.violations, str(found)
    assert found.figures["fault_kill-leader"] >= 1


@slow
@pytest.mark.timeout(400)
async def test_sagas_on_a_cluster_are_wholly_done_or_wholly_undone(tmp_path: Path) -> None:
    chosen = seed()
    faults = (KillLeader(), KillBroker(), RestartBroker())
    async with flows(tmp_path, peers=4, seed=chosen, cluster=True, points={Point.LAGGED: 0.05}) as here:
        asking = [
            ask_flow(here, "trip", f"{trip.ends}-{trip.dies}".replace(" ", "-"), trip, is_doomed=trip.ends == "failed")
            for trip in EVERY_DEATH
        ]
        found = await play(here, asking, faults=faults, every_s=15.0, within_s=300.0)

        assert not found.violations, str(found)
        assert half_done(here.history.read()) == []


@slow
@pytest.mark.timeout(600)
async def test_lines_on_a_cluster_stay_in_order(tmp_path: Path) -> None:
    faults = (*(KillPeer(),) * 4, FreezePeer(for_s=1.5 * ACK_WAIT_S), KillLeader(), KillBroker(for_s=1.0), KillAll())

    found, wrong = await storm_of_lines(
        tmp_path, tasks=600, lines=12, faults=faults, every_s=4.0, within_s=500.0, cluster=True
    )

    assert not found.violations, str(found)
    assert wrong == []


# The power.


@pytest.mark.parametrize("nodes", [1, pytest.param(3, marks=slow)])
@pytest.mark.timeout(180)
async def test_a_power_cut_takes_nothing_that_was_accepted_where_each_write_is_synced(
    tmp_path: Path, nodes: int
) -> None:
    try:
        with disk(tmp_path):
            pass
    except SetupError as error:
        pytest.skip(f"no disk whose power can be cut: {error}")

    # A process of its own: the client in it is cut off in mid-air.
    cutting = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops.chaos.power_cut", "--json", "--rounds", "1"),
        *("--settings", "always", "--nodes", str(nodes), "--seed", str(seed())),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await cutting.communicate()
    found = json.loads(told)["always"]

    assert cutting.returncode == 0, found
    assert found["accepted"]
    assert (found["accepted_lost"], found["answered_lost"]) == (0, 0)
