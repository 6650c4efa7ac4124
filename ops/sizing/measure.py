"""What each thing that a mesh keeps costs its servers, measured on the spot; and what a peer costs at given rates.

    python -m ops.sizing.measure [--only kinds,capabilities,peers] [--kind result] [--count 20000] [--nodes 1]
                                 [--sync always] [--json]

Each kind of thing has a server of its own (or a cluster of `--nodes`), with `sync_interval: always` unless `--sync`
says otherwise, which changes how long it takes and not what is kept. Counted are, for each thing: what the streams say
they hold, the files on disk, and the server's resident memory above that with empty streams, some seconds after writing
and after a restart; with more nodes, of the node that has most. Capabilities: what their streams and consumers take to
make and to hold, and how long the server starts. Peers: resident memory and share of a processor of one that answers at
a rate. Beside it stands what `mesh doctor --rate` predicts for results.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from mesh import Agent, Context, Mesh
from mesh.bus import topology
from mesh.cli.capacity import Load, predict
from mesh.local.server import LocalServer, local_server
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.cluster import Cluster, local_cluster

AT_ONCE = 400
PREFIX = "sizing"
VALUE_BYTES = 500
LARGE_BYTES = 1_000_000
CALM_S = 2.0
CACHED_S = 13.0
"""How long a server keeps what it wrote in memory, and a little more."""
CAPABILITIES = (50, 200)
RATES = (0, 100, 500)
RATE_S = 10.0
WITHIN_S = 600.0

agent = Agent("sizing", version="1")


@agent.handles("echo", concurrency=100)
async def echo(text: str) -> str:
    return text


@agent.handles("wait", concurrency=100)
async def wait(number: int, ctx: Context) -> None:
    await ctx.signal("never")


Write = Callable[[Mesh, int, str], Awaitable[None]]
"""Writes so many things, under keys that begin with the word."""


async def at_once(count: int, one: Callable[[int], Awaitable[object]]) -> None:
    todo = iter(range(count))

    async def keep_on() -> None:
        for number in todo:
            await one(number)

    async with asyncio.TaskGroup() as fibers:
        for _ in range(min(AT_ONCE, count)):
            fibers.create_task(keep_on())


async def queued(mesh: Mesh, count: int, word: str) -> None:
    text = "x" * VALUE_BYTES
    await at_once(count, lambda number: mesh.submit("idle", text, key=f"{word}-{number:08d}", returns=str))


async def answered(mesh: Mesh, count: int, word: str) -> None:
    text = "x" * VALUE_BYTES

    async def one(number: int) -> None:
        await (await mesh.submit(echo, text, key=f"{word}-{number:08d}")).result()

    await at_once(count, one)


async def parked(mesh: Mesh, count: int, word: str) -> None:
    await at_once(count, lambda number: mesh.submit(wait, number, key=f"{word}-{number:08d}"))

    async def all_wait() -> bool:
        return await topology.count(mesh.bus, mesh.bus.subjects.parks_of("wait")) >= count

    await eventually(all_wait, within_s=WITHIN_S, every_s=0.5)


async def in_lines(mesh: Mesh, count: int, word: str) -> None:
    await at_once(
        count, lambda number: mesh.submit("idle", number, key=f"{word}-{number:08d}", order_key=f"{word}-{number}")
    )


async def large(mesh: Mesh, count: int, word: str) -> None:
    text = "x" * LARGE_BYTES
    await at_once(count, lambda number: mesh.submit("idle", text, key=f"{word}-{number:08d}", returns=str))


KINDS: dict[str, tuple[Write, float, dict[str, str]]] = {
    "queued task, payload of 500 B": (queued, 1, {"MESH_EVENTS": "off"}),
    "kept result, value of 500 B": (answered, 1, {"MESH_EVENTS": "off"}),
    "kept result with its event": (answered, 1, {"MESH_EVENTS": "all"}),
    "parked task with its timer": (parked, 0.25, {"MESH_EVENTS": "off", "MESH_HOT_WAIT_S": "0"}),
    "queued task in a line of its own": (in_lines, 0.25, {"MESH_EVENTS": "off"}),
    "queued task with a payload of 1 MB": (large, 0.01, {"MESH_EVENTS": "off"}),
}
"""How each is written, how many of `--count`, and the peer's settings."""


