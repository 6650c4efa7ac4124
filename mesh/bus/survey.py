"""What can be asked about a server and a mesh's streams, for people who look after them.

It needs an operator's rights: information about streams and all their consumers.
"""

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import nats.errors

from contracts.subjects import KEEPER, served_by
from mesh.bus import control, topology
from mesh.bus.connection import Bus
from mesh.bus.glance import standing
from mesh.bus.queues import bound_of
from mesh.bus.records import unix
from mesh.bus.replies import ApiError
from mesh.bus.topology import Difference, Spec
from mesh.errors import BusUnavailable, PermissionDenied, PublishUnconfirmed

ROUND_TRIPS = 7
FLUSH_WITHIN_S = 5
NO_BOUNDS: Mapping[str, int] = MappingProxyType({})
JETSTREAM_NOT_ENABLED = (10039, 10076)


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself. The API level is None where it runs without JetStream."""

    version: str
    api_level: int | None
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Stream:
    """The mesh's stream. Limits of -1 are none; `behind` names servers whose copy lags or is away."""

    replicas: int
    messages: int
    bytes: int
    messages_max: int
    bytes_max: int
    behind: tuple[str, ...]
    server_ahead_s: float
    """The server's clock against ours, to within `server_ahead_error_s`."""
    server_ahead_error_s: float


@dataclass(frozen=True, slots=True)
class Queue:
    """One consumer of the mesh's stream: what waits in it, and what is in the hands of peers."""

    name: str
    capability: str
    waiting: int
    in_flight: int
    is_paused: bool
    bound: int = 0
    """How many may wait; 0 for no bound."""
    oldest: str = ""
    """The task that was stored first and is not over nor parked, as `<capability>/<id>`; empty where there is none."""
    oldest_s: float | None = 0.0
    """How long ago that was, by the server's clock; None where this user may not read tasks."""


@dataclass(frozen=True, slots=True)
class Streams:
    """The mesh's streams and consumers, and where they differ from what this version needs."""

    mesh: Stream
    queues: tuple[Queue, ...]
    differences: tuple[Difference, ...]
    missing: tuple[Spec, ...]


async def server(bus: Bus) -> Server:
    """The server this bus is connected to.

    Raises:
        BusUnavailable: it does not answer.
    """
    took_s: list[float] = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        try:
            await bus.nc.flush(timeout=FLUSH_WITHIN_S)
        except (nats.errors.Error, TimeoutError) as error:
            raise BusUnavailable(f"the server does not answer within {FLUSH_WITHIN_S} s") from error
        took_s.append(time.perf_counter() - began)
    return Server(server_version(bus), await _api_level(bus), statistics.median(took_s))


def server_version(bus: Bus) -> str:
    """The version of the server that this bus is connected to, as `2.15.1`."""
    return str(bus.nc.connected_server_version).strip("<>").rpartition(" ")[2].removeprefix("v")


async def streams(bus: Bus, bounds: Mapping[str, int] = NO_BOUNDS) -> Streams | None:
    """The mesh's streams and consumers, or None where the mesh was never made.

    `bounds` are what peers want for the queues of their capabilities.
    """
    mesh, *others = topology.of_mesh(bus.settings)
    asked_at = time.time()
    info = await topology.inspect(bus, mesh)
    answered_at = time.time()
    if info is None:
        return None
    differences = topology.differences(mesh, info["config"])
    missing: list[Spec] = []
    queues: list[Queue] = []
    for spec in (*others, *await of_capabilities(bus, bounds)):
        found = await topology.inspect(bus, spec)
        if found is None:
            missing.append(spec)
            continue
        differences += topology.differences(spec, found["config"])
        if spec.kind == "consumer" and spec.stream == mesh.name and spec.name != KEEPER:
            queues.append(await _queue(bus, spec, found))
    stream = _stream(info, asked_at, answered_at)
    return Streams(stream, tuple(queues), tuple(differences), tuple(missing))


async def of_capabilities(bus: Bus, bounds: Mapping[str, int] = NO_BOUNDS) -> list[Spec]:
    """What the capabilities need that the mesh's stream has consumers for, as this version and the peers want it."""
    wanted: list[Spec] = []
    for capability in sorted({served_by(name) for name in await topology.served(bus)} - {""}):
        wanted += topology.of_capability(bus.settings, capability, queue_max=bounds.get(capability))
    return wanted


async def parked(bus: Bus) -> dict[str, int]:
    """How many tasks are parked, by capability, of at most 100,000."""
    found = Counter(
        bus.subjects.capability_of(subject) for subject in await topology.queued(bus, bus.subjects.parks_of())
    )
    return dict(found)


async def _api_level(bus: Bus) -> int | None:
    try:
        level = (await bus.api("INFO")).get("api", {}).get("level", 0)
    except ApiError as error:
        if error.code in JETSTREAM_NOT_ENABLED:
            return None
        raise
    except (BusUnavailable, PublishUnconfirmed):
        return None
    return int(level)


async def _queue(bus: Bus, spec: Spec, info: dict[str, Any]) -> Queue:
    capability, _, lane = spec.name.partition("@")
    oldest: str = ""
    oldest_s: float | None = 0.0
    if info["num_pending"] + info["num_ack_pending"]:
        try:
            tasks = await standing(bus, spec.stream, bus.subjects.tasks_of(capability, lane))
        except PermissionDenied:
            oldest_s = None
        else:
            if tasks.oldest_at is not None:
                oldest = f"{capability}/{bus.subjects.parse(tasks.oldest).id}"
                oldest_s = max(0.0, unix(info["ts"]) - tasks.oldest_at)
    return Queue(
        name=spec.name,
        capability=capability,
        waiting=info["num_pending"],
        in_flight=info["num_ack_pending"],
        is_paused=await control.paused(bus, capability) is not None,
        bound=bound_of(info["config"]),
        oldest=oldest,
        oldest_s=oldest_s,
    )


def _stream(info: dict[str, Any], asked_at: float, answered_at: float) -> Stream:
    config, state = info["config"], info["state"]
    copies = (info.get("cluster") or {}).get("replicas") or ()
    return Stream(
        replicas=config["num_replicas"],
        messages=state["messages"],
        bytes=state["bytes"],
        messages_max=config["max_msgs"],
        bytes_max=config["max_bytes"],
        behind=tuple(copy["name"] for copy in copies if copy.get("offline") or not copy.get("current")),
        server_ahead_s=unix(info["ts"]) - (asked_at + answered_at) / 2,
        server_ahead_error_s=(answered_at - asked_at) / 2,
    )
