"""Peers whose handlers wait for others: `python -m tests.faults.workflows '<orders as JSON>'` is one of them.

What a handler does outside is an entry of the history with its idempotency key. A far side that honours keys takes
the first entry of a key for the effect, and the others for its repetition.
"""

import asyncio
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from tenacity.wait import wait_fixed

from contracts.subjects import Identity
from mesh import Agent, Context, Permanent, Transient
from mesh.bus.connection import Bus
from mesh.human import agent as people
from mesh.peer import Hosted
from mesh.testing import eventually
from mesh.testing.history import UNDO, Entry, History, What, text
from mesh.workflow import durable
from tests.faults.workload import Orders, serve

STEPS = ("flight", "hotel", "car", "dinner", "opera")
STOP = "car"
"""The step after which a trip stops that is to be ended from outside."""
ATTEMPTS_OF_FRAIL = 2
ALWAYS = "always "
"""How a place begins at which a trip's peer dies in every run, and not only once."""

Ending = Literal["done", "failed", "signal", "sleep", "held"]


class Trip(msgspec.Struct, frozen=True):
    """A saga: how it ends, and where its peer dies."""

    ends: Ending = "done"
    dies: str = ""


class Pay(msgspec.Struct, frozen=True):
    """Something for a person to approve."""

    euros: int
    within_s: float | None = None
    at_deadline: str = "reject"


class Weave(msgspec.Struct, frozen=True):
    """Branches that interleave otherwise in each of so many runs."""

    branches: int
    replays: int


class Burst(msgspec.Struct, frozen=True):
    """Children that take so many seconds, one round after another."""

    rounds: tuple[tuple[float, ...], ...]


class Leaf(msgspec.Struct, frozen=True):
    """One of many that are asked for by their own capability; `width` is how many of them, 0 for a leaf."""

    width: int
    number: int = 0


class Fates:
    """Where trips die, once each in all processes unless it is always; and the outside they act on."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._dies: dict[str, str] = {}

    def begin(self, task: str, dies: str) -> None:
        self._dies[task] = dies

    def effect(self, task: str, what: str, key: str) -> None:
        self._history.add(Entry(What.EFFECT, task=task, peer=str(os.getpid()), detail=what, value=key))

    def reach(self, task: str, place: str) -> None:
        """The end of this process, if this is where the task's peer is to die."""
        dies = self._dies.get(task, "")
        if dies.removeprefix(ALWAYS) != place:
            return
        has_died = any(entry.task == task for entry in self._history.read(What.FAULT))
        if dies.startswith(ALWAYS) or not has_died:
            self._history.add(Entry(What.FAULT, task=task, peer=str(os.getpid()), detail=place))
            os.kill(os.getpid(), signal.SIGKILL)

    def tell_records(self) -> None:
        """Have the history hear of each step that this process finds or makes on record, as it is told."""
        write_step = durable.write_step

        async def write_and_tell(bus: Bus, task: Identity, name: str, record: Any, **more: Any) -> Any:
            stands = await write_step(bus, task, name, record, **more)
            if not name.startswith("~~") or name.startswith(UNDO):
                status = "failed" if stands.failure is not None else "done"
                told = Entry(
                    What.STEPPED, task=str(task), peer=str(os.getpid()), detail=name, status=status,
                    value=text(stands.value),
                )  # fmt: skip
                self._history.add(told)
                self.reach(str(task), f"after {step_of(name)}")
            return stands

        durable.write_step = write_and_tell


def step_of(record: str) -> str:
    """The effect that a recorded step stands for."""
    if record.startswith(UNDO):
        return f"undo {record.removeprefix(UNDO).partition('-')[0]}"
    return record


