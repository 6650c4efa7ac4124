"""A cluster of nats-servers on 127.0.0.1, as the shipped cluster configuration sets it: `sync_interval: always`.

    with local_cluster() as cluster:
        await cluster.ready()
        settings = Settings(nats_url=cluster.url, replicas=len(cluster.nodes))
        leader = await cluster.leader_of(settings.subjects.stream)
        await asyncio.to_thread(cluster.nodes[leader].kill)
        await asyncio.to_thread(cluster.nodes[leader].restart)

A node is a `LocalServer`: it keeps its ports and its store over a restart.
"""

import asyncio
import json
import random
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mesh.bus.connection import Bus
from mesh.local.server import LocalServer
from mesh.settings import Settings

UNASSIGNED = (20_000, 32_000)
"""Below what Linux takes for outgoing connections and for port 0."""
NODES = 3
READY_WITHIN_S = 30.0
LEADER_WITHIN_S = 30.0
ASKED_AGAIN_S = 0.5
AGAIN_S = 0.1
NOT_FOUND = 404

_PROBE = "READY"
_COMPARED = ("messages", "bytes", "last_seq", "subjects")
_CONFIG = """\
server_name: {name}
cluster {{
  name: {cluster}
  listen: "127.0.0.1:{route_port}"
  routes: {routes}
  {advertise}
}}
"""


