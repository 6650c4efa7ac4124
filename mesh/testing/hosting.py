"""A peer inside the test's own process, and waiting without sleeping."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

from mesh.agent import Agent
from mesh.fibers import serving
from mesh.peer import Peer
from mesh.settings import Settings

T = TypeVar("T")

LOOK_EVERY_S = 0.02
READY_WITHIN_S = 30.0


@asynccontextmanager
async def hosting(*agents: Agent, settings: Settings, tracer_provider: Any = None) -> AsyncIterator[Peer]:
    """A ready peer that hosts the agents until left, and then drains."""
    peer = Peer(*(agent.hosted for agent in agents), settings=settings, tracer_provider=tracer_provider)
    async with serving() as fibers:
        running = fibers.create_task(peer.run())
        try:
            await eventually(lambda: peer.is_ready()[0], within_s=READY_WITHIN_S)
            yield peer
        finally:
            peer.stop()
            await running


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within_s: float = ..., every_s: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within_s: float = ..., every_s: float = ...) -> T: ...
async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, within_s: float = 20.0, every_s: float = LOOK_EVERY_S
) -> T:
    """The first true value of a condition, which is a plain or an async function and is asked again and again.

    Raises:
        AssertionError: it was not true within `within_s` seconds; the message has its last value.
    """
    give_up_at = time.monotonic() + within_s
    while True:
        asked = condition()
        value: T = await asked if inspect.isawaitable(asked) else asked
        if value:
            return value
        if time.monotonic() >= give_up_at:
            name = getattr(condition, "__qualname__", condition)
            raise AssertionError(f"{name} was still {value!r} after {within_s:g} s")
        await asyncio.sleep(every_s)
