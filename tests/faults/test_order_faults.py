"""Lines under faults: in order, one at a time, nothing lost, whoever dies."""

import asyncio
import itertools
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from contracts.subjects import Identity, in_line
from mesh.bus.commit import read_outcome
from mesh.bus.records import read_range
from mesh.client import Handle, Mesh
from mesh.testing.faults import (
    DrainPeer,
    Fault,
    FreezeBroker,
    FreezePeer,
    KillBroker,
    KillPeer,
    RestartBroker,
    Scene,
    repeated_until_done,
)
from mesh.testing.history import Entry, Findings, What, text
from mesh.testing.kill_points import Point
from tests.faults.lines import Turn
from tests.faults.scene import ACK_WAIT_S, findings, scene, seed
from tests.faults.test_workflow_faults import striking

POINTS = {
    Point.UNCOMMITTED: 0.002,
    Point.COMMITTED: 0.005,
    Point.PARK_BEGUN: 0.002,
    Point.PARKED: 0.002,
    Point.TIMED: 0.002,
    Point.WAKE_DUE: 0.005,
    Point.WOKEN: 0.005,
    Point.ACK_LOST: 0.01,
}
PAUSES = dict.fromkeys((Point.COMMITTED, Point.PARK_BEGUN, Point.PARKED, Point.TIMED, Point.WAKE_DUE), 0.02)


def out_of_line(entries: Iterable[Entry]) -> list[str]:
    """What the history tells of lines that were not in order, or ran two at once."""
    ran: dict[str, list[float]] = defaultdict(list)
    over: dict[str, tuple[float, bool]] = {}
    submitted: dict[str, set[str]] = defaultdict(set)
    by_submitter: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.what is What.RAN:
            ran[entry.task].append(float(entry.value))
        elif entry.what is What.EFFECT:
            over[entry.task] = float(entry.value), entry.detail == "early"
        elif entry.what is What.CONFIRMED:
            submitted[entry.value].add(entry.task)
            if entry.task not in by_submitter[entry.peer]:
                by_submitter[entry.peer].append(entry.task)
    wrong = [f"{key} is {sorted(tasks)}" for key, tasks in submitted.items() if len(tasks) > 1]
    lines: dict[Any, dict[int, str]] = defaultdict(dict)
    for task in over:
        found = in_line(Identity(*task.split("/", 1)))
        if found is not None:
            lines[found[0]][found[1]] = task
    for line, tasks in lines.items():
        if sorted(tasks) != list(range(1, len(tasks) + 1)):
            wrong.append(f"{line} has the positions {sorted(tasks)}")
        all_over, before = 0.0, ""
        for _, task in sorted(tasks.items()):
            wrong += [f"{task} ran {all_over - at:.6f} s before {before} was over" for at in ran[task] if at < all_over]
            stored_at, is_early = over[task]
            if stored_at < all_over and not is_early:
                wrong.append(f"{task} is over before {before}, and not said to be early")
            if stored_at > all_over:
                all_over, before = stored_at, task
    for submitter, told in by_submitter.items():
        for key in {in_line(Identity(*task.split("/", 1)))[0] for task in told}:  # type: ignore[index]
            own = [found[1] for task in told if (found := in_line(Identity(*task.split("/", 1)))) and found[0] == key]
            if own != sorted(own):
                wrong.append(f"{submitter} got the positions {own} in {key}")
    return wrong


