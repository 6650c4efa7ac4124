"""The agent of the built-in workload. `noted_in` is where its steps go, once the peer's process has set it."""

import asyncio
import secrets

import msgspec
from tenacity.wait import wait_fixed

from mesh import Agent, Context, Permanent, Transient
from mesh.testing.history import Entry, History, What

AGAIN = wait_fixed(0.05)
ATTEMPTS = 1_000


class Job(msgspec.Struct, frozen=True):
    """A task that takes a while, may fail for a while, and sends others."""

    run_s: float = 0.0
    sends: int = 0
    failing: float = 0.0
    """The chance that an attempt fails."""


class Leaf(msgspec.Struct, frozen=True):
    """A task that another sent. `token` is the sending run's, so that a run that was not recorded shows."""

    token: str
    sends: int = 0


class Flow(msgspec.Struct, frozen=True):
    """A task that records a step, asks others at once, and waits for the clock."""

    children: int = 0
    sleep_s: float = 0.0
    run_s: float = 0.0


agent = Agent("chaos", version="1", calls=["chaos-leaf"])
noted_in: list[History] = []


@agent.handles("chaos-work", concurrency=16, attempts=ATTEMPTS, timeout_s=120, wait=AGAIN)
async def work(job: Job, ctx: Context) -> str:
    """Work for a while, maybe fail, and send on."""
    token = secrets.token_hex(8)
    await asyncio.sleep(job.run_s)
    if secrets.randbelow(1_000) < 1_000 * job.failing:
        raise Transient("not this time")
    for number in range(job.sends):
        ctx.send("chaos-leaf", Leaf(token, sends=number % 2))
    return token


@agent.handles("chaos-leaf", concurrency=16, attempts=ATTEMPTS, timeout_s=120, wait=AGAIN)
async def leaf(asked: Leaf, ctx: Context) -> str:
    """What others send, or ask for."""
    token = secrets.token_hex(8)
    for _ in range(asked.sends):
        ctx.send("chaos-leaf", Leaf(token))
    return token


@agent.handles("chaos-refuse", concurrency=4)
async def refuse(ctx: Context) -> str:
    """Fail for good, and send nothing."""
    ctx.send("chaos-leaf", Leaf("of a failure, which sends nothing"))
    raise Permanent("never")


@agent.handles("chaos-flow", concurrency=16, attempts=ATTEMPTS, timeout_s=120, wait=AGAIN)
async def flow(asked: Flow, ctx: Context) -> list[str]:
    """Record a step, ask children, wait for the clock, record another step."""

    async def drawn() -> str:
        await asyncio.sleep(asked.run_s)
        return secrets.token_hex(8)

    async def step(name: str) -> str:
        token: str = await ctx.step(name, drawn)
        for history in noted_in:
            value = msgspec.json.encode(token).decode()
            history.add(Entry(What.STEPPED, task=str(ctx.identity), status="done", value=value, detail=name))
        return token

    first = await step("first")
    answers = [await ctx.call(leaf, Leaf(f"{first} {number}")) for number in range(asked.children)]
    if asked.sleep_s:
        await ctx.sleep(asked.sleep_s)
    return [first, *answers, await step("last")]
