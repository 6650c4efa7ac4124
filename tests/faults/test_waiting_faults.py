"""Waiting tasks under faults: what is recorded is not done again, what is awaited is noticed, what failed is undone."""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from contracts.outcome import Outcome, Status
from contracts.subjects import Identity
from contracts.workflow import Answer, Verdict
from mesh.bus import topology
from mesh.client import Mesh
from mesh.local.server import LocalServer, local_server
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.faults import Fleet, submit_surely
from mesh.testing.history import Entry, History, What
from mesh.workflow.inbox import unanswered
from tests.faults.scene import ROOT, seed, settings
from tests.faults.waiting_workload import STEPS, Orders, Trip

WITHIN_S = 110.0
READY_WITHIN_S = 60.0


@dataclass
class Stage:
    """A broker, a client, and a fleet that may leave and come back."""

    client: Mesh
    server: LocalServer
    history: History
    ours: Settings
    folder: Path
    dice: random.Random
    stored: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def fleet(self, size: int) -> AsyncIterator[Fleet]:
        """So many peers until left."""
        orders = Orders(str(self.history.path), str(self.folder / "world"))
        told = self.ours.model_dump(mode="json", exclude_none=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
        before = len(self.history.read(What.READY))
        fleet = Fleet(
            [sys.executable, "-m", "tests.faults.waiting_workload", msgspec.json.encode(orders).decode()],
            size=size,
            env={**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}},
            cwd=ROOT,
            history=self.history,
            log=self.folder / "peers.log",
        )
        async with fleet.running():
            await eventually(lambda: len(self.history.read(What.READY)) >= before + size, within_s=READY_WITHIN_S)
            yield fleet

    async def ask(self, capability: str, key: str, payload: Any) -> Outcome:
        handle = await submit_surely(self.client, Identity(capability, key), payload)
        return await handle.outcome(within_s=WITHIN_S)

    async def is_quiet(self) -> bool:
        """Whether nothing is queued, woken or in flight, and no timer is left to fire."""
        bus = self.client.bus
        subjects = bus.subjects
        for pattern in (subjects.tasks_of(), *subjects.wakes_of("*")):
            if await topology.queued(bus, pattern):
                return False
        for name in await topology.served(bus):
            consumer = await bus.api(f"CONSUMER.INFO.{subjects.stream}.{name}")
            if consumer["num_pending"] or consumer["num_ack_pending"]:
                return False
        return True

    async def timers(self) -> int:
        info = await self.client.bus.api(f"STREAM.INFO.{self.client.bus.subjects.timer_stream}")
        return int(info["state"]["messages"])


@asynccontextmanager
async def stage(folder: Path, **changes: Any) -> AsyncIterator[Stage]:
    """The server and the history stay; what is stored as a result is counted."""
    chosen = seed()
    (folder / "world").mkdir()
    async with AsyncExitStack() as stack:
        server = stack.enter_context(local_server(folder / "store"))
        history = stack.enter_context(History(folder / "history.jsonl"))
        # A lost wake must show: nothing looks at a parked task before the test is over.
        defaults = {"hot_wait_s": 0.2, "wake_again_s": 3_600.0}
        ours = settings(server.url).model_copy(update={**defaults, **changes})
        client = await stack.enter_async_context(Mesh.connect(settings=ours))
        await topology.ensure(client.bus, topology.streams(ours))
        here = Stage(client, server, history, ours, folder, random.Random(chosen))

        async def record(message: Msg) -> None:
            here.stored[message.subject] += 1

        await client.bus.nc.subscribe(ours.subjects.result_echo[1], cb=record)
        yield here


async def kill_now_and_then(here: Stage, fleet: Fleet, *, every_s: float) -> None:
    """SIGKILL some peer again and again."""
    while True:
        await asyncio.sleep(here.dice.uniform(0.5, 1.5) * every_s)  # the passing of time is the fault
        if fleet.pids:
            here.history.add(Entry(What.FAULT, detail="kill-peer"))
            os.kill(here.dice.choice(fleet.pids), signal.SIGKILL)


async def restart_broker_now_and_then(here: Stage, *, every_s: float) -> None:
    """Kill the server again and again, each time for a moment."""
    while True:
        await asyncio.sleep(here.dice.uniform(0.5, 1.5) * every_s)  # the passing of time is the fault
        here.history.add(Entry(What.FAULT, detail="kill-broker"))
        await asyncio.to_thread(here.server.kill)
        await asyncio.to_thread(here.server.restart)


