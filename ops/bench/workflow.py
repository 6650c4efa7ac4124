"""What waiting costs beside a bare submit-and-wait, in one call, in turns, on one server.

    python -m ops.bench.workflow [--children 1000 10000] [--cycles 500] [--parked 100000] [--json] [--profile FOLDER]

*Bare* is a client that submits `echo` and waits for its result, one at a time or 256 at once. Against it: durable
calls and steps one after the other in a handler, a `ctx.map` of as many children as the client maps, the rerun of
a handler whose children are all done, and a task that parks on a signal and is woken. Two peer processes serve
what is asked, a third one the handlers that ask; durable file storage (`sync_interval` 1 s).

`--parked` leaves that many tasks parked on a signal, tells what they cost in memory, and wakes some of them.
`--profile` has each peer write a cProfile there when it ends.
"""

import argparse
import asyncio
import cProfile
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import psutil

from mesh import Agent, Context, Mesh, Transient
from mesh.bus import topology
from mesh.local.server import LocalServer, local_server
from mesh.peer import Peer
from mesh.settings import Settings

SERVING_PEERS = 2
IN_FLIGHT = 256
WOKEN = 1_000
PARKED_WITHIN_S = 600.0
PAYLOAD = "x" * 112

serving = Agent("serving", version="1")
asking = Agent("asking", version="1", calls=["echo"])


@serving.handles("echo", concurrency=100, timeout_s=30)
async def echo(text: str) -> str:
    return text


@serving.handles("await-signal", concurrency=100, timeout_s=30)
async def await_signal(number: int, ctx: Context) -> int:
    return number + await ctx.signal("go", returns=int)


@asking.handles("call-in-turn", timeout_s=600)
async def call_in_turn(count: int, ctx: Context) -> float:
    began = time.perf_counter()
    for number in range(count):
        await ctx.call(echo, f"{number:016}{PAYLOAD}")
    return time.perf_counter() - began


@asking.handles("step-in-turn", timeout_s=600)
async def step_in_turn(count: int, ctx: Context) -> tuple[float, float]:
    """Seconds that the steps took, and that the second run took to have their values again."""

    async def nothing(text: str) -> str:
        return text

    began = time.perf_counter()
    for number in range(count):
        await ctx.step(f"step-{number}", nothing, PAYLOAD)
    took_s = time.perf_counter() - began
    first_s = await ctx.step("took", lambda: took_s)
    if ctx.attempt == 1:
        raise Transient("once more, over what is on record", after_s=0)
    return first_s, took_s


@asking.handles("map-twice", timeout_s=600)
async def map_twice(count: int, ctx: Context) -> float:
    """Seconds that the second run took to have every child's value again."""
    began = time.perf_counter()
    values = await ctx.map(echo, texts(count), in_flight=IN_FLIGHT)
    assert len(values) == count
    if ctx.attempt == 1:
        raise Transient("once more, over what is on record", after_s=0)
    return time.perf_counter() - began


@asking.handles("map-once", timeout_s=600)
async def map_once(count: int, ctx: Context) -> float:
    began = time.perf_counter()
    assert len(await ctx.map(echo, texts(count), in_flight=IN_FLIGHT)) == count
    return time.perf_counter() - began


def texts(count: int) -> Iterable[str]:
    return (f"{number:016}{PAYLOAD}" for number in range(count))


