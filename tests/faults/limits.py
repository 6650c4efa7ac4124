"""Processes that share a limit, and what the server's clock tells of their turns."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contracts.limit import Limit
from mesh.bus.connection import Bus
from mesh.bus.records import read_range
from mesh.settings import Settings

LIMIT = Limit(concurrent=1, requests_per_minute=600, burst_s=0.5)
PER_S = 10.0
BURST = 5


@asynccontextmanager
async def marks(bus: Bus) -> AsyncIterator[None]:
    """A stream that takes the marks of turns, until left."""
    name = f"{bus.settings.prefix}-marks"
    config = {"subjects": [f"{name}.>"], "allow_direct": True, "num_replicas": bus.settings.replicas}
    await bus.api(f"STREAM.CREATE.{name}", {"name": name, **config})
    try:
        yield
    finally:
        await bus.api(f"STREAM.DELETE.{name}")


async def mark(bus: Bus, word: str, pid: int) -> None:
    """Have the server note that a process is `in`, `out` or `dead`."""
    await bus.store(f"{bus.settings.prefix}-marks.{word}.{pid}", b"")


async def marked(bus: Bus) -> list[tuple[float, str, int]]:
    """Every mark by the server's time: when, which word, whose."""
    name = f"{bus.settings.prefix}-marks"
    found = []
    async for stored in read_range(bus, name, f"{name}.>"):
        _, word, pid = stored.subject.rsplit(".", 2)
        found.append((stored.stored_at, word, int(pid)))
    return found


async def began(bus: Bus) -> list[float]:
    """When turns came, by the server's time."""
    return [at for at, word, _ in await marked(bus) if word == "in"]


def fullest(times: list[float], per_s: float) -> float:
    """The most that a bucket earning `per_s` must have held for calls at these times."""
    level, most, before = 0.0, 0.0, times[0]
    for at in times:
        level = max(0.0, level - (at - before) * per_s) + 1
        most, before = max(most, level), at
    return most


def most_at_once(found: list[tuple[float, str, int]]) -> int:
    """How many live processes were inside at once."""
    inside: set[int] = set()
    most = 0
    for _, word, pid in found:
        if word == "in":
            inside.add(pid)
            most = max(most, len(inside))
        else:
            inside.discard(pid)
    return most


async def start_user(mode: str, settings: Settings, *, clock_off_s: float = 0) -> asyncio.subprocess.Process:
    """A process that uses the limit; see `tests.faults.limit_user`."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.limit_user", mode, str(clock_off_s)),
        env={
            **os.environ,
            "MESH_NATS_URL": settings.nats_url or "",
            "MESH_PREFIX": settings.prefix,
            "MESH_REPLICAS": str(settings.replicas),
            "MESH_LIMIT_LEASE_S": str(settings.limit_lease_s),
        },
        stdout=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def user(mode: str, settings: Settings, *, clock_off_s: float = 0) -> AsyncIterator[asyncio.subprocess.Process]:
    """Such a process until left."""
    process = await start_user(mode, settings, clock_off_s=clock_off_s)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def turn(process: asyncio.subprocess.Process) -> None:
    """Return when the process has had a turn that was not told before."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"turn\n"
