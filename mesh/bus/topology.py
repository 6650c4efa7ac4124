"""Streams and consumers as data, and making the server have them.

`ensure` creates what is missing and compares what exists; it never changes it. A difference in what the
promises rest on is refused, a difference in a tunable (limits, replicas, waits) is reported and kept: an
operator may have set it. `mesh.bus.plan` makes the server follow, where JetStream allows it.
"""

import asyncio
import time
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from contracts.subjects import KEEPER, LANES, TIMEKEEPER, consumer_name
from mesh.bus.connection import REPLY_WITHIN_S, Bus
from mesh.bus.queues import BOUND
from mesh.bus.records import RETRY_S
from mesh.bus.replies import (
    CONSUMER_EXISTS,
    CONSUMER_NOT_FOUND,
    STREAM_NAME_IN_USE,
    STREAM_NOT_FOUND,
    SUBJECTS_OVERLAP,
    ApiError,
)
from mesh.errors import BusUnavailable, PermissionDenied, SetupError, TopologyDrift, TopologyMissing
from mesh.scheduling.lanes import ORDER
from mesh.settings import Settings

PRIORITY_GROUP = "slots"
NANOS = 1_000_000_000
APPEARS_WITHIN_S = 10.0
EVENTS_MAX = 500_000
"""Each is on a subject of its own, which the server keeps in memory."""
PAST_ALL_SUBJECTS = 2**31 - 1
"""A page of subjects that is empty, and says how many there are."""

# Operators may tune these; everything else in a spec carries a promise.
_TUNABLE = frozenset(
    {"max_bytes", "max_msgs", "max_age", "num_replicas", "ack_wait", "max_ack_pending", "max_waiting", "metadata"}
)


