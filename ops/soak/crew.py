"""Agents of the fleet that `ops.soak.top` watches: each peer hosts a handful of twenty."""

import asyncio
import os

from mesh import Agent, Context

CAPABILITIES = 20
AGENTS_EACH = 5
TEAMS = ("care", "sales", "stock", "billing")


def _agent(number: int) -> Agent:
    agent = Agent(
        f"agent-{number}",
        version="1.0",
        owner=TEAMS[number % len(TEAMS)],
        calls=[f"work-{(number + 1) % CAPABILITIES}"],
    )

    @agent.handles(f"work-{number}", concurrency=2)
    async def work(amount: int, ctx: Context) -> int:
        """Work a little; every fourth task asks another one."""
        if amount % 4 == 0:
            return int(await ctx.call(f"work-{(number + 1) % CAPABILITIES}", amount + 1))
        await asyncio.sleep(0.01)
        return amount

    return agent


PLACE = int(os.environ.get("SOAK_PLACE", "0"))
# Agents are found by the names they have in a module.
first, second, third, fourth, fifth = (
    _agent((PLACE * AGENTS_EACH + step) % CAPABILITIES) for step in range(AGENTS_EACH)
)
