"""What clients see while a three-node cluster is restarted node by node, and while a mesh grows from 1 to 3 replicas.

    python -m ops.chaos.rolling [--how lame-duck,stop,replicas] [--json]

Three nodes on loopback, `sync_interval: always`, peers as processes, one client that asks one task after another and
one that keeps 50 in flight. `lame-duck` sends each node in turn what `nats-server --signal ldm` does, waits for its end
and starts it again, as a StatefulSet's update would; `stop` does so with SIGTERM. The next node goes when every replica
is current. `replicas` begins with one copy of everything, and has `mesh topology apply` make three. Told are, for each
node, the longest time in which no submission was confirmed and in which no result came, and what a task took at most;
over all: *lost* and *repeated* tasks.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import defaultdict

from mesh import Mesh
from mesh.bus import topology
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.cluster import Cluster, local_cluster
from ops.chaos.leader_kill import PREFIX, Seen, is_level, lost_of, peers, stalls, under_load

STEADY_S = 3.0
LEVEL_WITHIN_S = 120.0
HOW = ("lame-duck", "stop", "replicas")


async def restart_each(how: str, cluster: Cluster, watching: Mesh, seen: list[Seen]) -> list[dict[str, object]]:
    """Every node ended and started again, one after the other."""
    told: list[dict[str, object]] = []
    for number, node in enumerate(cluster.nodes):
        await asyncio.sleep(STEADY_S)  # what is measured is the time
        leads = await cluster.leader_of(watching.bus.subjects.stream) == number
        struck = time.monotonic()
        if how == "lame-duck":
            os.kill(node.pid, signal.SIGUSR2)
            await asyncio.to_thread(node.process.wait)
        else:
            await asyncio.to_thread(node.stop)
        ended = time.monotonic()
        await asyncio.to_thread(node.restart)
        await eventually(lambda: is_level(watching), within_s=LEVEL_WITHIN_S, every_s=0.2)
        until = time.monotonic()
        await asyncio.sleep(STEADY_S)  # what is measured is the time
        told.append(
            {
                "node": number,
                "led": leads,
                "ended_s": round(ended - struck, 1),
                "level_s": round(until - ended, 1),
                **stalls(seen, struck, time.monotonic()),
            }
        )
        sys.stderr.write(f"{told[-1]}\n")
    return told


async def grow(cluster: Cluster, watching: Mesh, seen: list[Seen]) -> list[dict[str, object]]:
    """One copy of everything becomes three."""
    await asyncio.sleep(STEADY_S)  # what is measured is the time
    struck = time.monotonic()
    applied = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mesh", "topology", "apply", "--capability", "echo"),
        env={
            **os.environ,
            "MESH_NATS_URL": cluster.url,
            "MESH_PREFIX": PREFIX,
            "MESH_REPLICAS": str(len(cluster.nodes)),
            "MESH_STREAM_BYTES_MAX": str(_settings(cluster.url, 1).stream_bytes_max),
        },
        stdout=sys.stderr,
    )
    if await applied.wait():
        raise SystemExit("`mesh topology apply` did not change the replicas")
    asked = time.monotonic()

    async def has_copies() -> bool:
        info = await watching.bus.api(f"STREAM.INFO.{watching.bus.subjects.stream}")
        return len(info["cluster"].get("replicas") or ()) == len(cluster.nodes) - 1 and await is_level(watching)

    await eventually(has_copies, within_s=LEVEL_WITHIN_S, every_s=0.2)
    until = time.monotonic()
    await asyncio.sleep(STEADY_S)  # what is measured is the time
    told: dict[str, object] = {
        "asked_s": round(asked - struck, 1),
        "level_s": round(until - asked, 1),
        **stalls(seen, struck, time.monotonic()),
    }
    return [told]


async def run(how: str, cluster: Cluster) -> dict[str, object]:
    """One way, under load from its begin to its end."""
    settings = _settings(cluster.url, 1 if how == "replicas" else len(cluster.nodes))
    seen = [Seen(), Seen()]
    stored: dict[str, set[int]] = defaultdict(set)
    async with Mesh.connect(settings=settings) as watching:
        async with under_load(watching, seen, stored):
            doing = grow(cluster, watching, seen) if how == "replicas" else restart_each(how, cluster, watching, seen)
            rounds = await doing
        lost = await lost_of(watching, seen)
    return {
        "how": how,
        "tasks": sum(len(one.confirmed) for one in seen),
        "lost": lost,
        "repeated": sum(len(sequences) > 1 for sequences in stored.values()),
        "failed_submissions": sum(one.failures for one in seen),
        "rounds": rounds,
    }


def _settings(url: str, replicas: int) -> Settings:
    return Settings(nats_url=url, prefix=PREFIX, replicas=replicas, stream_bytes_max=2**30)


async def _prepare(cluster: Cluster, replicas: int) -> None:
    await cluster.ready()
    settings = _settings(cluster.url, replicas)
    async with Mesh.connect(settings=settings) as mesh:
        await topology.ensure(mesh.bus, (*topology.of_mesh(settings), *topology.of_capability(settings, "echo")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--how", default=",".join(HOW), help="comma-separated")
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each")
    wanted = parser.parse_args()
    hows = wanted.how.split(",")
    if unknown := set(hows) - set(HOW):
        parser.error(f"--how: {', '.join(sorted(unknown))} is none of {', '.join(HOW)}")
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        del os.environ[name]
    is_bad = False
    for how in hows:
        with local_cluster() as cluster:
            asyncio.run(_prepare(cluster, 1 if how == "replicas" else len(cluster.nodes)))
            with peers(cluster.url, wanted.peers):
                found = asyncio.run(run(how, cluster))
        is_bad = is_bad or bool(found["lost"] or found["repeated"])
        sys.stdout.write((json.dumps(found) if wanted.json else json.dumps(found, indent=1)) + "\n")
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
