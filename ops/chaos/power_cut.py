"""What a power cut takes away of what the mesh had accepted, for each way of syncing, and what syncing costs.

    python -m ops.chaos.power_cut [--seed 7] [--rounds 3] [--nodes 1] [--settings always,1s,2m] [--json]
    python -m ops.chaos.power_cut --cost [--tasks 3000] [--rounds 3] [--json]

A real server (or all three nodes of a cluster) keeps its store on a disk whose power can be cut (`mesh.testing.power`);
a client has 100 tasks in flight on two peer processes. At a seeded instant everything is stopped, the power is cut, and
every process is killed: a rack goes dark. Then the file system recovers, the server starts on what is left, and what
the client had been told is compared with what stands: *accepted* is a submission that was confirmed, *answered* one
whose result was told. With nothing lost fresh peers answer what was under way, and every task is looked at again.

What the mesh itself stands on, its streams and consumers, is synced before the load begins: it stands since long ago.

`--cost` measures the settings side by side, in turns, one server and three replicas, as ratios to the default (2m).
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.subjects import Identity
from mesh import Agent, Mesh
from mesh.bus import topology
from mesh.bus.commit import read_outcome
from mesh.bus.connection import Bus
from mesh.bus.records import read_many
from mesh.errors import MeshError
from mesh.local.server import LocalServer, local_server
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing.cluster import Cluster, local_cluster
from mesh.testing.fleet import send_signal
from mesh.testing.power import Disk, disk
from ops.bench import throughput

SETTINGS = ("always", "1s", "2m")
DEFAULT = "2m"
PEERS = 2
IN_FLIGHT = 100
RUNS_FOR_S = (1.0, 3.0)
FINISHES_WITHIN_S = 120.0
PREFIX = "dark"

agent = Agent("dark", version="1")


@agent.handles("echo", concurrency=50, timeout_s=60)
async def echo(number: int) -> int:
    await asyncio.sleep(0.005)
    return number


@dataclass
class Told:
    """What the client had been told when the lights went out."""

    accepted: list[str] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)


@dataclass
class Cut:
    """One power cut: how much was known, and what of it does not stand."""

    sync_interval: str
    nodes: int
    seed: int
    accepted: int
    answered: int
    accepted_lost: int
    answered_lost: int
    finished: int | None = None
    """Accepted tasks that stand answered after fresh peers went on; None where something was lost."""


async def power_cut(folder: Path, *, sync_interval: str, nodes: int, seed: int) -> Cut:
    """Cut the power of a mesh under load, and compare what was told with what stands.

    Raises:
        SetupError: file systems cannot be made or mounted here.
    """
    dice = random.Random(seed)
    told = Told()
    with disk(folder) as power, _server(power.folder / "store", sync_interval, nodes) as server:
        if isinstance(server, Cluster):
            await server.ready()
        settings = _settings(server.url, replicas=nodes)
        with _peers(settings) as pids:
            for_s = dice.uniform(*RUNS_FOR_S)
            await _load_until(settings, told, power, for_s=for_s, cut=lambda: _go_dark(server, power, pids))
        await asyncio.to_thread(power.restore)
        await asyncio.to_thread(server.restart)
        accepted_lost, answered_lost = await _missing(settings, told)
        finished: int | None = None
        if not accepted_lost and not answered_lost:
            with _peers(settings):
                finished = await _finished(settings, told)
    return Cut(
        sync_interval, nodes, seed, len(told.accepted), len(told.answered), accepted_lost, answered_lost, finished
    )


async def _load_until(settings: Settings, told: Told, power: Disk, *, for_s: float, cut: Callable[[], None]) -> None:
    """Keep `IN_FLIGHT` tasks out for a while, then cut; what is told after that is told to nobody."""
    dark = asyncio.Event()

    async def keep_asking(mesh: Mesh, name: int) -> None:
        number = 0
        while True:
            number += 1
            key = f"t{name}-{number}"
            handle = await mesh.submit(echo, number, key=key)
            if dark.is_set():
                return
            told.accepted.append(key)
            value = await handle.result()
            if dark.is_set():
                return
            told.answered[key] = value

    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh.connect(settings=settings))
        await topology.ensure(mesh.bus, topology.of_mesh(settings))
        await (await mesh.submit(echo, 0, key="first")).result()
        # The mesh itself stands since long ago, whatever the setting.
        await asyncio.to_thread(power.settle)
        async with asyncio.TaskGroup() as fibers:
            asking = [fibers.create_task(keep_asking(mesh, name)) for name in range(IN_FLIGHT)]
            await asyncio.sleep(for_s)  # the instant of the cut is the seed's
            # Nothing is awaited from here on: what the client was not told yet it is never told.
            dark.set()
            cut()
            for fiber in asking:
                fiber.cancel()


def _go_dark(server: LocalServer | Cluster, power: Disk, peers: Sequence[int]) -> None:
    for node in server.nodes:
        send_signal(node.pid, signal.SIGSTOP)
    power.cut()
    for pid in peers:
        send_signal(pid, signal.SIGKILL)
    server.kill()


async def _missing(settings: Settings, told: Told) -> tuple[int, int]:
    """How many accepted tasks stand in no state, and how many told results do not stand."""
    async with Bus.connect(settings, "after") as bus:
        info = await _until_it_answers(bus, settings)
        if info is None:
            return len(told.accepted), len(told.answered)
        subjects = bus.subjects
        results: dict[str, int] = {}
        lost = 0
        for key in told.accepted:
            task = Identity("echo", key)
            result, *others = await read_many(bus, [subjects.result(task), *subjects.unsettled(task)])
            if result is not None:
                results[key] = json.loads(bytes(read_outcome(result).value))  # type: ignore[arg-type]
            elif not any(others):
                lost += 1
        return lost, sum(results.get(key) != value for key, value in told.answered.items())


async def _until_it_answers(bus: Bus, settings: Settings) -> dict[str, Any] | None:
    """The stream's account of itself once it has a leader; None where the server knows no stream."""
    stream = topology.streams(settings)[0]
    async with asyncio.timeout(60.0):
        while True:
            with suppress(MeshError):
                return await topology.inspect(bus, stream)
            await asyncio.sleep(0.1)