@dataclass(frozen=True, slots=True)
class Spec:
    """A stream or a durable consumer as this version wants it."""

    kind: Literal["stream", "consumer"]
    stream: str
    name: str
    config: Mapping[str, Any]
    is_optional: bool = False
    """Nothing that is promised rests on it: where the server refuses it, the mesh does without."""

    def __str__(self) -> str:
        return self.name if self.kind == "stream" else f"{self.stream} > {self.name}"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of a spec that the server has otherwise."""

    spec: Spec
    field: str
    wanted: Any
    actual: Any

    @property
    def is_essential(self) -> bool:
        return self.field not in _TUNABLE and not self.spec.is_optional

    def __str__(self) -> str:
        return f"{self.spec}: {self.field} is {self.actual!r}, wanted {self.wanted!r}"


@dataclass(frozen=True, slots=True)
class Ensured:
    """What `ensure` found: names it made, tunables that differ, and why what is optional is not there."""

    created: tuple[str, ...] = ()
    tolerated: tuple[Difference, ...] = ()
    refused: tuple[str, ...] = ()


def streams(settings: Settings) -> tuple[Spec, ...]:
    """Tasks and records, control records, lines, limits, objects, events: every stream but those of timers."""
    subjects = settings.subjects
    source, destination = subjects.result_echo
    control_source, control_destination = subjects.control_echo
    limit_source, limit_destination = subjects.limit_echoes
    mesh = Spec(
        "stream",
        subjects.stream,
        subjects.stream,
        {
            "subjects": subjects.stored,
            "retention": "workqueue",
            "storage": "file",
            "max_msgs_per_subject": 1,
            "discard": "new",
            "discard_new_per_subject": True,
            "allow_direct": True,
            "allow_msg_ttl": True,
            "republish": {"src": source, "dest": destination},
            "max_bytes": settings.stream_bytes_max,
            "max_msgs": settings.stream_msgs_max,
            "num_replicas": settings.replicas,
        },
    )
    control = Spec(
        "stream",
        subjects.control_stream,
        subjects.control_stream,
        {
            "subjects": [subjects.control_stored],
            "retention": "limits",
            "storage": "file",
            "max_msgs_per_subject": 1,
            "discard": "new",
            "allow_direct": True,
            "allow_msg_ttl": True,
            "republish": {"src": control_source, "dest": control_destination},
            "max_bytes": 64 * 2**20,
            "num_replicas": settings.replicas,
        },
    )
    lines = Spec(
        "stream",
        subjects.line_stream,
        subjects.line_stream,
        {
            "subjects": subjects.lines_stored,
            "retention": "limits",
            "storage": "file",
            "max_msgs_per_subject": 1,
            # What is on record about a line is overwritten. With no limit there is nothing else to discard.
            "discard": "old",
            "allow_direct": True,
            "allow_msg_ttl": True,
            "num_replicas": settings.replicas,
        },
    )
    limits = Spec(
        "stream",
        subjects.limit_stream,
        subjects.limit_stream,
        {
            "subjects": [subjects.limits_stored],
            "retention": "limits",
            "storage": "file",
            "max_msgs_per_subject": 1,
            # A record is replaced under the guard of its sequence. With no limit there is nothing else to discard.
            "discard": "old",
            "allow_direct": True,
            "allow_msg_ttl": True,
            "republish": {"src": limit_source, "dest": limit_destination},
            "num_replicas": settings.replicas,
        },
    )
    objects = Spec(
        "stream",
        subjects.object_stream,
        subjects.object_stream,
        {
            "subjects": subjects.objects_stored,
            "retention": "limits",
            "storage": "file",
            "max_msgs_per_subject": 1,
            # A chunk may be overwritten: to be kept for longer, or to go. Nothing old makes room for it.
            "discard": "new",
            "allow_direct": True,
            "allow_msg_ttl": True,
            "max_bytes": settings.objects_bytes_max,
            "num_replicas": settings.replicas,
        },
    )
    events = Spec(
        "stream",
        subjects.event_stream,
        subjects.event_stream,
        {
            "subjects": [subjects.events],
            "retention": "limits",
            "storage": "file",
            # What happened is history: it makes room for what happens, and no publisher waits for it.
            "discard": "old",
            "allow_direct": True,
            "max_bytes": settings.events_bytes_max,
            "max_msgs": EVENTS_MAX,
            "max_age": int(settings.events_ttl_s * NANOS),
            "num_replicas": settings.replicas,
        },
        is_optional=True,
    )
    return mesh, control, lines, limits, objects, events


def of_mesh(settings: Settings) -> tuple[Spec, ...]:
    """What a mesh has before it has a capability: its streams, and the keeper of its records."""
    return (*streams(settings), keeper(settings))


def of_capability(settings: Settings, capability: str, *, queue_max: int | None = None) -> tuple[Spec, ...]:
    """What a capability has: its timers, and the queue of each of its lanes."""
    lanes = (consumer(settings, capability, lane, queue_max=queue_max) for lane in ORDER)
    return (timers(settings, capability), timekeeper(settings, capability), *lanes)


def keeper(settings: Settings) -> Spec:
    """A consumer from which nobody pulls, so that no ack takes a record away.

    On a work queue the server takes an ack for any sequence on any consumer, and deletes the message unless another
    consumer wants it (measured on 2.15.1): with an ack that it made up, a peer of one capability would delete
    results of all others. What this one filters, somebody still wants.
    """
    subjects = settings.subjects
    config = {
        "durable_name": KEEPER,
        "ack_policy": "explicit",
        "max_deliver": -1,
        "filter_subjects": subjects.records,
    }
    return Spec("consumer", subjects.stream, KEEPER, config)


def timers(settings: Settings, capability: str) -> Spec:
    """The stream of a capability's timers.

    A schedule may name any subject of its stream as its target, and schedules come with rollups: who may write here
    may write or wipe all that is here. So nothing of another capability's is.
    """
    subjects = settings.subjects
    name = subjects.timer_stream(capability)
    return Spec(
        "stream",
        name,
        name,
        {
            "subjects": subjects.timers_stored(capability),
            "retention": "workqueue",
            "storage": "file",
            "max_msgs_per_subject": 1,
            # Schedules refuse "new". With no limit there is nothing old to discard.
            "discard": "old",
            "allow_direct": True,
            "allow_msg_ttl": True,
            "allow_msg_schedules": True,
            "num_replicas": settings.replicas,
        },
    )


def timekeeper(settings: Settings, capability: str) -> Spec:
    """The durable consumer from which a capability's peers take its fired timers."""
    subjects = settings.subjects
    return _consumer(settings, subjects.timer_stream(capability), TIMEKEEPER, subjects.fired(capability))


