"""From what the users of a mesh do to the least NATS permissions each needs.

Rules.
- Nobody may write a record of a capability that it does not handle, with four exceptions that the mesh cannot do
  without: whoever calls a capability writes its tasks and the chunks of their payloads; whoever handles it wakes its
  callers, and whoever calls it wakes what it calls in turn (a cancel reaches everything below). A wake says nothing but
  "look again".
- Records are read one by one, by subject. What cannot be scoped (`STREAM.MSG.GET`, the bare `DIRECT.GET` of tasks and
  records, making consumers) operators alone may do. Control records alone are read as a whole: they hold no payloads.
- There is no `allow_responses`. A user who sends itself a message with a reply subject of its choice could then publish
  there, whatever its permissions say (docs/adr/0020). Those who may be asked may publish to the inboxes of those who
  may ask.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from contracts.subjects import KEEPER, LANES, TIMEKEEPER, Subjects, consumer_name, key_breaker, key_pause
from mesh.auth.access import Role
from mesh.scheduling.lanes import ORDER

INBOX: Final = "_INBOX_"
DEPTH_MAX: Final = 12
"""Tokens of the longest id that a user with `signals` reaches: a task below a task below a task …"""
_TASKS: Final = tuple(f"task@{lane}" if lane else "task" for lane in ORDER)
_STANDING: Final = ("task", *(f"task@{lane}" for lane in LANES), "park", "wake", "wake@again", "result")
_WAKES: Final = ("wake", "wake@again")


@dataclass(frozen=True, slots=True)
class Peer:
    """A user of peers, with what all their agents together handle, call and use."""

    user: str
    handles: tuple[str, ...]
    calls: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    breakers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Client:
    """A user that submits tasks, and signals those that wait."""

    user: str
    calls: tuple[str, ...] = ()
    signals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declared:
    """Everything that a mesh's users declare."""

    prefix: str
    peers: tuple[Peer, ...] = ()
    clients: tuple[Client, ...] = ()
    operators: tuple[str, ...] = ()
    restorers: tuple[str, ...] = ()
    monitors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """Subjects that a user may publish to or subscribe to, and what for."""

    why: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rights:
    """All that one user may do."""

    user: str
    role: Role
    grants: tuple[Grant, ...]

    @property
    def publish(self) -> tuple[str, ...]:
        """Subjects it may publish to, each once, sorted."""
        return tuple(sorted({subject for grant in self.grants for subject in grant.publish}))

    @property
    def subscribe(self) -> tuple[str, ...]:
        """Subjects it may subscribe to, each once, sorted."""
        return tuple(sorted({subject for grant in self.grants for subject in grant.subscribe}))


def rights_of(declared: Declared) -> tuple[Rights, ...]:
    """The rights of every user of a mesh: peers, clients, operators, restorers and monitors, each as declared."""
    whole = _Whole(declared)
    return (
        *(Rights(peer.user, "peer", tuple(whole.of_peer(peer))) for peer in declared.peers),
        *(Rights(client.user, "client", tuple(whole.of_client(client))) for client in declared.clients),
        *(Rights(user, "operator", tuple(whole.of_operator(user))) for user in declared.operators),
        *(Rights(user, "restorer", tuple(whole.of_operator(user))) for user in declared.restorers),
        *(Rights(user, "monitor", tuple(whole.of_monitor(user))) for user in declared.monitors),
    )


def unserved(declared: Declared) -> dict[str, tuple[str, ...]]:
    """Capabilities that are called and that no peer handles, each with the users that call it."""
    handled = {capability for peer in declared.peers for capability in peer.handles}
    found: dict[str, list[str]] = {}
    calls = [(one.user, one.calls) for one in declared.peers] + [(one.user, one.calls) for one in declared.clients]
    for user, called in calls:
        for capability in called:
            if capability not in handled:
                found.setdefault(capability, []).append(user)
    return {capability: tuple(found[capability]) for capability in sorted(found)}


