"""An agent that records every run: `python -m tests.faults.workload '<orders as JSON>'` is one peer of it.

The mesh's own settings come from the environment. What a run wants sent carries a token that only this run
has. So the tasks of a run whose outcome was not the recorded one can be told apart.
"""

import asyncio
import os
import random
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from tenacity.wait import wait_fixed

from mesh import Agent, Context, Permanent, Transient
from mesh.peer import Hosted, Peer
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.history import Entry, History, What
from mesh.testing.kill_points import KillPoints, Point

ATTEMPTS_OF_POISON = 3


class Orders(msgspec.Struct, frozen=True):
    """What one peer process is told.

    `points` are chances to die, by name, each taken at most `times_max` times, and `pauses` the longest times to
    dawdle there; where `release` exists, `hold` tasks go on.
    """

    history: str
    seed: int
    release: str
    points: dict[Point, float] = {}
    times_max: int | None = None
    pauses: dict[Point, float] = {}


class Job(msgspec.Struct, frozen=True):
    """A task that takes a while, may fail for a while, and sends others."""

    run_s: float = 0.0
    sends: int = 0
    failing: float = 0.0
    """The chance that an attempt fails."""


class Leaf(msgspec.Struct, frozen=True):
    """A task that another sent. `token` is the sending run's."""

    token: str
    sends: int = 0


class Block(msgspec.Struct, frozen=True):
    """A task that stops the event loop for at least `for_s` seconds."""

    for_s: float


class Bulk(msgspec.Struct, frozen=True):
    """A task with a large payload that comes to a value of `size`, and sends others like it."""

    padding: str
    size: int
    sends: int = 0


def agent(history: History, dice: random.Random, release: Path) -> Agent:
    """The agent; its runs go to the history."""
    workload = Agent("workload", version="1")

    def ran(ctx: Context) -> None:
        history.add(Entry(What.RAN, task=str(ctx.identity), peer=str(os.getpid()), attempt=ctx.attempt))

    @workload.handles("work", concurrency=16, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def work(job: Job, ctx: Context) -> str:
        ran(ctx)
        token = secrets.token_hex(8)
        await asyncio.sleep(job.run_s)
        if dice.random() < job.failing:
            raise Transient("not this time")
        for number in range(job.sends):
            ctx.send("leaf", Leaf(token, sends=number % 2))
        return token

    @workload.handles("leaf", concurrency=16, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def leaf(asked: Leaf, ctx: Context) -> str:
        ran(ctx)
        token = secrets.token_hex(8)
        for _ in range(asked.sends):
            ctx.send("leaf", Leaf(token))
        return token

    @workload.handles("bulk", concurrency=8, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def bulk(asked: Bulk, ctx: Context) -> str:
        ran(ctx)
        for number in range(asked.sends):
            ctx.send("bulk", Bulk(asked.padding, asked.size), name=f"n{number}")
        return asked.padding[0] * asked.size

    @workload.handles("spoil", concurrency=8)
    async def spoil(asked: Bulk, ctx: Context) -> str:
        ran(ctx)
        raise Permanent("never")

    @workload.handles("hold", concurrency=4, attempts=3, timeout_s=300, wait=wait_fixed(0.05))
    async def hold(job: Job, ctx: Context) -> str:
        ran(ctx)
        await eventually(release.exists, within_s=300)
        token = secrets.token_hex(8)
        for _ in range(job.sends):
            ctx.send("leaf", Leaf(token))
        return token

    @workload.handles("poison", concurrency=1, attempts=ATTEMPTS_OF_POISON, wait=wait_fixed(0.05))
    async def poison(ctx: Context) -> str:
        ran(ctx)
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    @workload.handles("refuse", concurrency=4)
    async def refuse(job: Job, ctx: Context) -> str:
        ran(ctx)
        ctx.send("leaf", Leaf("of a failure, which sends nothing"))
        raise Permanent("never")

    @workload.handles("block-loop", concurrency=2, attempts=3, timeout_s=300)
    async def block_loop(asked: Block, ctx: Context) -> str:
        ran(ctx)
        time.sleep(asked.for_s)  # noqa: ASYNC251  # a handler that its author got wrong
        return "slept"

    @workload.handles("block-interpreter", concurrency=2, attempts=3, timeout_s=300)
    async def block_interpreter(asked: Block, ctx: Context) -> str:
        ran(ctx)
        # Each letter doubles the time of one match, in which no other thread gets the interpreter lock.
        for letters in range(16, 60):
            began = time.monotonic()
            re.match(r"(a+)+$", "a" * letters + "b")
            if time.monotonic() - began > asked.for_s:
                break
        return "matched"

    return workload


async def serve(orders: Orders, hosted: Callable[[History, random.Random, Path], Sequence[Hosted]]) -> None:
    """Be a peer with its points to die at, until told to leave."""
    dice = random.Random(f"{orders.seed} {os.getpid()}")
    me = str(os.getpid())
    with History(Path(orders.history)) as history:
        KillPoints(orders.points, dice, history, me, orders.times_max, orders.pauses).install()
        peer = Peer(*hosted(history, dice, Path(orders.release)), settings=Settings())

        async def tell_when_ready() -> None:
            await eventually(lambda: peer.is_ready()[0], within_s=300)
            history.add(Entry(What.READY, peer=me))

        async with asyncio.TaskGroup() as fibers:
            told = fibers.create_task(tell_when_ready())
            await peer.run()
            told.cancel()


def main() -> None:
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    asyncio.run(serve(orders, lambda *given: [agent(*given).hosted]))


if __name__ == "__main__":
    main()