def trips(history: History, release: Path) -> Agent:
    """Sagas of five steps."""
    fates = Fates(history)
    fates.tell_records()
    travel = Agent("travel", version="1")

    async def book(trip: Trip, ctx: Context) -> str:
        task = str(ctx.identity)
        fates.begin(task, trip.dies)

        async def do(name: str, idempotency_key: str) -> str:
            fates.effect(task, name, idempotency_key)
            fates.reach(task, f"inside {name}")
            if name == STOP and trip.ends == "held":
                await eventually(release.exists, within_s=300)
            return secrets.token_hex(4)

        async def undo(name: str, idempotency_key: str) -> None:
            fates.reach(task, f"before undo {name}")
            fates.effect(task, f"undo {name}", idempotency_key)
            fates.reach(task, f"inside undo {name}")

        for name in STEPS:
            await ctx.compensate(undo, name, name=name)
            fates.reach(task, f"before {name}")
            await ctx.step(name, do, name)
            fates.reach(task, f"after {name}")
            if name == STOP and trip.ends == "signal":
                await ctx.signal("go")
            if name == STOP and trip.ends == "sleep":
                await ctx.sleep(600)
        fates.reach(task, "last")
        if trip.ends == "failed":
            raise Permanent("no seats after all")
        return "booked"

    def ran(ctx: Context) -> None:
        history.add(Entry(What.RAN, task=str(ctx.identity), peer=str(os.getpid()), attempt=ctx.attempt))

    @travel.handles("trip", concurrency=16, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def trip(order: Trip, ctx: Context) -> str:
        ran(ctx)
        return await book(order, ctx)

    @travel.handles("frail-trip", concurrency=4, attempts=ATTEMPTS_OF_FRAIL, timeout_s=300, wait=wait_fixed(0.05))
    async def frail_trip(order: Trip, ctx: Context) -> str:
        ran(ctx)
        return await book(order, ctx)

    @travel.handles("twin-trip", concurrency=4, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def twin_trip(ctx: Context) -> str:
        """Two branches at once: one is held in its only step, the other does all of its own."""
        ran(ctx)
        task = str(ctx.identity)

        async def do(name: str, idempotency_key: str) -> None:
            fates.effect(task, name, idempotency_key)
            if name == "ship":
                await eventually(release.exists, within_s=300)

        async def undo(name: str, idempotency_key: str) -> None:
            fates.effect(task, f"undo {name}", idempotency_key)

        async def branch(*names: str) -> None:
            for name in names:
                await ctx.compensate(undo, name, name=name)
                await ctx.step(name, do, name)

        await ctx.gather(branch("ship"), branch(*STEPS))
        return "booked"

    return travel


def askers(history: History, dice: random.Random) -> Agent:
    """Handlers that ask others, or wait for signals, people and the clock."""
    flows = Agent("flows", version="1")

    def ran(ctx: Context) -> None:
        history.add(Entry(What.RAN, task=str(ctx.identity), peer=str(os.getpid()), attempt=ctx.attempt))

    def handles(capability: str, *, concurrency: int = 16) -> Any:
        return flows.handles(capability, concurrency=concurrency, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))

    @handles("square", concurrency=4)
    async def square(number: int, ctx: Context) -> int:
        ran(ctx)
        await asyncio.sleep(dice.choice((0.0, 0.02, 0.1)))
        return number * number

    @handles("spread")
    async def spread(count: int, ctx: Context) -> list[int]:
        ran(ctx)
        found: list[int] = await ctx.map(square, range(count))
        return found

    @handles("tick", concurrency=64)
    async def tick(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @handles("burst", concurrency=64)
    async def burst(order: Burst, ctx: Context) -> int:
        ran(ctx)
        done = 0
        for seconds in order.rounds:
            done += len(await ctx.gather(*(ctx.call(tick, one) for one in seconds)))
        return done

    @handles("listen", concurrency=64)
    async def listen(count: int, ctx: Context) -> list[int]:
        ran(ctx)
        return [await ctx.signal(f"signal-{number}", returns=int) for number in range(count)]

    @handles("weave")
    async def weave(order: Weave, ctx: Context) -> int:
        ran(ctx)

        def is_over() -> bool:
            return ctx.attempt >= order.replays

        async def branch(number: int) -> int:
            await asyncio.sleep(dice.uniform(0, 0.01))
            first: int = await ctx.call(square, number)
            await asyncio.sleep(dice.uniform(0, 0.01))
            then, same = await ctx.gather(ctx.call(square, 100 + first), ctx.call(square, 7))
            await ctx.step(f"token-{number}", secrets.token_hex, 4)
            if not is_over() and dice.random() < 0.1:
                raise Transient("once more, from the middle", after_s=0.0)
            return first + int(then) + int(same)

        async with asyncio.TaskGroup() as fibers:
            branches = [fibers.create_task(branch(number)) for number in range(order.branches)]
        if not is_over():
            raise Transient("once more", after_s=0.0)
        return sum(one.result() for one in branches)

    @handles("down", concurrency=1)
    async def down(depth: int, ctx: Context) -> int:
        return 0 if depth == 0 else 1 + await ctx.call("down", depth - 1, returns=int)

    @handles("wide", concurrency=1)
    async def wide(leaf: Leaf, ctx: Context) -> int:
        if not leaf.width:
            return 1
        return sum(await ctx.map("wide", [Leaf(0, number) for number in range(leaf.width)], returns=int))

    @handles("pay")
    async def pay(asked: Pay, ctx: Context) -> str:
        ran(ctx)
        decision = await ctx.approve(asked.euros, within_s=asked.within_s, at_deadline=asked.at_deadline)
        return f"{decision.verdict} {decision.value} by {decision.by or 'nobody'}"

    @handles("nap", concurrency=64)
    async def nap(at: float, ctx: Context) -> float:
        await ctx.until(at)

        def ring(idempotency_key: str) -> float:
            entry = Entry(
                What.EFFECT, task=str(ctx.identity), peer=str(os.getpid()), detail="ring", value=idempotency_key
            )
            history.add(entry)
            return time.time() - at

        late_s: float = await ctx.step("ring", ring)
        return late_s

    return flows


def hosted(history: History, dice: random.Random, release: Path) -> Sequence[Hosted]:
    return [trips(history, release).hosted, askers(history, dice).hosted, people.hosted]


if __name__ == "__main__":
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Orders), hosted))