class Submitters:
    """Puts tasks into lines under keys, each until that is confirmed, and cancels some."""

    def __init__(self, here: Scene, dice: random.Random, *, lines: int) -> None:
        self._here = here
        self._dice = dice
        self._lines = lines
        self._numbers = itertools.count()

    async def submit(self, client: Mesh, name: str, count: int) -> None:
        """So many tasks in one submitter's order, each answered in the end."""
        async with asyncio.TaskGroup() as answers:
            for _ in range(count):
                handle = await self._one(client, name)
                answers.create_task(self._answer(handle))

    async def _one(self, client: Mesh, name: str) -> Handle[Any]:
        dice, here = self._dice, self._here
        order_key, key = f"line-{dice.randrange(self._lines)}", f"{name}-{next(self._numbers)}"
        capability = "plain-turn" if order_key.endswith("0") else "turn"
        turn = Turn(
            run_s=dice.choice((0.0, 0.002, 0.01)),
            failing=dice.choice((0.0, 0.0, 0.0, 0.3)),
            is_doomed=dice.random() < 0.05,
            nap_s=0.6 if dice.random() < 0.02 else 0.0,
        )
        # Some are too impatient to hear that they were heard, and some ask again.
        patience_s = dice.choice((None, None, 0.004))
        for _ in range(dice.choice((1, 1, 1, 2))):
            handle: Handle[Any] = await repeated_until_done(
                lambda: client.submit(capability, turn, order_key=order_key, key=key), patience_s=patience_s
            )
            task = str(handle.task)
            here.history.add(Entry(What.ATTEMPTED, task=task, is_doomed=turn.is_doomed))
            here.history.add(Entry(What.CONFIRMED, task=task, peer=name, value=f"{order_key}/{key}"))
        if not turn.is_doomed and dice.random() < 0.05:
            here.tell("cancel", task)
            await repeated_until_done(handle.cancel)
        return handle

    async def _answer(self, handle: Handle[Any]) -> None:
        outcome = await handle.outcome()
        told = Entry(What.ANSWERED, task=str(handle.task), status=outcome.status, value=text(outcome.value))
        self._here.history.add(told)


async def storm(
    folder: Path,
    *,
    tasks: int,
    lines: int,
    faults: Sequence[Fault],
    every_s: float,
    within_s: float,
    cluster: bool = False,
) -> tuple[Findings, list[str]]:
    """What the history of two submitters into several lines proves."""
    chosen = seed()
    began = time.monotonic()
    async with scene(
        folder, peers=4, seed=chosen, workload="tests.faults.lines", points=POINTS, pauses=PAUSES, hot_wait_s=0.2,
        wake_again_s=3_600.0, cluster=cluster,
    ) as here, Mesh.connect(settings=here.client.bus.settings) as other:  # fmt: skip
        submitters = Submitters(here, random.Random(f"{chosen} lines"), lines=lines)
        try:
            async with (
                asyncio.timeout(within_s),
                striking(here, faults, every_s=every_s),
                asyncio.TaskGroup() as fibers,
            ):
                fibers.create_task(submitters.submit(here.client, "a", tasks // 2))
                fibers.create_task(submitters.submit(other, "b", tasks // 2))
            found = await findings(here)
        except TimeoutError:
            found = await findings(here, within_s=0.0)
        await note_results(here)
        sys.stdout.write(f"{time.monotonic() - began:.1f} s {found.figures}\n")
        return found, out_of_line(here.history.read())


async def note_results(here: Scene) -> None:
    """Have the history tell when each result was stored, and which ones before their turn."""
    bus = here.client.bus
    async for stored in read_range(bus, bus.subjects.stream, bus.subjects.results_of()):
        task, outcome = bus.subjects.parse(stored.subject).identity, read_outcome(stored)
        told = "early" if outcome.is_early else "in turn"
        here.history.add(Entry(What.EFFECT, task=str(task), detail=told, value=repr(stored.stored_at)))


@pytest.mark.timeout(60)
async def test_lines_stay_in_order_while_peers_and_the_broker_are_killed(tmp_path: Path) -> None:
    faults = (KillPeer(), KillPeer(), KillPeer(), KillBroker())

    found, wrong = await storm(tmp_path, tasks=80, lines=5, faults=faults, every_s=0.8, within_s=45.0)

    assert not found.violations, str(found)
    assert wrong == []
    assert any(name.startswith("fault_") for name in found.figures)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_lines_stay_in_order_under_every_fault_at_once(tmp_path: Path) -> None:
    faults = (
        *(KillPeer(),) * 6,
        FreezePeer(for_s=1.5 * ACK_WAIT_S),
        FreezePeer(for_s=3 * ACK_WAIT_S),
        DrainPeer(),
        KillBroker(),
        KillBroker(for_s=1.0),
        RestartBroker(),
        FreezeBroker(for_s=2.0),
    )

    found, wrong = await storm(tmp_path, tasks=2_000, lines=20, faults=faults, every_s=1.0, within_s=330.0)

    assert not found.violations, str(found)
    assert wrong == []
    assert found.figures["fault_freeze-peer"] >= 1