async def _finished(settings: Settings, told: Told) -> int:
    """How many accepted tasks are answered once peers are back."""
    async with Mesh.connect(settings=settings) as mesh, asyncio.timeout(FINISHES_WITHIN_S):
        # The same key again starts nothing: it gives a handle on what stands.
        handles = [await mesh.submit(echo, int(key.partition("-")[2]), key=key) for key in told.accepted]
        return sum([await handle.result() == int(handle.task.id.partition("-")[2]) for handle in handles])


@contextmanager
def _server(store: Path, sync_interval: str, nodes: int) -> Iterator[LocalServer | Cluster]:
    if nodes == 1:
        with local_server(store, sync_interval=sync_interval) as server:
            yield server
    else:
        with local_cluster(store, nodes=nodes, sync_interval=sync_interval) as cluster:
            yield cluster


@contextmanager
def _peers(settings: Settings) -> Iterator[list[int]]:
    with ExitStack() as stack:
        pids = []
        for _ in range(PEERS):
            command = [sys.executable, "-m", "ops.chaos.power_cut", "--peer", f"{settings.replicas}"]
            environment = {**os.environ, "MESH_NATS_URL": settings.nats_url or ""}
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            pids.append(process.pid)
        yield pids


def _settings(url: str, *, replicas: int) -> Settings:
    return Settings(nats_url=url, prefix=PREFIX, replicas=replicas, stream_bytes_max=256 * 2**20)


# What syncing costs.


