"""Peers of the fault tests about waiting: `python -m tests.faults.waiting_workload '<orders as JSON>'`.

What the handlers do outside is a file per idempotency key, made once: a far side that honours the key. A saga dies
where its payload says, once in all processes.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
from tenacity.wait import wait_fixed

from contracts.subjects import Identity
from mesh import Agent, Context, Permanent
from mesh.bus.connection import Bus
from mesh.human import agent as people
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.history import Entry, History, What
from mesh.workflow import durable as verbs

STEPS = ("flight", "hotel", "car", "dinner", "opera")
RECORDED = "recorded"


class Orders(msgspec.Struct, frozen=True):
    """What one peer process is told: its history, and the folder that is the outside world."""

    history: str
    world: str


class Trip(msgspec.Struct, frozen=True):
    """A saga: where its process dies once, whether it fails in the end, and whether it waits to be told to go."""

    dies_at: str = ""
    fails: bool = False
    waits: bool = False


class World:
    """The outside, and the places where this process dies."""

    def __init__(self, folder: Path, history: History) -> None:
        self._folder = folder
        self._history = history

    def _make(self, name: str) -> bool:
        try:
            os.close(os.open(self._folder / name.replace("/", "|"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def effect(self, task: str, what: str, key: str) -> None:
        """Something that happens outside, once a key."""
        self._history.add(Entry(What.RAN, task=task, peer=str(os.getpid()), detail=what))
        if self._make(f"effect {key}"):
            self._history.add(Entry(What.ANSWERED, task=task, detail=what))

    def may_die(self, task: str, point: str, dies_at: str) -> None:
        """The end of this process, if this is where the task's is to die and none has yet."""
        if point == dies_at and self._make(f"died {task}"):
            self._history.add(Entry(What.FAULT, task=task, peer=str(os.getpid()), detail=f"dies {point}"))
            os.kill(os.getpid(), signal.SIGKILL)


def agent(world: World, history: History) -> Agent:
    """Handlers that wait in every way."""
    waiting = Agent("waiting")

    @waiting.handles("trip", attempts=1_000, concurrency=8, wait=wait_fixed(0.05))
    async def trip(order: Trip, ctx: Context) -> str:
        task = str(ctx.identity)

        async def do(name: str, idempotency_key: str) -> str:
            world.effect(task, f"do {name}", idempotency_key)
            world.may_die(task, f"inside {name}", order.dies_at)
            return name

        async def undo(name: str, idempotency_key: str) -> None:
            world.may_die(task, f"before undo {name}", order.dies_at)
            world.effect(task, f"undo {name}", idempotency_key)
            world.may_die(task, f"inside undo {name}", order.dies_at)

        for name in STEPS:
            await ctx.compensate(undo, name, name=name)
            world.may_die(task, f"before {name}", order.dies_at)
            await ctx.step(name, do, name)
            world.may_die(task, f"after {name}", order.dies_at)
        if order.waits:
            await ctx.signal("go")
        if order.fails:
            raise Permanent("no seats after all")
        return "booked"

    @waiting.handles("item", concurrency=4, attempts=1_000, wait=wait_fixed(0.05))
    async def item(number: int) -> int:
        await asyncio.sleep(0.12)
        return number * number

    @waiting.handles("spread", attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def spread(count: int, ctx: Context) -> list[int]:
        return await ctx.map(item, range(count))

    @waiting.handles("pay", attempts=1_000)
    async def pay(euros: int, ctx: Context) -> str:
        decision = await ctx.approve({"euros": euros}, reason="large", within_s=600)
        return f"{decision.verdict} {decision.value['euros']} by {decision.by}"

    @waiting.handles("nap", concurrency=64, attempts=1_000)
    async def nap(until: float, ctx: Context) -> str:
        await ctx.until(until)

        def ring(idempotency_key: str) -> str:
            world.effect(str(ctx.identity), "ring", idempotency_key)
            return "rang"

        return await ctx.step("ring", ring)

    @waiting.handles("burst", concurrency=16, attempts=1_000, wait=wait_fixed(0.05))
    async def burst(rounds: list[list[float]], ctx: Context) -> int:
        done = 0
        for order in rounds:
            done += len(await ctx.gather(*(ctx.call("tick", seconds, returns=float) for seconds in order)))
        return done

    @waiting.handles("tick", concurrency=32, attempts=1_000, wait=wait_fixed(0.05))
    async def tick(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    return waiting


def tell_records(history: History) -> None:
    """Have the history hear of each step that this process sees recorded."""
    write_step = verbs.write_step

    async def write_and_tell(bus: Bus, task: Identity, name: str, record: Any, **more: Any) -> Any:
        standing = await write_step(bus, task, name, record, **more)
        history.add(Entry(What.RECORDED, task=str(task), detail=name))
        return standing

    verbs.write_step = write_and_tell  # type: ignore[assignment]  # the same, and then it is told


async def main(orders: Orders) -> None:
    with History(Path(orders.history)) as history:
        tell_records(history)
        world = World(Path(orders.world), history)
        peer = Peer(agent(world, history).hosted, people.hosted, settings=Settings())

        async def tell_when_ready() -> None:
            await eventually(lambda: peer.is_ready()[0], within_s=300)
            history.add(Entry(What.READY, peer=str(os.getpid())))

        async with asyncio.TaskGroup() as fibers:
            told = fibers.create_task(tell_when_ready())
            await peer.run()
            told.cancel()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Orders)))