def consumer(settings: Settings, capability: str, lane: str = "", *, queue_max: int | None = None) -> Spec:
    """The durable consumer that all peers of a capability pull from.

    `queue_max` is how many tasks may wait in it; without it nothing is wanted of the bound that it has.
    """
    subjects = settings.subjects
    wakes = () if lane else subjects.wakes_of(capability)
    filters = [subjects.tasks_of(capability, lane), *wakes]
    spec = _consumer(settings, subjects.stream, consumer_name(capability, lane), filters)
    if queue_max is None:
        return spec
    return replace(spec, config={**spec.config, "metadata": {BOUND: str(queue_max)}})


def _consumer(settings: Settings, stream: str, name: str, filters: list[str]) -> Spec:
    return Spec(
        "consumer",
        stream,
        name,
        {
            "durable_name": name,
            "ack_policy": "explicit",
            "ack_wait": int(settings.ack_wait_s * NANOS),
            # Never the retry limit: a message past it stays as an orphan.
            "max_deliver": -1,
            "max_ack_pending": 100_000,
            "max_waiting": 8_192,
            "filter_subjects": filters,
            "priority_groups": [PRIORITY_GROUP],
            "priority_policy": "overflow",
        },
    )


def differences(spec: Spec, actual: Mapping[str, Any]) -> list[Difference]:
    """Fields of a spec that the server has otherwise, essential ones first."""
    found = [
        Difference(spec, field, wanted, _ours(wanted, actual.get(field)))
        for field, wanted in spec.config.items()
        if not _same(wanted, actual.get(field))
    ]
    return sorted(found, key=lambda difference: not difference.is_essential)


def ack_wait_s(settings: Settings, tolerated: Iterable[Difference]) -> float:
    """How soon the server hands a silent peer's tasks to others, where it is sooner than the settings say."""
    shorter = (found.actual / NANOS for found in tolerated if found.field == "ack_wait" and found.actual)
    return float(min((settings.ack_wait_s, *shorter)))


async def ensure(bus: Bus, specs: Iterable[Spec]) -> Ensured:
    """Create what is missing, compare what exists. Safe to repeat and to race.

    Raises:
        TopologyDrift: something essential differs.
        TopologyMissing: something is missing, and only an operator can make it.
        SetupError: the server cannot hold what is asked for, and it is not optional.
        BusUnavailable, PublishUnconfirmed: no answer now; repeat it.
    """
    created: list[str] = []
    tolerated: list[Difference] = []
    refused: list[str] = []
    for spec in specs:
        actual = await inspect(bus, spec)
        if actual is None:
            try:
                if await create(bus, spec):
                    created.append(str(spec))
            except SetupError as error:
                if not spec.is_optional:
                    raise
                refused.append(str(error))
                continue
            actual = await appeared(bus, spec)
        found = differences(spec, actual["config"])
        if any(difference.is_essential for difference in found):
            told = "; ".join(str(difference) for difference in found if difference.is_essential)
            raise TopologyDrift(
                f"{told}. Nothing was changed: `mesh topology plan` shows the whole"
                f" difference, `mesh topology apply` changes the server, MESH_PREFIX names another mesh"
            )
        tolerated += found
    return Ensured(tuple(created), tuple(tolerated), tuple(refused))


async def inspect(bus: Bus, spec: Spec) -> dict[str, Any] | None:
    """The server's account of a stream or consumer, or None where it has none."""
    try:
        return await bus.api(_endpoint("INFO", spec), within_s=REPLY_WITHIN_S)
    except ApiError as error:
        if error.code in (STREAM_NOT_FOUND, CONSUMER_NOT_FOUND):
            return None
        raise