def inbox_prefix(user: str) -> str:
    """What the inboxes of a user begin with: its `MESH_NATS_INBOX_PREFIX`."""
    return f"{INBOX}{user}"


class _Whole:
    """A mesh's declarations, looked at from each capability."""

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        self.subjects = Subjects(declared.prefix)
        self.calls: dict[str, set[str]] = {}
        self.callers: dict[str, set[str]] = {}
        for peer in declared.peers:
            for capability in peer.handles:
                self.calls.setdefault(capability, set()).update(peer.calls)
            for called in peer.calls:
                self.callers.setdefault(called, set()).update(peer.handles)

    def below(self, calls: Iterable[str]) -> set[str]:
        """What is called, and what that calls in turn."""
        found: set[str] = set()
        left = set(calls)
        while left:
            capability = left.pop()
            found.add(capability)
            left |= self.calls.get(capability, set()) - found
        return found

    def askers(self, handles: Iterable[str]) -> list[str]:
        """Users that may ask a peer something: other peers, clients of its capabilities, operators and monitors."""
        handled = set(handles)
        clients = [one.user for one in self.declared.clients if handled & {*one.calls, *one.signals}]
        peers = [one.user for one in self.declared.peers]
        return sorted({*peers, *clients, *self.declared.operators, *self.declared.monitors})

    # Names of what the server offers.

    def api(self, *tokens: str) -> str:
        return ".".join(("$JS.API", *tokens))

    def read(self, stream: str, *patterns: str) -> tuple[str, ...]:
        return tuple(self.api("DIRECT.GET", stream, pattern) for pattern in patterns)

    def records(self, words: Iterable[str], capabilities: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.subjects.under(word, capability) for capability in sorted(capabilities) for word in words)

    def consumers(self, capabilities: Iterable[str]) -> tuple[str, ...]:
        return tuple(consumer_name(capability, lane) for capability in capabilities for lane in ORDER)

    def timers(self, capability: str) -> str:
        return self.subjects.timer_stream(capability)

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that a mesh has one of each of."""
        names = self.subjects
        return (
            names.stream,
            names.control_stream,
            names.line_stream,
            names.limit_stream,
            names.object_stream,
            names.event_stream,
        )

    # What each role does.

    def of_peer(self, peer: Peer) -> Iterable[Grant]:
        subjects, own = self.subjects, sorted(set(peer.handles))
        stream = subjects.stream
        told = _told(own)
        consumers = self.consumers(own)
        yield Grant(
            f"take tasks of {told} and settle them",
            publish=(
                *(self.api("CONSUMER.MSG.NEXT", stream, name) for name in consumers),
                *(f"$JS.ACK.{stream}.{name}.>" for name in consumers),
            ),
        )
        words = ("result", "park", "step", "dead.letter", *_WAKES)
        everything = (*_STANDING, "step", "dead.letter")
        yield Grant(
            f"write the records of {told}, and read them by subject",
            publish=(*self.records(words, own), *self.read(stream, *self.records(everything, own))),
        )
        yield Grant(
            f"keep the timers of {told}, and submit what recurs",
            publish=(
                *self.records(("timer", "task"), own),
                *(self.api("CONSUMER.MSG.NEXT", self.timers(name), TIMEKEEPER) for name in own),
                *(f"$JS.ACK.{self.timers(name)}.{TIMEKEEPER}.>" for name in own),
            ),
        )
        objects, lines = self.records(("object",), own), self.records(("line",), own)
        yield Grant(
            f"keep large payloads and values of {told}, and the lines of their tasks",
            publish=(
                *objects,
                *self.read(subjects.object_stream, *objects),
                *lines,
                *self.read(subjects.line_stream, *lines),
            ),
        )
        yield Grant(
            f"stream parts and tell events of {told}, and of the peer itself",
            publish=(*self.records(("part",), own), *(subjects.under("event.*", name) for name in (*own, "-"))),
        )
        if peer.calls:
            yield self._calling(peer.calls, lanes=_TASKS, reads_lines=False)
        if woken := (set().union(*(self.callers.get(name, set()) for name in own)) | self.below(peer.calls)) - set(own):
            yield Grant(
                f"wake the callers of {told}, and what was asked for below a cancelled task: {_told(sorted(woken))}",
                publish=self.records(_WAKES, woken),
            )
        yield from self._resources(peer)
        yield Grant(
            "know the control records",
            publish=(
                self.api("DIRECT.GET", subjects.control_stream),
                self.api("DIRECT.GET", subjects.control_stream, subjects.control_stored),
            ),
            subscribe=(subjects.control_echoes,),
        )
        yield Grant(
            "see what the streams and its own consumers hold",
            publish=(
                *(self.api("STREAM.INFO", name) for name in self.streams),
                *(self.api("STREAM.INFO", self.timers(name)) for name in own),
                *(self.api("CONSUMER.INFO", stream, name) for name in (*consumers, KEEPER)),
                *(self.api("CONSUMER.INFO", self.timers(name), TIMEKEEPER) for name in own),
                self.api("CONSUMER.NAMES", stream),
            ),
            subscribe=(
                f"$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.{stream}.*",
                f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}",
            ),
        )
        yield Grant(
            f"have messages of {told} handed out again that no consumer hands out",
            publish=tuple(self.api("CONSUMER.RESET", stream, name) for name in consumers),
        )
        yield Grant(
            "be present, ask other peers what they run, and answer that",
            publish=(
                subjects.beat("*"),
                subjects.ctl("all", "describe"),
                subjects.ctl("all", "who-runs"),
                *(subjects.ctl(name, verb) for name in own for verb in ("who-runs", "distrust")),
                *(f"{inbox_prefix(user)}.>" for user in self.askers(own)),
            ),
            subscribe=(
                subjects.beats,
                subjects.ctl("all", "*"),
                *(subjects.ctl(name, "*") for name in own),
                f"{inbox_prefix(peer.user)}.>",
            ),
        )

    def of_client(self, client: Client) -> Iterable[Grant]:
        subjects, stream = self.subjects, self.subjects.stream
        called = sorted(set(client.calls))
        if called:
            told = _told(called)
            yield self._calling(called, lanes=_TASKS, reads_lines=True)
            yield Grant(
                f"stay within the bounds of the queues of {told}",
                publish=tuple(self.api("CONSUMER.INFO", stream, name) for name in self.consumers(called)),
            )
            yield Grant(
                f"watch and cancel tasks of {told}",
                publish=(
                    *(subjects.ctl(name, verb) for name in called for verb in ("who-runs", "parts")),
                    *(f"{subjects.control_record('cancel')}.{name}.*" for name in called),
                    *self.read(
                        subjects.control_stream,
                        *(f"{subjects.control_record('cancel')}.{name}.*" for name in called),
                        *(subjects.control_record(key_pause(name)) for name in called),
                    ),
                ),
                subscribe=self.records(("part",), called),
            )
        woken = self.below({*called, *client.signals})
        yield Grant(
            f"wake what is parked below a task it cancels or signals: {_told(sorted(woken))}",
            publish=self.records(_WAKES, woken),
        )
        for capability, names in sorted(client.signals.items()):
            yield self._signalling(capability, sorted(set(names)))
        yield Grant(
            "see how full the streams are, and hear of their leaders",
            publish=(self.api("STREAM.INFO", stream), self.api("STREAM.INFO", subjects.object_stream)),
            subscribe=(f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}",),
        )
        yield Grant("hear answers", subscribe=(f"{inbox_prefix(client.user)}.>",))

    def of_operator(self, user: str) -> Iterable[Grant]:
        subjects = self.subjects
        yield Grant(
            "everything in this mesh: its streams, its records, its peers",
            publish=(
                "$JS.API.>",
                "$JS.ACK.>",
                "$JS.SNAPSHOT.>",
                f"{subjects.prefix}.>",
                subjects.control_stored,
            ),
            subscribe=(f"{subjects.prefix}.>", "$JS.EVENT.ADVISORY.>", f"{inbox_prefix(user)}.>"),
        )

    def of_monitor(self, user: str) -> Iterable[Grant]:
        subjects = self.subjects
        yield Grant(
            "see how much waits, runs and is kept, and which control records stand; no payload, value or step",
            publish=(
                self.api("INFO"),
                self.api("STREAM.NAMES"),
                self.api("STREAM.LIST"),
                self.api("STREAM.INFO", "*"),
                self.api("CONSUMER.NAMES", "*"),
                self.api("CONSUMER.LIST", "*"),
                self.api("CONSUMER.INFO", "*", "*"),
                self.api("DIRECT.GET", subjects.control_stream),
                self.api("DIRECT.GET", subjects.control_stream, subjects.control_stored),
                self.api("DIRECT.GET", subjects.limit_stream),
            ),
        )
        yield Grant(
            "hear what happens, and ask peers who they are and what they run",
            publish=(
                subjects.ctl("all", "describe"),
                subjects.ctl("all", "who-runs"),
            ),
            subscribe=(
                subjects.beats,
                subjects.events,
                subjects.control_echoes,
                subjects.limit_echoes[1],
                "$JS.EVENT.ADVISORY.>",
                f"{inbox_prefix(user)}.>",
            ),
        )

    # Parts of them.

    def _calling(self, called: Iterable[str], *, lanes: tuple[str, ...], reads_lines: bool) -> Grant:
        subjects, names = self.subjects, sorted(set(called))
        objects = self.records(("object",), names)
        places = self.records(("place",), names) if reads_lines else ()
        lines = self.records(("line", "place"), names) if reads_lines else ()
        return Grant(
            f"submit tasks to {_told(names)}, and wait for their results",
            publish=(
                *self.records(lanes, names),
                *self.read(subjects.stream, *self.records(_STANDING, names)),
                *objects,
                *self.read(subjects.object_stream, *objects),
                *places,
                *self.read(subjects.line_stream, *lines),
            ),
            subscribe=self.records(("done",), names),
        )

    def _signalling(self, capability: str, names: list[str]) -> Grant:
        subjects = self.subjects
        # A step's name is the last token of its subject, and nothing but a task's id stands before it.
        ids = [".".join("*" * depth) for depth in range(1, DEPTH_MAX + 1)]
        head = subjects.under("step", capability).removesuffix(".>")
        signals = [f"{head}.{task}.~~signal-{name}" for name in names for task in ids]
        waits = [f"{head}.{task}.~~patience-{name}" for name in names for task in ids]
        return Grant(
            f"send tasks of {capability} the signal {_told(names)}",
            publish=(
                *signals,
                *self.read(subjects.stream, *signals, *waits, *self.records(_STANDING, [capability])),
            ),
        )

    def _resources(self, peer: Peer) -> Iterable[Grant]:
        subjects = self.subjects
        if limits := sorted(set(peer.limits)):
            records = [subjects.limit(kind, name) for name in limits for kind in ("seats", "rate")]
            yield Grant(
                f"keep within the limits of {_told(limits)}",
                publish=(*records, *self.read(subjects.limit_stream, *records)),
                subscribe=tuple(subjects.limit_echo(kind, name) for name in limits for kind in ("seats", "rate")),
            )
        breakers = sorted({*peer.breakers, *peer.calls})
        if breakers:
            yield Grant(
                f"open and close the breakers {_told(breakers)}",
                publish=tuple(subjects.control_record(key_breaker(name)) for name in breakers),
            )


def _told(names: Iterable[str]) -> str:
    names = list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