@dataclass(frozen=True, slots=True)
class Route:
    """How a node is reached by the others, and how it reaches them.

    `port` is where it listens for them. `others` are the addresses it connects to, `advertise` the one (host:port)
    that it tells the others; empty ones are filled in. With something between the nodes, a proxy for instance,
    both name that. `is_advertised`: clients are told the addresses of the other nodes.
    """

    port: int
    others: tuple[str, ...] = ()
    advertise: str = ""
    is_advertised: bool = True


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes that run, or were killed and can be restarted. All of them go on if one is away."""

    nodes: tuple[LocalServer, ...]

    @property
    def url(self) -> str:
        """The addresses of all nodes, as `MESH_NATS_URL` takes them."""
        return ",".join(self.urls)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    async def ready(self) -> None:
        """Wait until a stream can have a replica on every node.

        Raises:
            TimeoutError: that takes longer than `READY_WITHIN_S`.
        """
        probe = {"name": _PROBE, "subjects": ["ready"], "num_replicas": len(self.nodes)}
        async with asyncio.timeout(READY_WITHIN_S), Bus.connect(Settings(nats_url=self.url), "cluster") as bus:
            await _asked(bus, f"STREAM.CREATE.{_PROBE}", probe)
            await _asked(bus, f"STREAM.DELETE.{_PROBE}")

    async def leader_of(self, stream: str) -> int:
        """Which node leads a stream, by its place in `nodes`; waits while there is an election.

        Raises:
            TimeoutError: no node led within `LEADER_WITHIN_S`.
        """
        async with Bus.connect(Settings(nats_url=self.url), "cluster") as bus:
            return await stream_leader(bus, stream)

    async def differing(self, stream: str) -> tuple[str, ...]:
        """How the replicas of a stream differ, in words; each node leads it in turn to tell what it keeps.

        Nobody may write meanwhile.

        Raises:
            TimeoutError: a node did not come to lead within `LEADER_WITHIN_S`.
        """
        kept: dict[str, dict[str, Any]] = {}
        async with Bus.connect(Settings(nats_url=self.url), "cluster") as bus:
            for number in range(len(self.nodes)):
                state = await _state_as_leader(bus, stream, f"n{number}")
                kept[f"n{number}"] = {name: state.get(name) for name in _COMPARED}
        first = kept.pop("n0")
        return tuple(
            f"{node} has {name} {_told(state[name], first[name])}, n0 {_told(first[name], state[name])}"
            for node, state in kept.items()
            for name in _COMPARED
            if state[name] != first[name]
        )

    def kill(self) -> None:
        """End every node with SIGKILL, as a crash of all at once would."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """End every node in good order. Safe to repeat."""
        for node in self.nodes:
            node.stop()

    def restart(self) -> None:
        """Start every node again on its ports and its store."""
        for node in self.nodes:
            node.restart()


async def stream_leader(bus: Bus, stream: str) -> int:
    """As `Cluster.leader_of`, over a connection that is there."""
    async with asyncio.timeout(LEADER_WITHIN_S):
        while True:
            info = await _asked(bus, f"STREAM.INFO.{stream}")
            if leader := info.get("cluster", {}).get("leader"):
                return int(leader.removeprefix("n"))
            await asyncio.sleep(AGAIN_S)


async def _state_as_leader(bus: Bus, stream: str, node: str) -> dict[str, Any]:
    """What a node keeps of a stream, once it leads that."""
    async with asyncio.timeout(LEADER_WITHIN_S):
        while True:
            info = await _asked(bus, f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
            if info.get("cluster", {}).get("leader") == node:
                state: dict[str, Any] = info["state"]
                return state
            body = msgspec.json.encode({"placement": {"preferred": node}})
            await bus.gather(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", body, within_s=ASKED_AGAIN_S, enough=1)
            await asyncio.sleep(AGAIN_S)


def _told(here: Any, there: Any) -> str:
    """A figure, or of many subjects those that the other node lacks."""
    if not isinstance(here, dict) or not isinstance(there, dict):
        return str(here)
    more = sorted(here.keys() - there.keys())
    return f"{len(here)}, of these alone {len(more)}: {', '.join(more[:5])}"


@contextmanager
def local_cluster(
    folder: Path | None = None,
    *,
    nodes: int = NODES,
    sync_interval: str = "always",
    ports: Sequence[int] | None = None,
    routes: Sequence[Route] | None = None,
) -> Iterator[Cluster]:
    """A cluster until left; without a folder its nodes keep their stores in a temporary one.

    The nodes are started; `ready` says when they are a cluster. Client ports and routes are free ones, unless given.
    """
    wired = tuple(routes) if routes is not None else tuple(Route(port) for port in free_ports(nodes))
    listening = tuple(ports) if ports is not None else (-1,) * len(wired)
    started: list[LocalServer] = []
    with tempfile.TemporaryDirectory(prefix="mesh-cluster-") as scratch:
        try:
            for number, (port, route) in enumerate(zip(listening, wired, strict=True)):
                store = (folder or Path(scratch)) / f"n{number}"
                more = _configuration(number, route, wired)
                started.append(LocalServer.start(store, port=port, sync_interval=sync_interval, more=more))
            yield Cluster(tuple(started))
        finally:
            for node in started:
                node.stop()


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of 127.0.0.1 that nobody listens on now, and that no system gives out by itself until they are taken."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*UNASSIGNED)  # noqa: S311  # no secret
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in found:
                found.append(port)
    return tuple(found)


async def _asked(bus: Bus, endpoint: str, body: Any = None) -> dict[str, Any]:
    """The answer of an API endpoint, asked again while it is none or a refusal: where nobody leads nobody answers."""
    data = b"" if body is None else msgspec.json.encode(body)
    while True:
        for answer in await bus.gather(f"$JS.API.{endpoint}", data, within_s=ASKED_AGAIN_S, enough=1):
            told = msgspec.json.decode(answer, type=dict[str, Any])
            if told.get("error", {}).get("code") in (None, NOT_FOUND):
                return told
        await asyncio.sleep(AGAIN_S)


def _configuration(number: int, route: Route, wired: Sequence[Route]) -> str:
    others = route.others or tuple(f"nats://127.0.0.1:{other.port}" for other in wired if other is not route)
    advertise = [f"advertise: {json.dumps(route.advertise)}"] if route.advertise else []
    advertise += [] if route.is_advertised else ["no_advertise: true"]
    return _CONFIG.format(
        name=f"n{number}",
        cluster="mesh-local",
        route_port=route.port,
        routes=json.dumps(others),
        advertise="\n  ".join(advertise),
    )