async def served(bus: Bus) -> set[str]:
    """Names of the durable consumers on the mesh's stream from which peers pull."""
    return await consumers_of(bus, bus.subjects.stream) - {KEEPER}


async def consumers_of(bus: Bus, stream: str) -> set[str]:
    """Names of all consumers of a stream."""
    return await _names(bus, f"CONSUMER.NAMES.{stream}", "consumers", {})


async def existing(bus: Bus) -> list[str]:
    """Names of the streams of this mesh that exist."""
    names = await _names(bus, "STREAM.NAMES", "streams", {})
    return sorted(name for name in names if bus.subjects.is_own_stream(name))


async def timer_streams(bus: Bus) -> list[str]:
    """Names of the streams that hold the timers of each capability."""
    names = await _names(bus, "STREAM.NAMES", "streams", {"subject": bus.subjects.crons})
    return sorted(name for name in names if name.startswith(bus.subjects.timer_streams))


async def _names(bus: Bus, endpoint: str, kind: str, wanted: Mapping[str, str]) -> set[str]:
    names: set[str] = set()
    while True:
        page = await bus.api(endpoint, {**wanted, "offset": len(names)})
        names.update(page.get(kind) or ())
        if len(names) >= page["total"] or not page.get(kind):
            return names


async def queued(bus: Bus, filter_subject: str) -> dict[str, int]:
    """Subjects of the mesh's stream that a filter matches, at most 100,000, each with its messages."""
    info = await bus.api(f"STREAM.INFO.{bus.subjects.stream}", {"subjects_filter": filter_subject})
    return info["state"].get("subjects") or {}


async def every_queued(bus: Bus, filter_subject: str) -> list[str]:
    """Every subject of the mesh's stream that a filter matches, 100,000 a request.

    What is stored or taken away between two of them may hide others: it is whole where nothing moves.
    """
    found: list[str] = []
    while True:
        info = await bus.api(
            f"STREAM.INFO.{bus.subjects.stream}", {"subjects_filter": filter_subject, "offset": len(found)}
        )
        page = info["state"].get("subjects") or {}
        found += page
        if not page or len(found) >= int(info.get("total", 0)):
            return found


async def count(bus: Bus, filter_subject: str) -> int:
    """How many subjects of the mesh's stream a filter matches, however many; the server does not list them."""
    info = await bus.api(
        f"STREAM.INFO.{bus.subjects.stream}", {"subjects_filter": filter_subject, "offset": PAST_ALL_SUBJECTS}
    )
    return int(info.get("total", 0))


async def standing(bus: Bus) -> dict[str, int]:
    """Tasks of the mesh, queued or running, by the name of the consumer they are for; 100,000 of each lane at most."""
    found: dict[str, int] = {}
    for lane in ("", *LANES):
        for subject in await queued(bus, bus.subjects.tasks_of(lane=lane)):
            name = consumer_name(bus.subjects.capability_of(subject), lane)
            found[name] = found.get(name, 0) + 1
    return found


async def unserved(bus: Bus, *, capabilities_max: int) -> dict[str, int]:
    """Tasks queued where no consumer serves, by capability and lane; past the limit the rest is `(others)`."""
    consumers = await served(bus)
    return left_over(await standing(bus), consumers, capabilities_max=capabilities_max)


def left_over(standing: Mapping[str, int], consumers: Container[str], *, capabilities_max: int) -> dict[str, int]:
    """Of the tasks that stand, those of no consumer; past so many names the rest is `(others)`."""
    waiting: dict[str, int] = {}
    for name, count in standing.items():
        if name not in consumers:
            shown = name if len(waiting) < capabilities_max else "(others)"
            waiting[shown] = waiting.get(shown, 0) + count
    return waiting


