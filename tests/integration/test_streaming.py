"""Streamed parts: in order, with what was missed and what starts over told."""

import asyncio
from pathlib import Path

from mesh import Agent, BlockingContext, Context, Mesh, Transient
from mesh.local.server import local_server
from mesh.settings import Settings
from mesh.streaming import Missed, Part, Restarted
from mesh.testing import eventually, hosting
from mesh.testing.fixtures import fresh_settings


async def test_parts_arrive_in_order_and_end_with_the_result(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("writer")

    @agent.handles("write")
    async def write(words: list[str], ctx: Context) -> str:
        for word in words:
            await ctx.emit(word)
        return " ".join(words)

    async with hosting(agent, settings=settings):
        words = [f"word{number}" for number in range(500)]
        handle = await mesh.submit(write, words)
        parts = [part async for part in handle.stream()]

        assert parts == [Part(word, 1, number) for number, word in enumerate(words)]
        assert await handle.result() == " ".join(words)


async def test_another_attempt_starts_over_with_a_marker(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("writer")
    listening = asyncio.Event()

    @agent.handles("write")
    async def write(_: None, ctx: Context) -> str:
        await listening.wait()
        await ctx.emit(f"a{ctx.attempt}")
        await ctx.emit(f"b{ctx.attempt}")
        if ctx.attempt == 1:
            raise Transient("again", after_s=0.05)
        return "done"

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(write, None, key="k")
        events = []
        stream = handle.stream()
        first = asyncio.ensure_future(anext(stream))
        await eventually(lambda: mesh.bus.subjects.part(handle.task) in subscribed(mesh))
        listening.set()
        events.append(await first)
        events += [event async for event in stream]

    assert events == [Part("a1", 1, 0), Part("b1", 1, 1), Restarted(2), Part("a2", 2, 0), Part("b2", 2, 1)]


def subscribed(mesh: Mesh) -> set[str]:
    return {subscription.subject for subscription in mesh.bus.nc._subs.values()}


async def test_a_late_listener_gets_the_parts_it_missed_from_the_peer(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("writer")
    half, go_on = asyncio.Event(), asyncio.Event()

    @agent.handles("write")
    async def write(_: None, ctx: Context) -> str:
        for number in range(5):
            await ctx.emit(number)
        half.set()
        await go_on.wait()
        for number in range(5, 10):
            await ctx.emit(number)
        return "done"

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(write, None)
        await half.wait()
        got = []
        async for event in handle.stream():
            got.append(event)
            go_on.set()

    assert got == [Part(number, 1, number) for number in range(10)]


async def test_a_listener_that_lost_its_connection_gets_what_it_missed(tmp_path: Path) -> None:
    agent = Agent("writer")
    half, go_on = asyncio.Event(), asyncio.Event()

    @agent.handles("write", timeout_s=60)
    async def write(_: None, ctx: Context) -> str:
        for number in range(3):
            await ctx.emit(number)
        half.set()
        await go_on.wait()
        for number in range(3, 6):
            await ctx.emit(number)
        return "done"

    with local_server(tmp_path) as server:
        settings = fresh_settings(server.url)
        async with hosting(agent, settings=settings) as peer, Mesh.connect(settings=settings) as mesh:
            handle = await mesh.submit(write, None)
            got = []
            async for event in handle.stream():
                got.append(event)
                if len(got) == 3 and half.is_set() and not go_on.is_set():
                    server.kill()
                    await eventually(lambda: not mesh.bus.is_connected and not peer.bus.is_connected)
                    go_on.set()
                    await eventually(lambda: [a for a in peer.host.running.values() if a.context.parts_emitted == 6])
                    server.restart()

            assert await handle.result(within_s=30) == "done"

    assert got == [Part(number, 1, number) for number in range(6)]


async def test_parts_that_are_kept_nowhere_are_told_as_missed(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("writer")

    @agent.handles("write")
    async def write(_: None, ctx: Context) -> str:
        for number in range(3):
            await ctx.emit(number)
        return "done"

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(write, None)
        await handle.result(within_s=10)
    async with hosting(agent, settings=settings):
        assert [event async for event in handle.stream()] == [Missed(1, 0, 3)]


async def test_a_plain_handler_streams_from_its_thread(mesh: Mesh, settings: Settings) -> None:
    agent = Agent("writer")

    @agent.handles("count")
    def count(upto: int, ctx: BlockingContext) -> int:
        for number in range(upto):
            ctx.emit({"at": number})
        return upto

    async with hosting(agent, settings=settings):
        handle = await mesh.submit(count, 20, content_type="application/msgpack")
        parts = [event async for event in handle.stream()]

    assert parts == [Part({"at": number}, 1, number) for number in range(20)]
