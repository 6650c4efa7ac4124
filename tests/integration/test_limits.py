"""Limits that all peers share: three peers in one process, and what operators, deaths and restarts do to them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from mesh.agent import Agent
from mesh.bus.limits import in_use
from mesh.client import Mesh
from mesh.context import Context
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing.hosting import eventually, hosting

PEERS = 3


class Crowd:
    """How many are inside a limit at once, over all peers of this process."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.entered: list[int] = []
        self.may_leave = asyncio.Event()

    def enter(self, number: int) -> None:
        self.entered.append(number)
        self.inside += 1
        self.most = max(self.most, self.inside)

    def leave(self) -> None:
        self.inside -= 1


def caller(crowd: Crowd, **limits: Any) -> Agent:
    agent = Agent("caller")
    if limits:
        agent.limit("llm", **limits)

    @agent.handles("ask", concurrency=16, timeout_s=5.0)
    async def ask(number: int, ctx: Context) -> float:
        async with ctx.limit("llm", tokens=100) as grant:
            crowd.enter(number)
            await crowd.may_leave.wait()
            crowd.leave()
        return grant.waited_s

    return agent


@asynccontextmanager
async def peers(agent: Agent, settings: Settings, count: int = PEERS) -> AsyncIterator[list[Peer]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(hosting(agent, settings=settings)) for _ in range(count)]


def counted(peer: Peer, name: str, resource: str = "llm") -> float:
    return peer.metrics.registry.get_sample_value(f"mesh_limit_{name}", {"resource": resource}) or 0.0


async def test_no_more_seats_are_taken_than_the_whole_mesh_has(settings: Settings, mesh: Mesh) -> None:
    crowd = Crowd()
    async with peers(caller(crowd, concurrent=4), settings):
        handles = [await mesh.submit("ask", number) for number in range(30)]
        await eventually(lambda: crowd.inside == 4)
        _, seats, _ = await in_use(mesh.bus)
        assert sum(holding.seats for holding in seats["llm"].holdings.values()) == 4
        crowd.may_leave.set()
        for handle in handles:
            await handle.result(within_s=20)

    assert crowd.most == 4
    assert len(crowd.entered) == 30
    _, seats, _ = await in_use(mesh.bus)
    assert seats["llm"].holdings == {}
