"""How fast the mesh is beside a bare nats-py loop that keeps the same promise, in one call.

    python -m ops.bench.throughput [--tasks 10000] [--json] [--variants]

One submitter and two peer processes; echo of 128 bytes; durable file storage (`sync_interval` 1 s). The bare
loop does the same on the wire (guarded submit, prioritized pull, guarded result with a TTL, echo, ack) with
nothing around it: pipelined, own inboxes, one coroutine per call. The two take turns, round by round, on one
server, so that a noisy machine hits both.

`--variants` adds the rate with batch 1 (every task bid for) and with three replicas on a loopback cluster with
`sync_interval: always`.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from mesh import Agent, Mesh
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing.cluster import local_cluster
from ops.bench import bare

PEERS = 2
IN_FLIGHT = 1000
WARM_UP = 500
ROUND_TRIPS = 500
BATCH = 100

agent = Agent("bench", version="1")


@agent.handles("echo", concurrency=int(os.environ.get("BENCH_SLOTS", BATCH)), timeout_s=30)
async def echo(text: str) -> str:
    return text


async def measure(call: Callable[[], Awaitable[Any]], tasks: int) -> float:
    """Tasks per second with `IN_FLIGHT` out at once."""
    todo = iter(range(tasks))

    async def one_after_the_other() -> None:
        for _ in todo:
            await call()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as fibers:
        for _ in range(IN_FLIGHT):
            fibers.create_task(one_after_the_other())
    return tasks / (time.perf_counter() - began)


async def round_trips(call: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Median and 99th percentile of one task at a time, in milliseconds."""
    times = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        await call()
        times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    return statistics.median(times), times[int(len(times) * 0.99)]


async def compare(url: str, *, tasks: int, rounds: int, replicas: int, slots: int) -> dict[str, float]:
    """Both side by side on one server, in turns."""
    prefix = f"bench{os.getpid()}s{slots}r{replicas}"
    settings = settings_of(url, prefix, replicas)
    payload = "x" * 126  # 128 bytes of JSON
    with ExitStack() as stack:
        for _ in range(PEERS):
            stack.enter_context(Worker("peer", url, prefix, replicas, slots))
            stack.enter_context(Worker("bare", url, prefix, replicas, slots))
        async with Mesh.connect(settings=settings) as mesh, bare.submitter(url, prefix, replicas) as bare_call:

            async def mesh_call() -> None:
                await (await mesh.submit(echo, payload)).result()

            async def bare_echo() -> None:
                await bare_call(json.dumps(payload).encode())

            await _served(mesh_call)
            await _served(bare_echo)
            rates: dict[str, list[float]] = {"mesh": [], "bare": []}
            for call in (mesh_call, bare_echo):
                await measure(call, WARM_UP)
            rtt_p50, rtt_p99 = await round_trips(mesh_call)
            bare_p50, bare_p99 = await round_trips(bare_echo)
            for _ in range(rounds):
                rates["bare"].append(await measure(bare_echo, tasks))
                rates["mesh"].append(await measure(mesh_call, tasks))
    rate, bare_rate = statistics.median(rates["mesh"]), statistics.median(rates["bare"])
    return {
        "tasks_per_s": round(rate),
        "bare_tasks_per_s": round(bare_rate),
        "ratio": round(rate / bare_rate, 3),
        "rtt_p50_ms": round(rtt_p50, 3),
        "rtt_p99_ms": round(rtt_p99, 3),
        "bare_rtt_p50_ms": round(bare_p50, 3),
        "bare_rtt_p99_ms": round(bare_p99, 3),
    }


async def _served(call: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(30):
        await call()


class Worker:
    """A worker process until left."""

    def __init__(self, kind: str, url: str, prefix: str, replicas: int, slots: int) -> None:
        environment = {**os.environ, "BENCH_SLOTS": str(slots)}
        arguments = [kind, url, prefix, str(replicas), str(slots)]
        command = [sys.executable, "-m", "ops.bench.throughput", "--worker", *arguments]
        self._process = subprocess.Popen(command, env=environment)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


async def work(kind: str, url: str, prefix: str, replicas: int, slots: int) -> None:
    if kind == "bare":
        await bare.worker(url, prefix, replicas, slots)
    else:
        await Peer(agent.hosted, settings=settings_of(url, prefix, replicas)).run()


def settings_of(url: str, prefix: str, replicas: int) -> Settings:
    """Settings of a mesh that is measured."""
    # Several meshes share the server of one call, so each takes less of its store than it would alone.
    return Settings(nats_url=url, prefix=prefix, replicas=replicas, stream_bytes_max=2**30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, url, prefix, replicas, slots = options.worker
        _run(work(kind, url, prefix, int(replicas), int(slots)))
        return

    def one(url: str, *, replicas: int = 1, slots: int = BATCH, tasks: int = options.tasks) -> dict[str, float]:
        comparison = compare(url, tasks=tasks, rounds=options.rounds, replicas=replicas, slots=slots)
        measured: dict[str, float] = _run(comparison)
        if not options.json:
            print("  ".join(f"{name} {value:g}" for name, value in measured.items()), flush=True)
        return measured

    with local_server() as server:
        result: dict[str, Any] = one(server.url)
        if options.variants:
            if not options.json:
                print("batch 1, every task bid for:")
            result["batch_1"] = one(server.url, slots=1)
    if options.variants:
        if not options.json:
            print("three replicas, sync_interval always:")
        with local_cluster() as cluster:
            _run(cluster.ready())
            result["three_replicas"] = one(cluster.url, replicas=3, tasks=options.tasks // 2)
    if options.json:
        print(json.dumps(result))


def _run(coroutine: Any) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(coroutine)


if __name__ == "__main__":
    main()
