"""Handlers that stop their peer's event loop, and peers that stop altogether: two processes, real time.

A redelivery would go to the other peer and show as a second run.
"""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest

from contracts.outcome import Status
from mesh.testing import eventually
from mesh.testing.history import What
from tests.faults.scene import ACK_WAIT_S, ask, findings, scene
from tests.faults.workload import Block, Job

SEED = 1
LONG_S = 90.0


@pytest.mark.parametrize("capability", ["block-loop", "block-interpreter"])
async def test_a_handler_that_blocks_its_peer_past_the_ack_wait_runs_once(capability: str, tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=SEED) as here:
        outcome = await ask(here, capability, "b", Block(for_s=3 * ACK_WAIT_S))
        found = await findings(here)

    assert outcome.status is Status.DONE
    assert outcome.attempt == 1
    assert found.figures["runs"] == 1
    assert not found.violations, str(found)


async def test_a_frozen_peer_is_not_spoken_for_and_its_task_is_taken_over(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=SEED) as here, asyncio.TaskGroup() as fibers:
        asked = fibers.create_task(ask(here, "hold", "h", Job()))
        (first,) = await eventually(lambda: here.history.read(What.RAN), within_s=LONG_S)
        os.kill(int(first.peer), signal.SIGSTOP)
        (tmp_path / "release").touch()

        outcome = await asked
        os.kill(int(first.peer), signal.SIGCONT)
        found = await findings(here)

    assert outcome.status is Status.DONE
    assert outcome.attempt == 2
    assert not found.violations, str(found)


async def test_heartbeats_end_with_their_peer(tmp_path: Path) -> None:
    async with scene(tmp_path, peers=2, seed=SEED) as here, asyncio.TaskGroup() as fibers:
        asked = fibers.create_task(ask(here, "hold", "h", Job()))
        (first,) = await eventually(lambda: here.history.read(What.RAN), within_s=LONG_S)
        beaters = psutil.Process(int(first.peer)).children()
        os.kill(int(first.peer), signal.SIGKILL)

        await eventually(lambda: not any(beater.is_running() for beater in beaters), within_s=LONG_S)
        (tmp_path / "release").touch()
        outcome = await asked

    assert len(beaters) == 1
    assert outcome.status is Status.DONE
