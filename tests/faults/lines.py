"""Peers whose tasks stand in lines: `python -m tests.faults.lines '<orders as JSON>'` is one of them.

What a handler notes of its start is the time of day, which the server's times of storage can be held against.
"""

import asyncio
import os
import random
import sys
import time

import msgspec
from tenacity.wait import wait_fixed

from mesh import Agent, BlockingContext, Context, Permanent, Transient
from mesh.testing.history import Entry, History, What
from tests.faults.workload import Orders, serve


class Turn(msgspec.Struct, frozen=True):
    """A task in a line: how long it runs, and what it does besides."""

    run_s: float = 0.0
    failing: float = 0.0
    """The chance that an attempt fails."""
    is_doomed: bool = False
    nap_s: float = 0.0
    """How long it waits for the clock, parked if that is long."""


def clerks(history: History, dice: random.Random) -> Agent:
    """Handlers of both kinds."""
    agent = Agent("clerks", version="1")

    def began(ctx: Context | BlockingContext) -> None:
        told = Entry(
            What.RAN, task=str(ctx.identity), peer=str(os.getpid()), attempt=ctx.attempt, value=repr(time.time())
        )
        history.add(told)

    def end(turn: Turn) -> None:
        if dice.random() < turn.failing:
            raise Transient("not this time")
        if turn.is_doomed:
            raise Permanent("never")

    @agent.handles("turn", concurrency=8, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def turn(asked: Turn, ctx: Context) -> str:
        began(ctx)
        await asyncio.sleep(asked.run_s)
        if asked.nap_s:
            await ctx.sleep(asked.nap_s)
        end(asked)
        return ctx.id

    @agent.handles("plain-turn", concurrency=8, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    def plain_turn(asked: Turn, ctx: BlockingContext) -> str:
        began(ctx)
        time.sleep(asked.run_s)
        end(asked)
        return ctx.id

    return agent


if __name__ == "__main__":
    asyncio.run(
        serve(
            msgspec.json.decode(sys.argv[1], type=Orders),
            lambda history, dice, _: [clerks(history, dice).hosted],
        )
    )