@contextmanager
def servers(nodes: int, sync: str = "always") -> Iterator[Cluster]:
    """One server or so many, as a cluster."""
    with TemporaryDirectory(prefix="sizing-") as scratch:
        if nodes == 1:
            with local_server(Path(scratch), sync_interval=sync) as server:
                yield Cluster((server,))
        else:
            with local_cluster(Path(scratch), nodes=nodes, sync_interval=sync) as cluster:
                asyncio.run(cluster.ready())
                yield cluster


@contextmanager
def peer(settings: Settings, variables: dict[str, str]) -> Iterator[psutil.Process]:
    """A peer as a process."""
    env = {**os.environ, **variables}
    command = [sys.executable, "-m", "ops.sizing.measure", "--peer", settings.model_dump_json(include=set(_TOLD))]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


_TOLD = ("nats_url", "prefix", "replicas", "stream_bytes_max", "objects_bytes_max")


def settings_of(cluster: Cluster) -> Settings:
    return Settings(
        nats_url=cluster.url,
        prefix=PREFIX,
        replicas=len(cluster.nodes),
        stream_bytes_max=2 * 2**30,
        objects_bytes_max=2 * 2**30,
    )


@asynccontextmanager
async def meshed(settings: Settings, *capabilities: str) -> AsyncIterator[Mesh]:
    """A client of a mesh whose streams and consumers are there."""
    specs = [spec for capability in capabilities for spec in topology.of_capability(settings, capability)]
    async with Mesh.connect(settings=settings) as mesh:
        await topology.ensure(mesh.bus, (*topology.of_mesh(settings), *specs))
        yield mesh


def memory(cluster: Cluster) -> int:
    """Resident memory of the node that has most."""
    return max(psutil.Process(node.pid).memory_info().rss for node in cluster.nodes)


def disk(cluster: Cluster) -> int:
    """Bytes of files of the node that has most."""
    sizes = [
        sum(file.stat().st_blocks * 512 for file in node.store.rglob("*") if file.is_file()) for node in cluster.nodes
    ]
    return max(sizes)


async def stored(mesh: Mesh) -> int:
    """What all streams say they hold, in bytes."""
    names = (await mesh.bus.api("STREAM.NAMES"))["streams"]
    states = [(await mesh.bus.api(f"STREAM.INFO.{name}"))["state"] for name in names]
    return sum(int(state["bytes"]) for state in states)


def restarted_s(server: LocalServer) -> float:
    """How long a server takes from its start to its first answer."""
    server.stop()
    began = time.perf_counter()
    server.restart()
    return time.perf_counter() - began


