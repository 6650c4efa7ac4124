"""An LLM agent whose peer dies after each recorded call: `python -m tests.faults.llm_workload '<orders as JSON>'`."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
from pydantic_ai import Agent as LLMAgent
from tenacity.wait import wait_fixed

from contracts.subjects import Identity
from mesh import Agent, Context
from mesh.bus.connection import Bus
from mesh.ext.pydantic_ai import Durable, model_from_settings
from mesh.peer import Peer
from mesh.settings import LLMSettings, Settings
from mesh.testing import eventually
from mesh.testing.history import Entry, History, What
from mesh.workflow import durable as verbs

RECORDED = "model-call-recorded"


class Orders(msgspec.Struct, frozen=True):
    """What one peer process is told: its endpoint, and how many recorded calls a peer dies after."""

    history: str
    endpoint: str
    model: str
    deaths: int = 0


def agent(history: History, orders: Orders) -> Agent:
    """The agent; its runs, and those of its tool, go to the history."""
    me = str(os.getpid())
    llm: LLMAgent[None, str] = LLMAgent(
        model_from_settings(LLMSettings(base_url=orders.endpoint, model=orders.model)), name="thinker"
    )

    @llm.tool_plain
    async def look_up(topic: str) -> str:
        """Look something up."""
        history.add(Entry(What.RAN, task=topic, peer=me))
        return f"{topic} is known"

    durable = Durable(llm)
    thinker = Agent("thinker")

    @thinker.handles("think", attempts=100, timeout_s=300, wait=wait_fixed(0.05))
    async def think(question: str, ctx: Context) -> str:
        history.add(Entry(What.RAN, task=str(ctx.identity), peer=me, attempt=ctx.attempt))
        return (await durable.run(question, ctx)).output

    return thinker


def die_after_records(history: History, deaths: int) -> None:
    """Have this process end with SIGKILL once it has recorded a model's answer, so many times in all processes."""
    write_step = verbs.write_step

    async def write_or_die(bus: Bus, task: Identity, name: str, record: Any, *, ttl_s: float) -> Any:
        standing = await write_step(bus, task, name, record, ttl_s=ttl_s)
        if name.startswith("model-") and len(history.read(What.FAULT)) < deaths:
            history.add(Entry(What.FAULT, task=str(task), peer=str(os.getpid()), detail=RECORDED))
            os.kill(os.getpid(), signal.SIGKILL)
        return standing

    verbs.write_step = write_or_die  # type: ignore[assignment]  # the same, and then it may die


async def main(orders: Orders) -> None:
    with History(Path(orders.history)) as history:
        die_after_records(history, orders.deaths)
        peer = Peer(agent(history, orders).hosted, settings=Settings())

        async def tell_when_ready() -> None:
            await eventually(lambda: peer.is_ready()[0], within_s=300)
            history.add(Entry(What.READY, peer=str(os.getpid())))

        async with asyncio.TaskGroup() as fibers:
            told = fibers.create_task(tell_when_ready())
            await peer.run()
            told.cancel()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Orders)))