@pytest.mark.parametrize("count", [300, pytest.param(1_000, marks=pytest.mark.slow)])
async def test_a_map_gives_every_item_once_while_peers_are_killed(tmp_path: Path, count: int) -> None:
    async with stage(tmp_path) as here, here.fleet(4) as fleet:
        killing = asyncio.create_task(kill_now_and_then(here, fleet, every_s=0.4))
        outcome = await here.ask("spread", "s", count)
        killing.cancel()
        await eventually(here.is_quiet, within_s=WITHIN_S)

        assert outcome.status is Status.DONE, outcome.failure
        assert msgspec.json.decode(outcome.value) == [number * number for number in range(count)]
        assert here.history.read(What.FAULT)
        assert set(here.stored.values()) == {1}
        assert len(here.stored) <= count + 1  # an echo is missed while the client is away; none comes twice


POINTS = [f"{when} {step}" for step in STEPS for when in ("before", "inside", "after")]
UNDO_POINTS = [f"{when} undo {step}" for step in STEPS for when in ("before", "inside")]


@pytest.mark.parametrize("fails", [False, True], ids=["ends well", "fails"])
async def test_a_saga_killed_at_each_point_in_turn_is_wholly_done_or_wholly_undone(tmp_path: Path, fails: bool) -> None:
    points = [*POINTS, *UNDO_POINTS] if fails else POINTS
    async with stage(tmp_path) as here, here.fleet(3):
        async with asyncio.TaskGroup() as fibers:
            asked = {
                point: fibers.create_task(here.ask("trip", point.replace(" ", "-"), Trip(point, fails)))
                for point in points
            }
        outcomes = {point: fiber.result() for point, fiber in asked.items()}

        died = {entry.detail for entry in here.history.read(What.FAULT)}
        assert died == {f"dies {point}" for point in points}
        for point, outcome in outcomes.items():
            told = [e.detail for e in here.history.read(What.ANSWERED) if e.task == f"trip/{point.replace(' ', '-')}"]
            done = [f"do {step}" for step in STEPS]
            undone = [f"undo {step}" for step in reversed(STEPS)]
            assert outcome.status is (Status.FAILED if fails else Status.DONE), (point, outcome.failure)
            assert told == (done + undone if fails else done), point
        assert ran_after_their_record(here.history) == []


