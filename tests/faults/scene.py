"""Where the fault tests play: a server of its own, peers as processes, a client, and one recorded history."""

import os
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from mesh.bus import topology
from mesh.client import Mesh
from mesh.local.server import LocalServer, local_server
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.cluster import Cluster, local_cluster
from mesh.testing.faults import Scene
from mesh.testing.fleet import Fleet
from mesh.testing.history import History, What
from mesh.testing.kill_points import Point
from mesh.testing.witness import QUIET_WITHIN_S, ask, findings, listening
from tests.faults.workload import Orders

__all__ = ["ACK_WAIT_S", "QUIET_WITHIN_S", "ask", "findings", "scene", "seed", "settings"]

ROOT = Path(__file__).resolve().parents[2]
SEED_VARIABLE = "MESH_SEED"
ACK_WAIT_S = 1.5
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
            await topology.ensure(client.bus, topology.of_mesh(ours))
            async with listening(client.bus, history), fleet.running():
                await eventually(lambda: len(history.read(What.READY)) >= peers, within_s=READY_WITHIN_S)
                yield Scene(fleet, server, client, history, random.Random(seed))


def _environment(ours: Settings) -> dict[str, str]:
    told = ours.model_dump(mode="json", exclude_none=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**kept, **{f"MESH_{name.upper()}": str(value) for name, value in told.items()}}
