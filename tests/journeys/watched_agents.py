"""Agents of three teams that do everything a dashboard shows: answer, doubt, fail, try again, wait and cost money."""

import asyncio

from tenacity.wait import wait_fixed

from mesh import Agent, Context, Handoff, Ladder, Permanent, Throttled, Transient

WITHOUT_END_S = 600.0

desk = Agent("desk", version="1", owner="team-desk")
desk.limit("model", concurrent=1)

errands = Agent("errands", version="1", owner="team-errands")
errands.breaker("outside", calls_min=2, open_s=0.5)

alone = Agent("alone", version="1", owner="team-alone")


@desk.handles("triage", ladder=Ladder(0.7, "expert"))
async def triage(number: int, ctx: Context) -> str:
    """Sure of most tickets; its prompt changes with the twentieth, under the same version."""
    confidence = 0.4 if number % 3 == 0 else 0.9
    prompt = "prompt-a" if number < 20 else "prompt-b"
    ctx.explain(confidence=confidence, model="small", model_digest="small-1", prompt_digest=prompt)
    ctx.decide("refund" if number % 2 else "repair", reason="by the number", confidence=confidence)
    ctx.spent(tokens_in=900, tokens_out=120, usd=0.04)
    return f"ticket {number}"


@desk.handles("expert")
async def expert(number: int, ctx: Context) -> str:
    ctx.explain(confidence=0.95, model="large", model_digest="large-1", prompt_digest="prompt-x")
    ctx.spent(tokens_in=4_000, tokens_out=800, usd=0.2)
    return f"ticket {number}, looked at twice"


@desk.handles("draft", concurrency=8, wait=wait_fixed(0.3))
async def draft(number: int, ctx: Context) -> str:
    """More at once than the provider allows."""
    async with ctx.limit("model", within_s=0.1):
        await asyncio.sleep(0.3)
    return f"draft {number}"


@desk.handles("case")
async def case(number: int, ctx: Context) -> str:
    """A workflow: a child, a step, a wait that parks, and a person for every other one."""
    found = await ctx.call(lookup, number)
    await ctx.step("note", lambda: number)
    await ctx.sleep(0.6)
    if number % 2:
        return (await ctx.approve(found, reason="an odd case")).value
    return found


@desk.handles("front")
async def front(number: int) -> Handoff:
    return Handoff("lookup", number)


@desk.handles("closed", queue_max=10)
async def closed(number: int) -> None:
    """An operator paused it."""


@errands.handles("lookup")
async def lookup(number: int) -> str:
    await asyncio.sleep(0.02)
    return f"found {number}"


@errands.handles("flaky", attempts=4, wait=wait_fixed(0.2))
async def flaky(number: int, ctx: Context) -> int:
    if ctx.attempt < 4:
        raise Transient("not this time")
    return number


@errands.handles("quota", attempts=2)
async def quota(number: int, ctx: Context) -> int:
    if ctx.attempt == 1 and number % 2:
        raise Throttled("not now", after_s=0.3)
    return number


@errands.handles("broken")
async def broken(number: int) -> None:
    raise Permanent("it cannot be done")


@errands.handles("outside", attempts=50, wait=wait_fixed(0.1))
async def outside(number: int, ctx: Context) -> None:
    """What it calls is down."""
    async with ctx.breaker("outside"):
        raise ConnectionError("nobody there")


@errands.handles("late")
async def late(number: int) -> None:
    await asyncio.sleep(0.5)


@errands.handles("hangs", concurrency=2, timeout_s=WITHOUT_END_S)
async def hangs(number: int) -> None:
    await asyncio.sleep(WITHOUT_END_S)


@alone.handles("retired")
async def retired(number: int) -> int:
    return number
