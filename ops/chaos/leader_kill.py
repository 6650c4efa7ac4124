"""What clients of a three-node cluster see when the node that leads the mesh's stream dies, or steps down.

    python -m ops.chaos.leader_kill [--rounds 5] [--how kill,step-down,kill-follower,kill-peer] [--json]

Three nodes on loopback, three replicas, `sync_interval: always`; peers as processes. One client submits one task
after another and waits for each, another keeps 50 in flight. In each round the leader is killed with SIGKILL and comes
back after some seconds, or is told to step down; to compare, another node is killed, or a peer, which is replaced. Told
are, for each round, the longest time in which no submission was confirmed, the longest in which no result came, and
what a single task took at most; in the end, over all tasks: confirmed ones without a result (*lost*), and results that
were stored twice (*repeated*).
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field

from contracts import headers as names
from contracts.subjects import Identity
from mesh import Agent, Mesh
from mesh.bus import topology
from mesh.bus.records import read_many
from mesh.bus.replies import ApiError
from mesh.errors import BusUnavailable, Overloaded, PublishUnconfirmed
from mesh.peer import Peer
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.testing.cluster import Cluster, local_cluster, stream_leader

IN_FLIGHT = 50
PAGE = 500
STEADY_S = 3.0
AWAY_S = 2.0
MOVES_WITHIN_S = 60.0
PREFIX = "failover"
HOW = ("kill", "step-down")
EVERY_HOW = (*HOW, "kill-follower", "kill-peer")

agent = Agent("failover", version="1")


@agent.handles("echo", concurrency=50, timeout_s=60)
async def echo(number: int) -> int:
    await asyncio.sleep(0.005)
    return number


@dataclass
class Seen:
    """What one client saw: when each submission was confirmed, when each result came, and how long each took."""

    confirmed: dict[str, float] = field(default_factory=dict)
    answered: dict[str, float] = field(default_factory=dict)
    took: list[tuple[float, float, float]] = field(default_factory=list)
    """When a task was begun, and the seconds until it was confirmed and until its result came."""
    failures: int = 0
    """Submissions that were told unconfirmed or unavailable, and were repeated."""


@dataclass(frozen=True)
class Round:
    """One leader less."""

    how: str
    elected_s: float
    """Until another node led the stream; 0 where the leader stayed."""
    submit_stall_s: float
    result_stall_s: float
    task_max_s: float
    """What one task took at most, from its submission to its result."""


async def ask(mesh: Mesh, seen: Seen, key: str, number: int) -> None:
    """One task from its submission to its result, repeated as it is while nobody confirms it."""
    began = time.monotonic()
    while True:
        try:
            handle = await mesh.submit(echo, number, key=key)
            break
        except (BusUnavailable, PublishUnconfirmed, Overloaded):
            seen.failures += 1
    confirmed = seen.confirmed[key] = time.monotonic()
    await handle.result()
    answered = seen.answered[key] = time.monotonic()
    seen.took.append((began, confirmed - began, answered - began))


async def keep_asking(mesh: Mesh, seen: Seen, name: str, stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        await ask(mesh, seen, f"{name}-{number}", number)


def longest_gap(moments: list[float], since: float, until: float) -> float:
    """The longest time without any of the moments."""
    inside = [since, *sorted(moment for moment in moments if since < moment < until), until]
    return max(later - earlier for earlier, later in itertools.pairwise(inside))


async def strike(how: str, cluster: Cluster, staff: "Peers", watching: Mesh, seen: list[Seen]) -> Round:
    """Have somebody go, wait until things move again, and tell what was seen meanwhile."""
    stream = watching.bus.subjects.stream
    leader = await cluster.leader_of(stream)
    await asyncio.sleep(STEADY_S)  # what is measured is the time
    killed = {"kill": leader, "kill-follower": (leader + 1) % len(cluster.nodes)}.get(how)
    struck = time.monotonic()
    if killed is not None:
        await asyncio.to_thread(cluster.nodes[killed].kill)
    elif how == "kill-peer":
        staff.replace_one()
    else:
        await watching.bus.api(f"STREAM.LEADER.STEPDOWN.{stream}")
    if how in ("kill", "step-down"):
        while await stream_leader(watching.bus, stream) == leader:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)
    elected = time.monotonic() if how in ("kill", "step-down") else struck

    def all_move() -> bool:
        return all(max(one.answered.values()) > elected and one.took[-1][0] > elected for one in seen)

    await eventually(all_move, within_s=MOVES_WITHIN_S)
    await asyncio.sleep(AWAY_S)  # what is measured is the time
    if killed is not None:
        await asyncio.to_thread(cluster.nodes[killed].restart)
    await asyncio.sleep(STEADY_S)  # what is measured is the time
    await eventually(lambda: is_level(watching), within_s=MOVES_WITHIN_S, every_s=0.2)
    until = time.monotonic()
    return Round(
        how=how,
        elected_s=round(elected - struck, 2),
        **stalls(seen, struck, until),
    )


def stalls(seen: list[Seen], since: float, until: float) -> dict[str, float]:
    """The longest times without a confirmation and without a result, and what one task took at most."""
    return {
        "submit_stall_s": round(max(longest_gap(list(one.confirmed.values()), since, until) for one in seen), 2),
        "result_stall_s": round(max(longest_gap(list(one.answered.values()), since, until) for one in seen), 2),
        "task_max_s": round(max(took for one in seen for began, _, took in one.took if began + took > since), 2),
    }


@asynccontextmanager
async def under_load(watching: Mesh, seen: list[Seen], stored: dict[str, set[int]]) -> AsyncIterator[None]:
    """Two clients until left: one asks one task after another, one keeps many in flight.

    Each writes down what it sees; `stored` learns the sequence of every result record by its echo.
    """
    settings, stop = watching.bus.settings, asyncio.Event()

    def echoed(subject: str, _: bytes, headers: dict[str, str]) -> None:
        stored[subject].add(int(headers.get(names.SEQUENCE, 0)))

    async with (
        Mesh.connect(settings=settings) as one_by_one,
        Mesh.connect(settings=settings) as many_at_once,
        watching.bus.listening(watching.bus.subjects.result_echo[1], echoed),
        asyncio.TaskGroup() as fibers,
    ):
        await ask(one_by_one, Seen(), "first", 0)
        fibers.create_task(keep_asking(one_by_one, seen[0], "one", stop))
        for number in range(IN_FLIGHT):
            fibers.create_task(keep_asking(many_at_once, seen[1], f"many{number}", stop))
        await eventually(lambda: all(one.answered for one in seen), within_s=MOVES_WITHIN_S)
        yield
        stop.set()


async def lost_of(watching: Mesh, seen: list[Seen]) -> int:
    """How many tasks were confirmed of which there is no result."""
    records = [watching.bus.subjects.result(Identity("echo", key)) for one in seen for key in one.confirmed]
    lost = 0
    for start in range(0, len(records), PAGE):
        lost += (await read_many(watching.bus, records[start : start + PAGE])).count(None)
    return lost


async def is_level(mesh: Mesh) -> bool:
    """Whether every replica of the stream is there and current."""
    try:
        info = await mesh.bus.api(f"STREAM.INFO.{mesh.bus.subjects.stream}")
    except (ApiError, BusUnavailable, PublishUnconfirmed):
        return False
    replicas = info["cluster"].get("replicas") or ()
    return bool(info["cluster"].get("leader")) and all(one["current"] and not one.get("offline") for one in replicas)


async def run(cluster: Cluster, staff: "Peers", *, hows: Sequence[str], rounds: int) -> dict[str, object]:
    """So many rounds of each, and what they come to."""
    settings = _settings(cluster.url)
    seen = [Seen(), Seen()]
    stored: dict[str, set[int]] = defaultdict(set)
    told: list[Round] = []
    async with Mesh.connect(settings=settings) as watching:
        await topology.ensure(watching.bus, topology.of_mesh(settings))
        async with under_load(watching, seen, stored):
            for how in hows:
                for _ in range(rounds):
                    told.append(await strike(how, cluster, staff, watching, seen))
                    sys.stderr.write(f"{told[-1]}\n")
        lost = await lost_of(watching, seen)
        differing = await cluster.differing(watching.bus.subjects.stream)
    before = sorted(took for one in seen[:1] for _, _, took in one.took)
    return {
        "tasks": sum(len(one.confirmed) for one in seen),
        "lost": lost,
        "repeated": sum(len(sequences) > 1 for sequences in stored.values()),
        "unanswered": sum(len(one.confirmed) - len(one.answered) for one in seen),
        "differing_replicas": len(differing),
        "failed_submissions": sum(one.failures for one in seen),
        "round_trip_p50_ms": round(statistics.median(before) * 1e3, 2),
        **{
            how: {
                name: {"p50": round(statistics.median(figures), 2), "max": max(figures)}
                for name in ("elected_s", "submit_stall_s", "result_stall_s", "task_max_s")
                if (figures := [getattr(one, name) for one in told if one.how == how])
            }
            for how in hows
        },
        "rounds": [asdict(one) for one in told],
    }


class Peers:
    """Peers as processes."""

    def __init__(self, url: str, count: int) -> None:
        self._command = [sys.executable, "-m", "ops.chaos.leader_kill", "--peer", url]
        self._processes = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def replace_one(self) -> None:
        """Kill the oldest one, and start another, as an orchestrator would."""
        oldest = self._processes.pop(0)
        oldest.kill()
        oldest.wait()
        self._processes.append(self._start())

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@contextmanager
def peers(url: str, count: int) -> Iterator[Peers]:
    """Peers until left."""
    staff = Peers(url, count)
    try:
        yield staff
    finally:
        staff.kill()


def _settings(url: str) -> Settings:
    return Settings(nats_url=url, prefix=PREFIX, replicas=3, stream_bytes_max=2**30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--how", default=",".join(HOW), help=f"of {', '.join(EVERY_HOW)}, comma-separated")
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peer", metavar="URL", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.peer:
        asyncio.run(Peer(agent.hosted, settings=_settings(wanted.peer)).run())
        return 0
    hows = wanted.how.split(",")
    if unknown := set(hows) - set(EVERY_HOW):
        parser.error(f"--how: {', '.join(sorted(unknown))} is none of {', '.join(EVERY_HOW)}")
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        del os.environ[name]
    with local_cluster() as cluster:
        asyncio.run(cluster.ready())
        with peers(cluster.url, wanted.peers) as staff:
            found = asyncio.run(run(cluster, staff, hows=hows, rounds=wanted.rounds))
    sys.stdout.write((json.dumps(found) if wanted.json else json.dumps(found, indent=1)) + "\n")
    return 1 if found["lost"] or found["repeated"] or found["differing_replicas"] else 0


if __name__ == "__main__":
    sys.exit(main())
