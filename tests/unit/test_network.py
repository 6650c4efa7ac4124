"""A link between plain sockets: what passes, what comes late, what never comes, and what is reset."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.testing import eventually
from mesh.testing.network import Link, addresses, lines

PATIENCE_S = 10.0
SOON_S = 0.05


@asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """A server that sends back what it gets, line by line; its port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A link to an echo, and a connection through it."""
    async with echoing() as port, Link("127.0.0.1", port).open() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        try:
            yield link, reader, writer
        finally:
            writer.transport.abort()


async def said(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await reader.readline()


async def test_a_fair_link_passes_everything_on_in_order() -> None:
    async with linked() as (_, reader, writer):
        sent = [f"{number}\n".encode() * 100 for number in range(100)]
        for chunk in sent:
            writer.write(chunk)

        got = [await said(reader) for _ in range(100 * 100)]

    assert b"".join(got) == b"".join(sent)


async def test_what_a_delayed_link_passes_on_comes_late_and_in_order() -> None:
    async with linked() as (link, reader, writer):
        link.delay(0.05, jitter_s=0.05)
        began = asyncio.get_running_loop().time()
        for number in range(20):
            writer.write(b"%d\n" % number)
            await writer.drain()

        got = [await said(reader) for _ in range(20)]
        took_s = asyncio.get_running_loop().time() - began

    assert got == [b"%d\n" % number for number in range(20)]
    # Both ways; a lower bound holds on any machine.
    assert took_s >= 0.1


async def test_a_throttled_link_lets_so_many_bytes_pass_a_second() -> None:
    async with linked() as (link, reader, writer):
        link.throttle(100_000)
        began = asyncio.get_running_loop().time()
        for _ in range(20):
            writer.write(b"x" * 999 + b"\n")
            await said(reader)
        took_s = asyncio.get_running_loop().time() - began

    assert took_s >= 0.19


async def test_a_held_link_keeps_its_connections_and_delivers_when_healed() -> None:
    async with linked() as (link, reader, writer):
        link.hold()
        writer.write(b"into the hole\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON_S):
                await reader.readline()
        newcomer, its_writer = await asyncio.open_connection("127.0.0.1", link.port)
        its_writer.write(b"me too\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON_S):
                await newcomer.readline()

        link.heal()

        assert await said(reader) == b"into the hole\n"
        assert await said(newcomer) == b"me too\n"
        its_writer.transport.abort()


async def test_a_cut_link_resets_its_connections_and_new_ones_until_healed() -> None:
    async with linked() as (link, reader, writer):
        writer.write(b"hello\n")
        assert await said(reader) == b"hello\n"

        link.cut()
        with pytest.raises(ConnectionError):
            await said(reader)
        refused, its_writer = await asyncio.open_connection("127.0.0.1", link.port)
        with pytest.raises(ConnectionError):
            await said(refused)
        link.heal()
        again, third = await asyncio.open_connection("127.0.0.1", link.port)
        third.write(b"back\n")

        assert await said(again) == b"back\n"
        third.transport.abort()
        its_writer.transport.abort()


async def test_a_cut_under_way_is_no_error_of_the_link() -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    async with linked() as (link, _, _):
        for _ in range(20):
            writers = [(await asyncio.open_connection("127.0.0.1", link.port))[1] for _ in range(5)]
            for each in writers:
                each.write(b"x\n" * 10_000)
            await asyncio.sleep(0)
            link.cut()
            await eventually(lambda: link.connections == 0)
            link.heal()
            for each in writers:
                each.transport.abort()

    assert complaints == []


async def test_an_end_of_one_direction_is_passed_on_and_the_answer_still_comes() -> None:
    async with linked() as (link, reader, writer):
        writer.write(b"last words\n")
        writer.write_eof()

        assert await said(reader) == b"last words\n"
        assert await said(reader) == b""
        await eventually(lambda: link.connections == 0)


async def test_a_server_that_is_away_resets_the_client() -> None:
    async with echoing() as port:
        pass
    async with Link("127.0.0.1", port).open() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        with pytest.raises(ConnectionError):
            await said(reader)
        writer.transport.abort()


async def test_each_line_is_made_worse_alone() -> None:
    async with echoing() as port, lines(f"nats://127.0.0.1:{port}", 2) as (held, fair):
        held.hold()
        place = addresses(fair.url)
        reader, writer = await asyncio.open_connection(*place[0])
        writer.write(b"through\n")

        assert await said(reader) == b"through\n"
        writer.transport.abort()


def test_addresses_are_hosts_and_ports() -> None:
    assert addresses("nats://a:1, b ,tls://c:3") == [("a", 1), ("b", 4222), ("c", 3)]