async def costs(*, tasks: int, rounds: int) -> dict[str, dict[str, float]]:
    """Tasks per second and the round trip for each setting, one server and three replicas, in turns."""
    kinds = [(setting, nodes) for nodes in (1, 3) for setting in (DEFAULT, "1s", "always")]
    rates: dict[str, list[float]] = {}
    trips: dict[str, list[float]] = {}
    payload = "x" * 126
    async with AsyncExitStack() as stack:
        calls = {}
        for setting, nodes in kinds:
            name = f"{setting} r{nodes}"
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-cost-")))
            server = stack.enter_context(_server(folder, setting, nodes))
            if isinstance(server, Cluster):
                await server.ready()
            prefix = f"cost{nodes}"
            for _ in range(PEERS):
                stack.enter_context(throughput.Worker("peer", server.url, prefix, nodes, throughput.BATCH))
            mesh = await stack.enter_async_context(
                Mesh.connect(settings=throughput.settings_of(server.url, prefix, nodes))
            )

            async def call(mesh: Mesh = mesh) -> None:
                await (await mesh.submit(throughput.echo, payload)).result()

            await call()
            calls[name] = call
            rates[name], trips[name] = [], []
        for call in calls.values():
            await throughput.measure(call, throughput.WARM_UP)
        for _ in range(rounds):
            for name, call in calls.items():
                trips[name].append((await throughput.round_trips(call))[0])
                rates[name].append(await throughput.measure(call, tasks))
    return {
        name: {
            "tasks_per_s": round(statistics.median(rates[name])),
            "rtt_p50_ms": round(statistics.median(trips[name]), 3),
            "rate_to_default": round(_ratio(rates[name], rates[f"{DEFAULT} r{name[-1]}"]), 3),
            "rtt_to_default": round(_ratio(trips[name], trips[f"{DEFAULT} r{name[-1]}"]), 3),
        }
        for name in calls
    }


def _ratio(these: Sequence[float], those: Sequence[float]) -> float:
    return statistics.median(this / that for this, that in zip(these, those, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="values of sync_interval, comma-separated")
    parser.add_argument("--cost", action="store_true", help="measure what syncing costs instead")
    parser.add_argument("--tasks", type=int, default=3_000, help="tasks a round, with --cost")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peer", metavar="REPLICAS", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.peer:
        settings = _settings(os.environ["MESH_NATS_URL"], replicas=wanted.peer)
        asyncio.run(Peer(agent.hosted, settings=settings).run())
        return 0
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        del os.environ[name]
    if wanted.cost:
        found = asyncio.run(costs(tasks=wanted.tasks, rounds=wanted.rounds))
        _tell(found, found.items(), is_json=wanted.json)
        return 0
    cuts: list[Cut] = []
    for round_ in range(wanted.rounds):
        for setting in wanted.settings.split(","):
            with tempfile.TemporaryDirectory(prefix="mesh-dark-") as folder:
                run = power_cut(Path(folder), sync_interval=setting, nodes=wanted.nodes, seed=wanted.seed + round_)
                cuts.append(asyncio.run(run))
                sys.stderr.write(f"{cuts[-1]}\n")
    summary = {
        setting: {
            figure: sum(getattr(cut, figure) for cut in cuts if cut.sync_interval == setting)
            for figure in ("accepted", "answered", "accepted_lost", "answered_lost")
        }
        for setting in wanted.settings.split(",")
    }
    told = {"nodes": wanted.nodes, "seed": wanted.seed, "cuts": wanted.rounds, **summary}
    _tell(told, summary.items(), is_json=wanted.json)
    kept = summary.get("always", {})
    unfinished = [cut for cut in cuts if cut.sync_interval == "always" and cut.finished != cut.accepted]
    return 1 if kept.get("accepted_lost") or kept.get("answered_lost") or unfinished else 0


def _tell(found: Any, rows: Any, *, is_json: bool) -> None:
    if is_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for name, figures in rows:
            sys.stdout.write(f"{name:10}  " + "  ".join(f"{key} {value}" for key, value in figures.items()) + "\n")


if __name__ == "__main__":
    sys.exit(main())
