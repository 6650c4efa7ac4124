"""Agents of somebody who uses the chart; copied to where a pod's image would have them."""

import asyncio
from pathlib import Path

from mesh import Agent, Context

agent = Agent("triage", version="1.0", owner="tests")


@agent.handles("triage", concurrency=2)
async def triage(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "triaged"


@agent.handles("hold", concurrency=2)
async def hold(until: str) -> str:
    while not await asyncio.to_thread(Path(until).exists):  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(0.02)
    return "held"


@agent.handles("nap", concurrency=2)
async def nap(seconds: float, ctx: Context) -> str:
    await ctx.sleep(seconds)
    return "slept"


@agent.handles("ask", concurrency=2)
async def ask(question: str, ctx: Context) -> str:
    async with ctx.breaker("openai"):
        return f"{question} Because."