def kind(name: str, count: int, nodes: int, sync: str) -> dict[str, Any]:
    """What one of a kind costs."""
    write, share, variables = KINDS[name]
    number = max(10, int(count * share))
    with servers(nodes, sync) as cluster:
        settings = settings_of(cluster)

        async def fill() -> list[int]:
            async with meshed(settings, "idle", "echo", "wait") as mesh:
                await write(mesh, max(1, number // 100), "once")  # what the server needs once
                await asyncio.sleep(CALM_S)
                before = await stored(mesh), disk(cluster), memory(cluster)
                await write(mesh, number, "task")
                await asyncio.sleep(CACHED_S)
                later = await stored(mesh), disk(cluster), memory(cluster)
                return [after - was for after, was in zip(later, before, strict=True)]

        with peer(settings, variables):
            held, files, resident = asyncio.run(fill())
        empty = _empty_memory(nodes)
        seconds = max(restarted_s(node) for node in cluster.nodes)
        time.sleep(CACHED_S)
        after = memory(cluster) - empty
    each = {
        "stored": held / number,
        "disk": files / number,
        "memory": resident / number,
        "memory_later": after / number,
    }
    return {
        "what": name,
        "count": number,
        **{key: round(value) for key, value in each.items()},
        "restart_s": round(seconds, 2),
    }


def _empty_memory(nodes: int) -> int:
    """Resident memory of a server that was restarted with the streams of a mesh, and nothing in them."""
    if nodes not in _EMPTY:
        with servers(nodes) as cluster:
            asyncio.run(_only_made(settings_of(cluster)))
            for node in cluster.nodes:
                restarted_s(node)
            time.sleep(CALM_S)
            _EMPTY[nodes] = memory(cluster)
    return _EMPTY[nodes]


_EMPTY: dict[int, int] = {}


async def _only_made(settings: Settings) -> None:
    async with meshed(settings, "idle", "echo", "wait"):
        pass


def capabilities(count: int, nodes: int) -> dict[str, Any]:
    """What so many capabilities take, with nothing in their queues."""
    with servers(nodes) as cluster:
        settings = settings_of(cluster)

        async def make() -> tuple[float, int]:
            async with meshed(settings) as mesh:
                await asyncio.sleep(CALM_S)
                before, began = memory(cluster), time.perf_counter()
                for number in range(count):
                    await topology.ensure(mesh.bus, topology.of_capability(settings, f"capability-{number}"))
                took = time.perf_counter() - began
                await asyncio.sleep(CALM_S)
                return took, memory(cluster) - before

        took, resident = asyncio.run(make())
        files = disk(cluster)
        seconds = max(restarted_s(node) for node in cluster.nodes)
        time.sleep(CALM_S)
        later = memory(cluster)
    return {
        "capabilities": count,
        "made_s": round(took, 1),
        "memory_mb": round(resident / 1e6),
        "memory_later_mb": round(later / 1e6),
        "disk_mb": round(files / 1e6),
        "restart_s": round(seconds, 2),
    }


def peers(rate: int, nodes: int) -> dict[str, Any]:
    """What a peer takes that answers so many tasks a second."""
    with servers(nodes) as cluster:
        settings = settings_of(cluster)

        async def ask(mesh: Mesh) -> None:
            began, loop = time.perf_counter(), asyncio.get_running_loop()
            async with asyncio.TaskGroup() as fibers:
                for number in range(int(rate * RATE_S)):
                    await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
                    fibers.create_task(_one(mesh, number))
            assert loop.is_running()

        async def under_load(process: psutil.Process) -> tuple[float, float, float]:
            async with meshed(settings, "echo") as mesh:
                await (await mesh.submit(echo, "warm")).result()
                family = [process, *process.children(recursive=True)]
                spent, server = _processor_s(family), _processor_s([psutil.Process(node.pid) for node in cluster.nodes])
                began = time.perf_counter()
                await (ask(mesh) if rate else asyncio.sleep(RATE_S))
                length = time.perf_counter() - began
                used = (_processor_s(family) - spent) / length
                served = (_processor_s([psutil.Process(node.pid) for node in cluster.nodes]) - server) / length
                return sum(one.memory_info().rss for one in family), used, served

        with peer(settings, {}) as process:
            resident, used, served = asyncio.run(under_load(process))
    return {
        "tasks_per_s": rate,
        "peer_memory_mb": round(resident / 1e6),
        "peer_processors": round(used, 3),
        "server_processors": round(served, 3),
    }


async def _one(mesh: Mesh, number: int) -> None:
    await (await mesh.submit(echo, "x" * 128)).result()


def _processor_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def predicted(results: int, nodes: int) -> dict[str, Any]:
    """What `mesh doctor --rate` says of so many results."""
    load = Load(results, VALUE_BYTES + 2, 1, -1, 1, nodes)
    told = predict(load)
    each = {"stored": told.stream_bytes, "disk": told.disk_bytes, "memory": told.memory_bytes}
    return {"what": "predicted for a result", **{name: round(value / results) for name, value in each.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="kinds,capabilities,peers")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--kind", default="", help="only those with this in their name")
    parser.add_argument("--sync", default="always")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each line")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.peer:
        asyncio.run(Peer(agent.hosted, settings=Settings(**json.loads(wanted.peer))).run())
        return 0
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        del os.environ[name]
    only = wanted.only.split(",")
    rows: list[Callable[[], dict[str, Any]]] = []
    if "kinds" in only:
        names = [name for name in KINDS if wanted.kind in name]
        rows += [partial(kind, name, wanted.count, wanted.nodes, wanted.sync) for name in names]
        rows.append(partial(predicted, wanted.count, wanted.nodes))
    if "capabilities" in only:
        rows += [partial(capabilities, count, wanted.nodes) for count in CAPABILITIES]
    if "peers" in only:
        rows += [partial(peers, rate, wanted.nodes) for rate in RATES]
    for row in rows:
        told = row()
        line = json.dumps(told) if wanted.json else "  ".join(f"{key} {value}" for key, value in told.items())
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