async def reset_consumer(bus: Bus, spec: Spec, sequence: int) -> None:
    """Have a consumer hand out everything from a stream sequence on again."""
    await bus.api(_endpoint("RESET", spec), {"seq": sequence})


async def appeared(bus: Bus, spec: Spec) -> dict[str, Any]:
    """The server's account of what was just made.

    Raises:
        BusUnavailable: it does not show in time.
    """
    # In a cluster what was made, here or by another peer, may take a moment to show.
    give_up_at = time.monotonic() + APPEARS_WITHIN_S
    while time.monotonic() < give_up_at:
        actual = await inspect(bus, spec)
        if actual is not None:
            return actual
        await asyncio.sleep(RETRY_S)
    raise BusUnavailable(f"{spec.kind} {spec} does not show {APPEARS_WITHIN_S:g} s after it was made")


async def create(bus: Bus, spec: Spec) -> bool:
    """Make a stream or consumer. False: it is there already, whatever it is like.

    Raises:
        TopologyMissing: only an operator can make it.
        SetupError: the server refuses it.
        TopologyDrift: the consumer's stream does not exist.
    """
    config = dict(spec.config)
    if spec.kind == "stream":
        body: dict[str, Any] = {"name": spec.name, **config}
    else:
        # "create" never upserts: a plain create over a consumer with a priority policy silently wipes it.
        body = {"stream_name": spec.stream, "config": config, "action": "create"}
    try:
        await bus.api(_endpoint("CREATE", spec), body)
    except PermissionDenied as error:
        raise TopologyMissing(
            f"{spec.kind} {spec} is missing, and this user may not make it: run `mesh topology apply` as an operator"
        ) from error
    except ApiError as error:
        if error.code in (STREAM_NAME_IN_USE, CONSUMER_EXISTS):
            return False
        if error.code == STREAM_NOT_FOUND:
            raise TopologyDrift(f"stream {spec.stream} does not exist") from error
        if error.code == SUBJECTS_OVERLAP:
            raise TopologyMissing(
                f"{spec.kind} {spec} is missing, and another stream has its subjects, of an older version perhaps: run"
                f" `mesh topology apply` as an operator ({error})"
            ) from error
        raise SetupError(f"the server refuses to make {spec.kind} {spec}: {error}") from error
    return True


async def update(bus: Bus, spec: Spec, actual: Mapping[str, Any]) -> None:
    """Have the server follow a spec, and keep all else as it is in `actual`. Safe to repeat.

    Raises:
        TopologyDrift: the server refuses it; nothing was changed.
    """
    config = {**actual, **spec.config}
    if "metadata" in spec.config:
        # The server's own keys, and an operator's, stay.
        config["metadata"] = {**(actual.get("metadata") or {}), **spec.config["metadata"]}
    body = config if spec.kind == "stream" else {"stream_name": spec.stream, "config": config, "action": "update"}
    endpoint = _endpoint("UPDATE" if spec.kind == "stream" else "CREATE", spec)
    try:
        await bus.api(endpoint, body)
    except ApiError as error:
        raise TopologyDrift(f"the server refuses to change {spec.kind} {spec}: {error}") from error


def _endpoint(verb: str, spec: Spec) -> str:
    if spec.kind == "stream":
        return f"STREAM.{verb}.{spec.name}"
    return f"CONSUMER.{verb}.{spec.stream}.{spec.name}"


def _ours(wanted: Any, actual: Any) -> Any:
    """Of a mapping on the server, what a spec has an opinion on."""
    if isinstance(wanted, Mapping) and isinstance(actual, Mapping):
        return {key: actual[key] for key in wanted if key in actual}
    return actual


def _same(wanted: Any, actual: Any) -> bool:
    if isinstance(wanted, list):
        return sorted(wanted) == sorted(actual or ())
    if isinstance(wanted, Mapping):
        return isinstance(actual, Mapping) and all(actual.get(key) == value for key, value in wanted.items())
    # The server leaves out what is false or zero.
    return bool(wanted == actual) or (not wanted and not actual)
