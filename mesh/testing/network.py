"""A network that can be made worse: TCP relays on 127.0.0.1 between clients and servers.

A `Link` relays to one address. Through it bytes may come late, at a bounded rate, not at all while the
connections stay open (`hold`, what a partition looks like), or their connections are reset (`cut`). `heal` makes
it a plain relay again. With a link for each peer a part of a fleet can be cut off.
"""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from mesh.fibers import serving

CHUNK_BYTES = 64 * 1024
CHUNKS_MAX = 64
"""Chunks that a direction of a connection keeps while they are late or held; then its sender is slowed down."""


class Way(StrEnum):
    """A direction of the connections."""

    TO_SERVER = "to-server"
    TO_CLIENT = "to-client"


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to the bytes of one direction. Delays in seconds; None is an unbounded rate."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None


FAIR = Weather()


class Link:
    """A TCP relay on 127.0.0.1 to one address; `open` starts it. Order within a connection is kept."""

    def __init__(self, host: str, port: int, *, seed: int | str = 0) -> None:
        self.port = 0
        self._target = host, port
        self._dice = random.Random(f"{seed} link")  # noqa: S311  # a seed that repeats a run, no secret
        self._weather = {Way.TO_SERVER: FAIR, Way.TO_CLIENT: FAIR}
        self._passes = asyncio.Event()
        self._passes.set()
        self._is_cut = False
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where clients connect to it, as a NATS address."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected through it."""
        return len(self._open) // 2

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Link"]:
        """Relay on a free port until left; then every connection is reset."""
        relaying: set[asyncio.Task[None]] = set()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            fiber = asyncio.current_task()
            assert fiber is not None
            relaying.add(fiber)
            try:
                await self._relay(reader, writer)
            except asyncio.CancelledError:
                # Ours, when the link is left; asyncio tells of a cancelled connection as of an error.
                _reset(writer)
            finally:
                relaying.discard(fiber)

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for fiber in tuple(relaying):
                fiber.cancel()
            if relaying:
                await asyncio.wait(tuple(relaying))
            await server.wait_closed()

    def delay(self, delay_s: float, *, jitter_s: float = 0.0, ways: Iterable[Way] = tuple(Way)) -> None:
        """Let bytes come `delay_s` seconds late, and up to `jitter_s` later, drawn anew for each chunk."""
        for way in ways:
            self._weather[way] = Weather(delay_s, jitter_s, self._weather[way].bytes_per_s)

    def throttle(self, bytes_per_s: float, *, ways: Iterable[Way] = tuple(Way)) -> None:
        """Let at most so many bytes a second pass, for each connection."""
        for way in ways:
            was = self._weather[way]
            self._weather[way] = Weather(was.delay_s, was.jitter_s, bytes_per_s)

    def hold(self) -> None:
        """Let nothing pass, and keep connections open; what is sent meanwhile passes after `heal`."""
        self._passes.clear()

    def cut(self) -> None:
        """Reset every connection, and each new one, until `heal`."""
        self._is_cut = True
        for writer in tuple(self._open):
            _reset(writer)

    def heal(self) -> None:
        """Let everything pass again, at once."""
        self._weather = {Way.TO_SERVER: FAIR, Way.TO_CLIENT: FAIR}
        self._is_cut = False
        self._passes.set()

    async def _relay(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        # A black hole answers to nobody new either.
        await self._passes.wait()
        try:
            if self._refuses():
                raise ConnectionResetError
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(to_client)
            return
        writers = {to_client, to_server}
        if self._refuses():
            # Cut while it connected: it was not among those that were reset.
            for writer in writers:
                _reset(writer)
            return
        self._open |= writers
        has_ended = False
        try:
            # `serving` ends the other direction with the first that breaks; an end of one is passed on.
            async with serving() as fibers:
                there = fibers.create_task(self._pass_on(Way.TO_SERVER, from_client, to_server))
                back = fibers.create_task(self._pass_on(Way.TO_CLIENT, from_server, to_client))
                await asyncio.wait((there, back))
            has_ended = True
        except* OSError:
            pass  # what is broken on one side is reset on the other
        finally:
            self._open -= writers
            for writer in writers:
                if has_ended:
                    writer.close()
                else:
                    _reset(writer)

    def _refuses(self) -> bool:
        return self._is_cut

    async def _pass_on(self, way: Way, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Pass one direction of a connection on, each chunk when it is due, until its end."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)
        async with serving(self._read(way, source, late)):
            loop = asyncio.get_running_loop()
            while True:
                due, chunk = await late.get()
                if (wait_s := due - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                await self._passes.wait()
                if not chunk:
                    break
                target.write(chunk)
                await target.drain()
                if rate := self._weather[way].bytes_per_s:
                    await asyncio.sleep(len(chunk) / rate)
        if target.can_write_eof():
            target.write_eof()

    async def _read(self, way: Way, source: asyncio.StreamReader, late: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop, due = asyncio.get_running_loop(), 0.0
        chunk = b"unread"
        while chunk:
            chunk = await source.read(CHUNK_BYTES)
            weather = self._weather[way]
            extra_s = self._dice.uniform(0, weather.jitter_s) if weather.jitter_s else 0.0
            # Never before what was sent earlier.
            due = max(due, loop.time() + weather.delay_s + extra_s)
            await late.put((due, chunk))


@dataclass(frozen=True, slots=True)
class Line:
    """All links of one peer or client: one for each server that it may connect to."""

    links: tuple[Link, ...]

    @property
    def url(self) -> str:
        """What its MESH_NATS_URL is."""
        return ",".join(link.url for link in self.links)

    def delay(self, delay_s: float, *, jitter_s: float = 0.0) -> None:
        for link in self.links:
            link.delay(delay_s, jitter_s=jitter_s)

    def throttle(self, bytes_per_s: float) -> None:
        for link in self.links:
            link.throttle(bytes_per_s)

    def hold(self) -> None:
        for link in self.links:
            link.hold()

    def cut(self) -> None:
        for link in self.links:
            link.cut()

    def heal(self) -> None:
        for link in self.links:
            link.heal()


@asynccontextmanager
async def lines(url: str, count: int, *, seed: int = 0) -> AsyncIterator[Sequence[Line]]:
    """That many lines to the servers of a comma-separated address, open until left."""
    async with AsyncExitStack() as stack:
        opened: list[Line] = []
        for number in range(count):
            links: list[Link] = []
            for place, (host, port) in enumerate(addresses(url)):
                link = Link(host, port, seed=f"{seed} {number} {place}")
                links.append(await stack.enter_async_context(link.open()))
            opened.append(Line(tuple(links)))
        yield opened


@asynccontextmanager
async def between(ports: Sequence[int], *, seed: int = 0) -> AsyncIterator["Between"]:
    """Links between nodes that listen on these ports of 127.0.0.1 for each other, open until left."""
    async with AsyncExitStack() as stack:

        async def link(place: str, port: int) -> Link:
            return await stack.enter_async_context(Link("127.0.0.1", port, seed=f"{seed} {place}").open())

        advertised = [await link(f"to {node}", port) for node, port in enumerate(ports)]
        pairs = {
            (one, other): await link(f"{one} to {other}", port)
            for one in range(len(ports))
            for other, port in enumerate(ports)
            if one != other
        }
        yield Between(tuple(advertised), pairs)


@dataclass(frozen=True, slots=True)
class Between:
    """The network between nodes: a link for each ordered pair, and one that each node tells others of itself."""

    advertised: tuple[Link, ...]
    pairs: Mapping[tuple[int, int], Link]

    def others_of(self, node: int) -> tuple[Link, ...]:
        """The links over which a node connects to the others."""
        return tuple(link for (one, _), link in self.pairs.items() if one == node)

    def around(self, node: int) -> Line:
        """Every link that ends at a node."""
        touching = [link for pair, link in self.pairs.items() if node in pair]
        return Line((self.advertised[node], *touching))


def addresses(url: str) -> list[tuple[str, int]]:
    """Hosts and ports of a comma-separated NATS address; 4222 where it names no port."""
    found: list[tuple[str, int]] = []
    for each in url.split(","):
        parts = urlsplit(each.strip() if "://" in each else f"nats://{each.strip()}")
        found.append((parts.hostname or "127.0.0.1", parts.port or 4222))
    return found


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that its other end reads a reset, not an end."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