def ran_after_their_record(history: History) -> list[str]:
    """Steps that ran once more although an earlier run had seen their record."""
    recorded: set[tuple[str, str]] = set()
    again: list[str] = []
    for entry in history.read(What.RECORDED, What.RAN):
        if entry.what is What.RECORDED:
            name = entry.detail.removeprefix("~~undo-").partition("-")[0]
            recorded.add((entry.task, f"undo {name}" if entry.detail.startswith("~~undo-") else f"do {name}"))
        elif (entry.task, entry.detail) in recorded:
            again.append(f"{entry.task} {entry.detail}")
    return again


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_saga_that_is_ended_from_outside_while_peers_are_killed_is_wholly_undone(
    tmp_path: Path, how: str
) -> None:
    async with stage(tmp_path) as here, here.fleet(2) as fleet:
        killing = asyncio.create_task(kill_now_and_then(here, fleet, every_s=0.8))
        keys = [f"trip-{number}" for number in range(6)]
        handles = [
            await here.client.submit("trip", Trip(waits=True), key=key, deadline_s=4.0 if how == "expired" else None)
            for key in keys
        ]
        if how == "cancelled":
            # Some are parked by then, some run, some were just killed.
            await eventually(lambda: _done_steps(here) >= len(keys) * len(STEPS) // 2, within_s=WITHIN_S)
            for handle in handles:
                await handle.cancel()
        outcomes = [await handle.outcome(within_s=WITHIN_S) for handle in handles]
        killing.cancel()

        assert {outcome.status for outcome in outcomes} == {Status(how)}
        assert _done_steps(here) >= len(keys) * len(STEPS) // 2
        for key in keys:
            told = Counter(e.detail for e in here.history.read(What.ANSWERED) if e.task == f"trip/{key}")
            assert {name for name in STEPS if told[f"do {name}"]} <= {name for name in STEPS if told[f"undo {name}"]}


def _done_steps(here: Stage) -> int:
    return sum(entry.detail.startswith("do ") for entry in here.history.read(What.ANSWERED))


async def test_an_approval_answered_after_everything_was_restarted_completes(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        async with here.fleet(2):
            handles = [await here.client.submit("pay", euros, key=f"p{euros}") for euros in (100, 200)]
            await eventually(lambda: _parked(here, 2), within_s=WITHIN_S)
            await eventually(here.is_quiet, within_s=WITHIN_S)
        assert await here.is_quiet()
        await asyncio.to_thread(here.server.kill)
        await asyncio.to_thread(here.server.restart)
        async with here.fleet(2):
            for task in await unanswered(here.client.bus):
                answer = Answer(verdict=Verdict.APPROVED, by="ann")
                await here.client.signal("human", task.id, "answer", answer, by="ann")
            outcomes = [await handle.outcome(within_s=WITHIN_S) for handle in handles]

        assert [msgspec.json.decode(outcome.value) for outcome in outcomes] == [
            "approved 100 by ann",
            "approved 200 by ann",
        ]


async def _parked(here: Stage, count: int) -> bool:
    return len(await topology.queued(here.client.bus, here.client.bus.subjects.parks_of("human"))) == count


async def test_a_timer_that_was_due_while_every_peer_was_down_fires_when_one_is_back(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        async with here.fleet(1):
            handle = await here.client.submit("nap", time.time() + 3.0, key="n")
            await eventually(lambda: _napping(here, 1), within_s=WITHIN_S)
            await eventually(here.is_quiet, within_s=WITHIN_S)
        await asyncio.sleep(3.0)  # the passing of time is the fault
        async with here.fleet(1):
            outcome = await handle.outcome(within_s=WITHIN_S)

        assert outcome.status is Status.DONE
        assert [entry.detail for entry in here.history.read(What.RAN)] == ["ring"]


async def _napping(here: Stage, count: int) -> bool:
    return len(await topology.queued(here.client.bus, here.client.bus.subjects.parks_of("nap"))) == count


@pytest.mark.parametrize(
    ("count", "lead_s", "over_s"), [(500, 2.0, 4.0), pytest.param(10_000, 12.0, 10.0, marks=pytest.mark.slow)]
)
async def test_timers_fire_once_each_while_the_broker_is_killed(
    tmp_path: Path, count: int, lead_s: float, over_s: float
) -> None:
    async with stage(tmp_path, hot_wait_s=0.05) as here, here.fleet(3):
        first = time.time() + lead_s
        room = asyncio.Semaphore(256)

        async def nap(number: int) -> Outcome:
            at = first + over_s * number / count
            async with room:
                handle = await submit_surely(here.client, Identity("nap", f"n{number}"), at)
            outcome: Outcome = await handle.outcome(within_s=WITHIN_S)
            return outcome

        async def kill_broker() -> None:
            await asyncio.sleep(max(0.0, first - time.time()))  # the passing of time is the fault
            await restart_broker_now_and_then(here, every_s=over_s / 4)

        async with asyncio.TaskGroup() as fibers:
            killing = fibers.create_task(kill_broker())
            naps = [fibers.create_task(nap(number)) for number in range(count)]
            await asyncio.wait(naps)
            killing.cancel()
        await eventually(here.is_quiet, within_s=WITHIN_S)
        await eventually(lambda: _no_timers(here), within_s=WITHIN_S)

        rang = Counter(entry.task for entry in here.history.read(What.ANSWERED) if entry.detail == "ring")
        assert {nap.result().status for nap in naps} == {Status.DONE}
        assert len(rang) == count
        assert set(rang.values()) == {1}
        assert set(here.stored.values()) <= {1}
        assert here.history.read(What.FAULT)


async def _no_timers(here: Stage) -> bool:
    return await here.timers() == 0


@pytest.mark.parametrize("parents", [150, pytest.param(1_500, marks=pytest.mark.slow)])
async def test_no_parent_is_left_parked_whose_children_are_all_done(tmp_path: Path, parents: int) -> None:
    async with stage(tmp_path, hot_wait_s=0.02) as here, here.fleet(3) as fleet:
        killing = asyncio.create_task(kill_now_and_then(here, fleet, every_s=0.7))
        order = [[[here.dice.uniform(0, 0.08) for _ in range(6)] for _ in range(3)] for _ in range(parents)]
        async with asyncio.TaskGroup() as fibers:
            asked = [fibers.create_task(here.ask("burst", f"b{number}", one)) for number, one in enumerate(order)]
        killing.cancel()
        await eventually(here.is_quiet, within_s=WITHIN_S)

        assert {fiber.result().status for fiber in asked} == {Status.DONE}
        assert set(here.stored.values()) == {1}
