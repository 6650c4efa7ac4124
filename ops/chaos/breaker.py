"""A dependency that fails for a while under load: what eight peers do to it, and when they are back.

    python -m ops.chaos.breaker --down-s 20 --json

Two runs, one with a circuit breaker around the call and one without. The dependency is a server of this program; it
counts who calls it when. Ends with 1 if a guarded task was lost or became a dead letter.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from contracts import wire
from contracts.control import BreakerChange
from contracts.outcome import Status
from contracts.subjects import parse_breaker
from mesh import Agent, Context, Mesh
from mesh.bus import topology
from mesh.errors import Transient
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.resilience.breaker import State
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.fleet import Fleet
from mesh.testing.history import Entry, History, What

NAME = "there"
WARM_S = 5.0
AFTER_S = 5.0
WINDOW_S = 0.5
CALL_S = 0.01


@dataclass
class Dependency:
    """A server that answers after a moment, or says that it is down. Each call: when, by whom, and how it went."""

    is_down: bool = False
    calls: list[tuple[float, str, bool]] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        who = (await reader.readline()).decode().strip()
        self.calls.append((time.time(), who, not self.is_down))
        went_well = not self.is_down
        await asyncio.sleep(CALL_S)
        writer.write(b"ok\n" if went_well else b"down\n")
        writer.close()


@dataclass(frozen=True)
class Run:
    """What one run came to."""

    tasks: int
    done: int
    lost: int
    dead_lettered: int
    calls_while_down: int
    open_after_ms: int | None
    """From the dependency's failure to the record of the breaker's opening."""
    probes: int
    """Leases to probe, each for one call."""
    other_calls_while_open: int
    """Calls that reached the dependency after the record was written, and were no probes."""
    rate_before: float
    full_rate_after_s: float | None
    """From the recovery until the first half second in which as many tasks are done as before the failure."""


def agent(port: int, who: str, *, is_guarded: bool) -> Agent:
    """An agent that calls the dependency."""
    caller = Agent("caller")
    caller.breaker(NAME, open_s=1.8)

    async def call() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"{who}\n".encode())
            if await reader.readline() != b"ok\n":
                raise Transient("the dependency is down")
            return "ok"
        finally:
            writer.close()

    @caller.handles("ask", concurrency=8, attempts=3)
    async def ask(number: int, ctx: Context) -> str:
        if not is_guarded:
            return await call()
        async with ctx.breaker(NAME):
            return await call()

    return caller


async def serve(port: int, history: Path, *, is_guarded: bool) -> None:
    """Be one peer."""
    with History(history) as told:
        peer = Peer(agent(port, f"{id(told)}", is_guarded=is_guarded).hosted, settings=Settings())

        async def tell_when_ready() -> None:
            await eventually(lambda: peer.is_ready()[0], within_s=60)
            told.add(Entry(What.READY, peer=peer.id))

        async with asyncio.TaskGroup() as fibers:
            telling = fibers.create_task(tell_when_ready())
            await peer.run()
            telling.cancel()


async def run(*, peers: int, down_s: float, rate: float, is_guarded: bool) -> Run:
    """One run: warm, down, up again."""
    there = Dependency()
    with (
        tempfile.TemporaryDirectory(prefix="mesh-breaker-") as scratch,
        local_server(Path(scratch) / "store") as server,
    ):
        folder = Path(scratch)
        settings = Settings(nats_url=server.url, http_port=-1)
        env = {**_environment(), "MESH_NATS_URL": server.url, "MESH_HTTP_PORT": "-1"}
        with History(folder / "history.jsonl") as history:
            async with there.serving() as port, Mesh.connect(settings=settings) as client:
                await topology.ensure(client.bus, topology.of_mesh(settings))
                orders = json.dumps({"port": port, "history": str(folder / "history.jsonl"), "is_guarded": is_guarded})
                command = [sys.executable, "-m", "ops.chaos.breaker", "--peer", orders]
                fleet = Fleet(command, size=peers, env=env, cwd=Path.cwd(), history=history, log=folder / "peers.log")
                async with fleet.running():
                    await eventually(lambda: len(history.read(What.READY)) >= peers, within_s=60)
                    return await _measured(client, there, down_s=down_s, rate=rate)


async def _measured(client: Mesh, there: Dependency, *, down_s: float, rate: float) -> Run:
    changes: list[tuple[float, str]] = []

    def heard(subject: str, data: bytes, _: dict[str, str]) -> None:
        if parse_breaker(client.bus.subjects.control_key(subject)) == NAME:
            changes.append((time.time(), wire.decode(BreakerChange, data).state))

    async with client.bus.listening(client.bus.subjects.control_echoes, heard):
        return await _loaded(client, there, changes, down_s=down_s, rate=rate)


async def _loaded(
    client: Mesh, there: Dependency, changes: list[tuple[float, str]], *, down_s: float, rate: float
) -> Run:
    done: list[float] = []
    ended: list[Status] = []

    async def one(number: int) -> None:
        handle = await client.submit("ask", number)
        outcome = await handle.outcome()
        done.append(time.time())
        ended.append(outcome.status)

    async def weather() -> tuple[float, float]:
        await asyncio.sleep(WARM_S)
        there.is_down, down_at = True, time.time()
        await asyncio.sleep(down_s)
        there.is_down, up_at = False, time.time()
        return down_at, up_at

    tasks = int(rate * (WARM_S + down_s + AFTER_S))
    async with asyncio.TaskGroup() as fibers:
        blowing = fibers.create_task(weather())
        began = time.monotonic()
        for number in range(tasks):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            fibers.create_task(one(number))
    down_at, up_at = blowing.result()
    failed = [at for at, _, went_well in there.calls if not went_well]
    opened_at = next((at for at, state in changes if state == State.OPEN), None)
    probes = sum(state == State.HALF_OPEN and at < up_at for at, state in changes)
    while_open = [at for at in failed if opened_at is not None and at > opened_at]
    before = sum(down_at - 2.0 <= at < down_at for at in done) / 2.0
    return Run(
        tasks=tasks,
        done=ended.count(Status.DONE),
        lost=tasks - len(ended),
        dead_lettered=ended.count(Status.FAILED),
        calls_while_down=len(failed),
        open_after_ms=None if opened_at is None else round(1_000 * (opened_at - down_at)),
        probes=probes,
        other_calls_while_open=len(while_open) - probes,
        rate_before=before,
        full_rate_after_s=_full_rate_after(done, up_at, before),
    )


def _full_rate_after(done: list[float], up_at: float, rate: float) -> float | None:
    for tenth in range(600):
        start = up_at + tenth / 10
        if sum(start <= at < start + WINDOW_S for at in done) >= rate * WINDOW_S:
            return round(tenth / 10, 1)
    return None


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--down-s", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=200.0, help="tasks submitted a second")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peer", default=None, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.peer is not None:
        orders = json.loads(wanted.peer)
        asyncio.run(serve(orders["port"], Path(orders["history"]), is_guarded=orders["is_guarded"]))
        return 0
    found = {
        name: asyncio.run(run(peers=wanted.peers, down_s=wanted.down_s, rate=wanted.rate, is_guarded=is_guarded))
        for name, is_guarded in (("with", True), ("without", False))
    }
    if wanted.json:
        print(json.dumps({name: asdict(each) for name, each in found.items()}))
    else:
        print(f"{'':26}{'with a breaker':>16}{'without':>12}")
        for key, guarded in asdict(found["with"]).items():
            print(f"{key.replace('_', ' '):26}{guarded!s:>16}{getattr(found['without'], key)!s:>12}")
    return 1 if found["with"].lost or found["with"].dead_lettered else 0


if __name__ == "__main__":
    sys.exit(main())