async def compare(server: LocalServer, settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Each against a bare submit-and-wait that ran just before it."""
    async with Mesh.connect(settings=settings) as mesh:
        every: tuple[tuple[str, Any], ...] = (
            (echo.name, PAYLOAD),
            (call_in_turn.name, 1),
            (step_in_turn.name, 1),
            (map_once.name, 1),
        )
        for capability, payload in every:
            async with asyncio.timeout(30):
                await (await mesh.submit(capability, payload)).result()
        await mapped(mesh, 2_000)
        await (await mesh.submit(map_once, 2_000)).result()
        found: dict[str, Any] = await in_turn(mesh, options)
        for children in options.children:
            found |= await fanned(mesh, children, options.rounds)
        found |= await cycles(mesh, options.cycles)
        if options.parked:
            found["parked"] = await parked(mesh, server, options)
        return found


async def in_turn(mesh: Mesh, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds a call, a step and the replay of a step, one after the other."""
    bare, calls, steps, replays = [], [], [], []
    for _ in range(options.rounds):
        began = time.perf_counter()
        for _ in range(options.calls):
            await (await mesh.submit(echo, PAYLOAD)).result()
        bare.append((time.perf_counter() - began) * 1e3 / options.calls)
        calls.append(await (await mesh.submit(call_in_turn, options.calls)).result() * 1e3 / options.calls)
        first_s, replay_s = await (await mesh.submit(step_in_turn, options.calls)).result()
        steps.append(first_s * 1e3 / options.calls)
        replays.append(replay_s * 1e3 / options.calls)
    bare_ms, call_ms, step_ms, replay_ms = map(statistics.median, (bare, calls, steps, replays))
    return {
        "bare_ms": round(bare_ms, 3),
        "call_ms": round(call_ms, 3),
        "call_ratio": round(call_ms / bare_ms, 2),
        "step_ms": round(step_ms, 3),
        "step_ratio": round(step_ms / bare_ms, 2),
        "step_replay_ms": round(replay_ms, 3),
    }


async def fanned(mesh: Mesh, children: int, rounds: int) -> dict[str, float]:
    """Children per second of a durable map beside a client's, and what replaying them takes."""
    bare, durable, replays = [], [], []
    for _ in range(rounds):
        bare.append(children / await mapped(mesh, children))
        durable.append(children / await (await mesh.submit(map_once, children)).result())
        replays.append(await (await mesh.submit(map_twice, children)).result())
    rate, bare_rate = statistics.median(durable), statistics.median(bare)
    return {
        f"map_{children}_per_s": round(rate),
        f"bare_map_{children}_per_s": round(bare_rate),
        f"map_{children}_ratio": round(rate / bare_rate, 2),
        f"replay_{children}_s": round(statistics.median(replays), 3),
    }


async def mapped(mesh: Mesh, count: int) -> float:
    """Seconds that a client's map takes."""
    began = time.perf_counter()
    async for item in mesh.map(echo, texts(count), in_flight=IN_FLIGHT):
        assert item.is_done
    return time.perf_counter() - began


async def cycles(mesh: Mesh, count: int) -> dict[str, float]:
    """A task that parks and is woken: from the signal to its result, one at a time and all at once."""
    keys = [f"cycle-{os.getpid()}-{number}" for number in range(count)]
    handles = await submitted(mesh, keys)
    await until_parked(mesh, count)
    waits, bare = [], []
    half = count // 2
    for key, handle in zip(keys[:half], handles[:half], strict=True):
        began = time.perf_counter()
        async with asyncio.TaskGroup() as fibers:
            fibers.create_task(handle.result())
            await asyncio.sleep(0)
            await mesh.signal(await_signal, key, "go", 1)
        waits.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        await (await mesh.submit(echo, PAYLOAD)).result()
        bare.append((time.perf_counter() - began) * 1e3)
    rest = dict(zip(keys[half:], handles[half:], strict=True))
    began = time.perf_counter()
    await at_once(lambda key: wake_and_wait(mesh, key, rest[key]), rest)
    rate = len(rest) / (time.perf_counter() - began)
    wake_ms, bare_ms = statistics.median(waits), statistics.median(bare)
    return {
        "wake_ms": round(wake_ms, 2),
        "wake_p99_ms": round(sorted(waits)[int(len(waits) * 0.99)], 2),
        "wake_ratio": round(wake_ms / bare_ms, 1),
        "wakes_per_s": round(rate),
    }


async def parked(mesh: Mesh, server: LocalServer, options: argparse.Namespace) -> dict[str, Any]:
    """What tasks cost while they wait, and how fast some of them are woken."""
    settings = mesh.bus.settings
    peers = [psutil.Process(pid) for pid in options.pids]
    broker = psutil.Process(server.pid)
    before = resident(peers), resident([broker]), await stored_bytes(mesh)
    keys = [f"parked-{os.getpid()}-{number}" for number in range(options.parked)]
    began = time.perf_counter()
    await submitted(mesh, keys)
    await until_parked(mesh, options.parked)
    took_s = time.perf_counter() - began
    after = resident(peers), resident([broker]), await stored_bytes(mesh)
    await asyncio.sleep(5)
    settled = resident(peers), resident([broker])
    sample = keys[:: max(1, len(keys) // WOKEN)][:WOKEN]
    began = time.perf_counter()
    await at_once(lambda key: wake_and_wait(mesh, key, mesh.handle(await_signal, key)), sample)
    woken_s = time.perf_counter() - began
    return {
        "tasks": options.parked,
        "peers": len(peers),
        "parked_per_s": round(options.parked / took_s),
        "peers_mb_before": round(before[0] / 2**20),
        "peers_mb_after": round(after[0] / 2**20),
        "peers_mb_5_s_later": round(settled[0] / 2**20),
        "server_mb_before": round(before[1] / 2**20),
        "server_mb_5_s_later": round(settled[1] / 2**20),
        "stored_bytes_per_task": round((after[2] - before[2]) / options.parked),
        "woken": len(sample),
        "woken_per_s": round(len(sample) / woken_s),
        "prefix": settings.prefix,
    }


async def submitted(mesh: Mesh, keys: list[str]) -> list[Any]:
    """Tasks that will wait for a signal, each under a key, so that others can signal them."""
    handles: dict[str, Any] = {}

    async def submit(key: str) -> None:
        handles[key] = await mesh.submit(await_signal, 0, key=key)

    await at_once(submit, keys)
    return [handles[key] for key in keys]


async def wake_and_wait(mesh: Mesh, key: str, handle: Any) -> None:
    await mesh.signal(await_signal, key, "go", 1)
    assert await handle.result(within_s=120) == 1


async def at_once(act: Callable[[str], Awaitable[Any]], keys: Iterable[str]) -> None:
    """Do it for each key, `IN_FLIGHT` at a time."""
    todo = iter(keys)

    async def one_after_the_other() -> None:
        for key in todo:
            await act(key)

    async with asyncio.TaskGroup() as fibers:
        for _ in range(IN_FLIGHT):
            fibers.create_task(one_after_the_other())


async def until_parked(mesh: Mesh, count: int) -> None:
    """Until no task of the capability is queued or in a peer's hands."""
    subjects = mesh.bus.subjects
    async with asyncio.timeout(PARKED_WITHIN_S):
        while True:
            consumer = await mesh.bus.api(f"CONSUMER.INFO.{subjects.stream}.await-signal")
            if not consumer["num_pending"] and not consumer["num_ack_pending"]:
                return
            await asyncio.sleep(0.05 if count < 10_000 else 1.0)


async def stored_bytes(mesh: Mesh) -> int:
    """Bytes in the mesh's streams."""
    subjects = mesh.bus.subjects
    total = 0
    for stream in (subjects.stream, *await topology.timer_streams(mesh.bus)):
        info: dict[str, Any] = await mesh.bus.api(f"STREAM.INFO.{stream}")
        total += info["state"]["bytes"]
    return total


def resident(processes: list[psutil.Process]) -> int:
    """Resident bytes of processes, and of those below them."""
    return sum(one.memory_info().rss for process in processes for one in (process, *process.children(recursive=True)))


class Worker:
    """A peer process until left."""

    def __init__(self, kind: str, url: str, prefix: str, profile: Path | None) -> None:
        command = [sys.executable, "-m", "ops.bench.workflow", "--worker", kind, url, prefix]
        if profile is not None:
            command += ["--profile", str(profile)]
        self._is_profiled = profile is not None
        self._process = subprocess.Popen(command)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM if self._is_profiled else signal.SIGKILL)
        self._process.wait()


def work(kind: str, url: str, prefix: str, profile: Path | None) -> None:
    agent = {"serving": serving, "asking": asking}[kind]
    peer = Peer(agent.hosted, settings=_settings(url, prefix))
    profiler = cProfile.Profile() if profile is not None else None
    with profiler or nullcontext():
        _run(peer.run())
    if profiler is not None and profile is not None:
        profiler.dump_stats(profile / f"{kind}-{os.getpid()}.pstats")


def _settings(url: str, prefix: str) -> Settings:
    return Settings(nats_url=url, prefix=prefix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--children", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parked", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, url, prefix = options.worker
        work(kind, url, prefix, options.profile)
        return
    if options.profile is not None:
        options.profile.mkdir(parents=True, exist_ok=True)
    prefix = f"wf{os.getpid()}"
    with local_server() as server, ExitStack() as stack:
        kinds = ["serving"] * SERVING_PEERS + ["asking"]
        workers = [stack.enter_context(Worker(kind, server.url, prefix, options.profile)) for kind in kinds]
        options.pids = [worker.pid for worker in workers[:SERVING_PEERS]]
        found: dict[str, Any] = _run(compare(server, _settings(server.url, prefix), options))
    print(json.dumps(found, indent=None if options.json else 2))


def _run(coroutine: Any) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(coroutine)


if __name__ == "__main__":
    main()
