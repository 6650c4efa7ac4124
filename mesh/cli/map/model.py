"""Who owns what, who asks whom, and what does not fit together: from what live peers say, and what waits."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from contracts.card import AgentCard, CapabilityCard, Described

UNKNOWN_CLIENT: Final = "(unknown)"
NAMED_MAX: Final = 5


class EdgeKind(StrEnum):
    CALLS = "calls"
    """Seen: tasks that were answered."""
    ESCALATES = "escalates"
    """Declared: the next rung of its ladder."""
    VERIFIED = "verified by"
    """Declared: who checks its answers."""


@dataclass(frozen=True, slots=True)
class Service:
    """One capability as one version of an agent offers it, and the live peers that do."""

    capability: str
    agent: str
    version: str
    owner: str
    contract: str
    description: str
    peers: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.agent} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class Edge:
    """One asks another. `source` is a capability, or a client's name where `is_client`."""

    kind: EdgeKind
    source: str
    target: str
    is_client: bool = False
    count: int = 0
    """Answered tasks, or votes; 0 for a ladder."""
    last_at: float = 0.0
    threshold: float = 0.0
    by: tuple[str, ...] = ()
    """Agents and versions that asked."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """A capability that has a queue and no live peer."""

    capability: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Map:
    """What the live peers come to together."""

    services: tuple[Service, ...] = ()
    edges: tuple[Edge, ...] = ()
    unserved: tuple[Unserved, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, capability: str) -> tuple[Service, ...]:
        """The services of a capability."""
        return tuple(service for service in self.services if service.capability == capability)

    @property
    def owners(self) -> tuple[str, ...]:
        """Every owner once, nobody last."""
        return tuple(sorted({service.owner for service in self.services}, key=lambda owner: (not owner, owner)))

    def only(self, *, capability: str | None = None, owner: str | None = None) -> "Map":
        """The part that one capability or one owner has to do with: its services, and edges from and to them."""
        kept = tuple(
            service
            for service in self.services
            if capability in (None, service.capability) and owner in (None, service.owner)
        )
        names = {service.capability for service in kept}
        if owner is None and capability is not None:
            names.add(capability)
        edges = tuple(edge for edge in self.edges if edge.target in names or _source(edge) in names)
        unserved = tuple(one for one in self.unserved if one.capability in names)
        served = {name: self.of(name) for name in names}
        return replace(self, services=kept, edges=edges, unserved=unserved, notes=_notes(served, edges, self))


def drawn(peers: Iterable[Described], queues: Mapping[str, int]) -> Map:
    """The map of what live peers told. `queues` are capabilities that have a queue, and how many wait there."""
    peers = list(peers)
    services = _services(peers)
    live = {service.capability for service in services}
    bare = Map(
        services,
        tuple(sorted((*_seen(peers), *_declared(peers)), key=lambda edge: (edge.source, edge.kind, edge.target))),
        tuple(Unserved(name, waiting) for name, waiting in sorted(queues.items()) if name not in live),
    )
    names = live | {one.capability for one in bare.unserved}
    return replace(bare, notes=_notes({name: bare.of(name) for name in names}, bare.edges, bare))


def _cards(peers: Iterable[Described]) -> Iterable[tuple[Described, AgentCard, CapabilityCard]]:
    return ((peer, card, capability) for peer in peers for card in peer.cards for capability in card.capabilities)


def _services(peers: list[Described]) -> tuple[Service, ...]:
    found: dict[tuple[str, str, str, str, str], list[str]] = defaultdict(list)
    descriptions: dict[str, str] = {}
    for peer, card, capability in _cards(peers):
        found[capability.name, card.name, card.version, card.owner, capability.contract].append(peer.beat.peer)
        descriptions.setdefault(capability.name, capability.description)
    return tuple(
        Service(*key, description=descriptions[key[0]], peers=tuple(sorted(serving)))
        for key, serving in sorted(found.items())
    )


def _seen(peers: list[Described]) -> list[Edge]:
    counts: dict[tuple[str, str, bool], int] = defaultdict(int)
    last_at: dict[tuple[str, str, bool], float] = defaultdict(float)
    by: dict[tuple[str, str, bool], set[str]] = defaultdict(set)
    for peer in peers:
        for calls in peer.calls:
            is_client = not calls.caller
            key = (calls.caller or calls.agent or UNKNOWN_CLIENT, calls.capability, is_client)
            counts[key] += calls.count
            last_at[key] = max(last_at[key], calls.last_at)
            if not is_client:
                by[key].add(f"{calls.agent} {calls.version}".strip())
    return [
        Edge(EdgeKind.CALLS, *key, count=count, last_at=last_at[key], by=tuple(sorted(by[key])))
        for key, count in counts.items()
    ]


def _declared(peers: list[Described]) -> list[Edge]:
    found: set[Edge] = set()
    for _, _, card in _cards(peers):
        if card.next_rung:
            found.add(Edge(EdgeKind.ESCALATES, card.name, card.next_rung, threshold=card.threshold))
        for verifier in set(card.verified_by):
            votes = card.verified_by.count(verifier)
            found.add(Edge(EdgeKind.VERIFIED, card.name, verifier, count=votes))
    return list(found)


def _source(edge: Edge) -> str:
    return "" if edge.is_client else edge.source


def _notes(served: Mapping[str, tuple[Service, ...]], edges: Iterable[Edge], whole: Map) -> tuple[str, ...]:
    found: list[str] = []
    for name, services in sorted(served.items()):
        found += _differences(name, services)
    waiting = {one.capability: one.waiting for one in whole.unserved}
    for name in sorted(served):
        if name in waiting:
            tasks = f", and {_tasks(waiting[name])} waiting there" if waiting[name] else ""
            found.append(f"{name} has a queue{tasks}, and no live peer serves it")
    labels = {service.label for service in whole.services}
    live = {service.capability for service in whole.services}
    for edge in edges:
        if gone := [label for label in edge.by if label not in labels]:
            found.append(
                f"{edge.target} was asked by {', '.join(gone)} ({edge.source}), which no live peer runs: an older"
                " version, or a peer that ended"
            )
        if edge.kind is not EdgeKind.CALLS and edge.target not in live:
            does = "escalates to" if edge.kind is EdgeKind.ESCALATES else "is verified by"
            found.append(f"{edge.source} {does} {edge.target}, which no live peer serves")
    return tuple(dict.fromkeys(found))


def _differences(name: str, services: tuple[Service, ...]) -> Iterable[str]:
    if not services:
        return
    contracts = {service.contract for service in services}
    labels = {service.label for service in services}
    told = "; ".join(
        f"{service.label or '(no name)'}, contract {service.contract}, on {named(service.peers)}"
        for service in services
    )
    if len(contracts) > 1:
        yield f"{name} is served under {len(contracts)} contracts: {told}: a rollout in progress, or a mistake"
    elif len({service.agent for service in services}) > 1:
        yield f"{name} is served by {len(labels)} agents: {told}: probably a mistake"
    elif len(labels) > 1:
        yield f"{name} is served by {len(labels)} versions: {told}: a rollout in progress"
    owners = {service.owner for service in services}
    if len(owners) > 1:
        teams = ", ".join(owner or "(nobody)" for owner in sorted(owners))
        yield f"{name} has {len(owners)} owners: {teams}"
    elif owners == {""}:
        yield f"{name} has no owner: name one with Agent(..., owner=)"


def named(names: tuple[str, ...]) -> str:
    """A few names, and how many more there are."""
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"
