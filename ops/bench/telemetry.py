"""What telemetry costs: throughput with metrics, events and traces off and on, in one call.

    python -m ops.bench.telemetry [--tasks 5000] [--rounds 7] [--json]

One submitter and one peer process, which is what limits the rate; echo of 128 bytes on one server. Each mode has a
mesh, a peer and a client of its own, and they take turns, in another order each round, so that a noisy machine hits
all of them:

    off             MESH_METRICS=0 MESH_EVENTS=off MESH_TRACES=off
    metrics         and what happens is counted and timed, and scraped every 5 s
    metrics_events  and every end of a task is an event in its stream
    all             and every task is traced, in the client and in the peer, and exported to a sink by OTLP
    all_sampled     the same, of one trace in a hundred

Printed are tasks per second (medians) and the ratio of each to `off` (median of the ratios of the rounds).
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from contracts import wire
from contracts.card import Described
from mesh import Agent, Mesh
from mesh.fibers import serving
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.settings import Settings
from ops.bench.throughput import WARM_UP, measure

SLOTS = 100
SCRAPE_EVERY_S = 5.0
SERVED_WITHIN_S = 30

agent = Agent("bench", version="1", owner="bench")


@agent.handles("echo", concurrency=SLOTS, timeout_s=30)
async def echo(text: str) -> str:
    return text


@dataclass(frozen=True)
class Mode:
    """One way to run a peer and its client."""

    name: str
    metrics: str
    events: str
    traces: str
    sampler: str = "always_on"

    def environment(self, sink: str) -> dict[str, str]:
        """What sets a process to this mode."""
        found = {"MESH_METRICS": self.metrics, "MESH_EVENTS": self.events, "MESH_TRACES": self.traces}
        if self.traces != "off":
            found |= {"OTEL_EXPORTER_OTLP_ENDPOINT": sink, "OTEL_TRACES_SAMPLER": self.sampler}
            found["OTEL_TRACES_SAMPLER_ARG"] = "0.01"
        return found


MODES = (
    Mode("off", "0", "off", "off"),
    Mode("metrics", "1", "off", "off"),
    Mode("metrics_events", "1", "all", "off"),
    Mode("all", "1", "all", "otlp"),
    Mode("all_sampled", "1", "all", "otlp", "parentbased_traceidratio"),
)


class Submitter:
    """A process that submits in one mode, told over its pipes how many tasks; until left."""

    def __init__(self, url: str, mode: Mode, sink: str) -> None:
        self._arguments = ("--submit", url, mode.name)
        self._environment = {**os.environ, **mode.environment(sink)}
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Callable[[int], Awaitable[float]]:
        command = (sys.executable, "-m", "ops.bench.telemetry", *self._arguments)
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, env=self._environment, stdin=pipe, stdout=pipe)
        return self._measure

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def _measure(self, tasks: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{tasks}\n".encode())
        return float(await self._process.stdout.readline())


async def submit(url: str, mode: Mode) -> None:
    """Read numbers of tasks from standard input; print the tasks per second that were done."""
    numbers = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(numbers)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    payload = "x" * 126  # 128 bytes of JSON
    async with Mesh.connect(settings=settings_of(url, mode)) as mesh:

        async def call() -> None:
            await (await mesh.submit(echo, payload)).result()

        while line := await numbers.readline():
            print(await measure(call, int(line)), flush=True)


async def compare(url: str, sink: str, *, tasks: int, rounds: int) -> dict[str, float]:
    """Every mode on one server, in turns."""
    rates: dict[str, list[float]] = {mode.name: [] for mode in MODES}
    async with AsyncExitStack() as stack:
        calls: dict[str, Callable[[int], Awaitable[float]]] = {}
        for mode in MODES:
            stack.enter_context(_peer(url, mode, sink))
            calls[mode.name] = await stack.enter_async_context(Submitter(url, mode, sink))
            async with asyncio.timeout(SERVED_WITHIN_S):
                await calls[mode.name](1)
            await calls[mode.name](WARM_UP)
            await stack.enter_async_context(_scraped(url, mode))
        for _ in range(rounds):
            for name in random.sample(list(calls), len(calls)):
                rates[name].append(await calls[name](tasks))
    found = {name: float(round(statistics.median(measured))) for name, measured in rates.items()}
    for name, measured in rates.items():
        ratios = [rate / off for rate, off in zip(measured, rates["off"], strict=True)]
        found[f"{name}_ratio"] = round(statistics.median(ratios), 3)
    return found


@contextmanager
def _peer(url: str, mode: Mode, sink: str) -> Iterator[None]:
    command = [sys.executable, "-m", "ops.bench.telemetry", "--peer", url, mode.name]
    process = subprocess.Popen(command, env={**os.environ, **mode.environment(sink)})
    try:
        yield
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def _scraped(url: str, mode: Mode) -> AsyncIterator[None]:
    """Have the peer of a mode scraped as Prometheus would, until left."""
    async with Mesh.connect(settings=settings_of(url, mode)) as mesh:
        answers = await mesh.bus.gather(
            mesh.bus.subjects.ctl("all", "describe"), b"", within_s=SERVED_WITHIN_S, enough=1
        )
    (described,) = wire.readable(Described, answers)

    async def keep() -> None:
        while True:
            await asyncio.to_thread(lambda: urllib.request.urlopen(f"{described.metrics_url}/metrics").read())
            await asyncio.sleep(SCRAPE_EVERY_S)

    async with serving(keep()):
        yield


@contextmanager
def sink() -> Iterator[str]:
    """A collector that takes every span and forgets it, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "ops.bench.telemetry", "--sink"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def swallow() -> None:
    """Serve the sink."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name http.server calls
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    threading.Thread(target=server.serve_forever).start()


def settings_of(url: str, mode: Mode) -> Settings:
    """Settings of one mode's mesh; the rest is in the environment of its process."""
    # Five meshes share the server of one call, so each takes less of its store than it would alone.
    return Settings(nats_url=url, prefix=f"bench-{mode.name}".replace("_", "-"), stream_bytes_max=2**29)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    for worker in ("--peer", "--submit"):
        parser.add_argument(worker, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    modes = {mode.name: mode for mode in MODES}
    if options.sink:
        swallow()
    elif options.peer:
        url, name = options.peer
        _run(Peer(agent.hosted, settings=settings_of(url, modes[name])).run())
    elif options.submit:
        url, name = options.submit
        _run(submit(url, modes[name]))
    else:
        with ExitStack() as stack:
            server, address = stack.enter_context(local_server()), stack.enter_context(sink())
            found = _run(compare(server.url, address, tasks=options.tasks, rounds=options.rounds))
        if options.json:
            print(json.dumps(found))
        else:
            for mode in MODES:
                print(f"{mode.name:16} {found[mode.name]:8,.0f} tasks/s   {found[f'{mode.name}_ratio']:.3f} of off")


def _run(coroutine: Any) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(coroutine)


if __name__ == "__main__":
    main()
