"""Where the fault tests play: a server of its own, peers as processes, a client, and one recorded history."""

import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from contracts import headers as names
from contracts.outcome import Outcome
from contracts.subjects import Identity
from mesh.bus import topology
from mesh.bus.connection import Bus
from mesh.client import Mesh
from mesh.errors import BusUnavailable, PublishUnconfirmed
from mesh.local.server import LocalServer, local_server
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.cluster import Cluster, local_cluster
from mesh.testing.faults import Scene, repeated_until_done, submit_surely
from mesh.testing.fleet import Fleet
from mesh.testing.history import Entry, Findings, History, What, check, observe, text
from mesh.testing.kill_points import Point
from tests.faults.workload import Orders

ROOT = Path(__file__).resolve().parents[2]
SEED_VARIABLE = "MESH_SEED"
ACK_WAIT_S = 1.5
QUIET_WITHIN_S = 120.0
READY_WITHIN_S = 60.0


def seed() -> int:
    """The seed of this run, printed: MESH_SEED repeats one."""
    chosen = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(2**31))
    sys.stdout.write(f"{SEED_VARIABLE}={chosen}\n")
    return chosen


def settings(url: str, **changes: Any) -> Settings:
    """Short waits, so that take-overs are quick."""
    short = {"ack_wait_s": ACK_WAIT_S, "sweep_s": 2.0, "beat_s": 0.5, "grace_s": 0.2}
    return Settings(**{"nats_url": url, "prefix": "storm", "stream_bytes_max": 2**30, **short, **changes})


@asynccontextmanager
async def scene(
    folder: Path,
    *,
    peers: int,
    seed: int,
    points: Mapping[Point, float] | None = None,
    times_max: int | None = None,
    pauses: Mapping[Point, float] | None = None,
    workload: str = "tests.faults.workload",
    cluster: bool = False,
    **changes: Any,
) -> AsyncIterator[Scene]:
    """Everything a fault test needs, with `peers` of them ready; `changes` are to the settings.

    One server, or with `cluster` three nodes and three replicas of everything. What it leaves behind is in `folder`.
    """
    orders = Orders(
        history=str(folder / "history.jsonl"),
        seed=seed,
        release=str(folder / "release"),
        points=dict(points or {}),
        times_max=times_max,
        pauses=dict(pauses or {}),
    )
    standing: AbstractContextManager[LocalServer | Cluster]
    standing = local_cluster(folder / "store") if cluster else local_server(folder / "store")
    with standing as server, History(Path(orders.history)) as history:
        if isinstance(server, Cluster):
            await server.ready()
        ours = settings(server.url, replicas=len(server.nodes), **changes)
        fleet = Fleet(
            [sys.executable, "-m", workload, msgspec.json.encode(orders).decode()],
            size=peers,
            env=_environment(ours),
            cwd=ROOT,
            history=history,
            log=folder / "peers.log",
        )
        async with Mesh.connect(settings=ours) as client:
            await topology.ensure(client.bus, topology.streams(ours))
            await client.bus.nc.subscribe(ours.subjects.result_echo[1], cb=_recorder(client, history))
            async with fleet.running():
                await eventually(lambda: len(history.read(What.READY)) >= peers, within_s=READY_WITHIN_S)
                yield Scene(fleet, server, client, history, random.Random(seed))


async def ask(
    scene: Scene,
    capability: str,
    key: str,
    payload: Any = None,
    *,
    patience_s: float | None = None,
    is_doomed: bool = False,
    is_workflow: bool = False,
    deadline_s: float | None = None,
) -> Outcome:
    """Submit a task until that is confirmed, wait for its outcome, and record both."""
    task = Identity(capability, key)
    scene.history.add(Entry(What.ATTEMPTED, task=str(task), is_doomed=is_doomed, is_workflow=is_workflow))
    if not is_doomed:
        scene.submitted.append((task, payload))
    handle = await submit_surely(scene.client, task, payload, patience_s=patience_s, deadline_s=deadline_s)
    scene.history.add(Entry(What.CONFIRMED, task=str(task), is_new=handle.is_new))
    outcome: Outcome = await handle.outcome()
    scene.history.add(Entry(What.ANSWERED, task=str(task), status=outcome.status, value=text(outcome.value)))
    return outcome


async def findings(scene: Scene, *, within_s: float = QUIET_WITHIN_S) -> Findings:
    """What the history proves, once nothing moves any more or `within_s` seconds are over.

    On a cluster every replica is looked at: that they differ is a violation of its own.
    """
    bus = scene.client.bus

    async def is_quiet() -> bool:
        try:
            return await _is_quiet(bus)
        except (BusUnavailable, PublishUnconfirmed):
            # A consumer or a stream of a cluster has no leader now.
            return False

    # What is left when the time is over is for the checker to tell.
    with suppress(AssertionError):
        await eventually(is_quiet, within_s=within_s, every_s=0.2)
    await repeated_until_done(lambda: observe(bus, scene.history))
    found = check(scene.history.read())
    if isinstance(scene.server, Cluster):
        return replace(found, differing=await scene.server.differing(bus.subjects.stream))
    return found


async def _is_quiet(bus: Bus) -> bool:
    for pattern in (bus.subjects.tasks_of(), *bus.subjects.wakes_of("*")):
        if await topology.queued(bus, pattern):
            return False
    consumers = [f"{bus.subjects.stream}.{name}" for name in await topology.served(bus)]
    for name in (*consumers, f"{bus.subjects.timer_stream}.{topology.TIMEKEEPER}"):
        consumer = await bus.api(f"CONSUMER.INFO.{name}")
        if consumer["num_pending"] or consumer["num_ack_pending"]:
            return False
    # What is observed next may be read from any replica.
    info = await bus.api(f"STREAM.INFO.{bus.subjects.stream}")
    replicas = info.get("cluster", {}).get("replicas") or ()
    return all(replica["current"] and not replica.get("lag") for replica in replicas)


def _recorder(client: Mesh, history: History) -> Callable[[Msg], Awaitable[None]]:
    async def record(message: Msg) -> None:
        task = client.bus.subjects.parse(message.subject).identity
        sequence = int((message.headers or {}).get(names.SEQUENCE, 0))
        history.add(Entry(What.ECHOED, task=str(task), sequence=sequence))

    return record


def _environment(ours: Settings) -> dict[str, str]:
    told = ours.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}}
