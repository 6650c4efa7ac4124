"""Peers whose handlers decide: `python -m tests.faults.deciders '<orders as JSON>'` is one of them."""

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tenacity.wait import wait_fixed

from mesh import Agent, Context, Permanent
from mesh.peer import Hosted
from mesh.testing.history import Entry, History, What
from tests.faults.workload import Orders, serve


class Case(msgspec.Struct, frozen=True):
    """Something to decide about: how often, with how long a wait in between, and how it ends."""

    choices: int = 1
    waits_s: float = 0.0
    is_lost: bool = False


def agent(history: History, dice: random.Random, _: Path) -> Agent:
    """The agent. What it decides is the same in every run; how long that takes is not."""
    judges = Agent("judges", version="1")

    @judges.handles("judge", concurrency=16, attempts=1_000, timeout_s=300, wait=wait_fixed(0.05))
    async def judge(case: Case, ctx: Context) -> int:
        history.add(Entry(What.RAN, task=str(ctx.identity), peer=str(os.getpid()), attempt=ctx.attempt))
        for number in range(case.choices):
            # Some of them are alike, and each is a decision of its own.
            ctx.decide(f"choice-{number % 2}", reason="as it is written", confidence=0.5, inputs={"of": case.choices})
            await asyncio.sleep(dice.choice((0.0, 0.0, 0.01)))
        if case.waits_s:
            await ctx.sleep(case.waits_s)
            ctx.decide("after all")
        if case.is_lost:
            raise Permanent("lost")
        return case.choices

    return judges


def hosted(history: History, dice: random.Random, release: Path) -> Sequence[Hosted]:
    return [agent(history, dice, release).hosted]


if __name__ == "__main__":
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=Orders), hosted))
