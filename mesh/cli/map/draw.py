"""A map as text, as Mermaid, as Graphviz, and as one JSON document."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from mesh.cli.console import length, one_line
from mesh.cli.map.model import Edge, EdgeKind, Map, Service, named

NOBODY = "(no owner)"
NOTE_LENGTH_MAX = 1_000


def text(found: Map, now: float) -> Iterator[str]:
    """Lines, grouped by owner: each capability with who offers it, who asks for it, and what it asks for."""
    for owner in found.owners:
        yield one_line(owner) or NOBODY
        for service in found.services:
            if service.owner == owner:
                yield from _service(service, found, now)
        yield ""
    if found.unserved:
        yield "(no live peer)"
        for one in found.unserved:
            yield f"  {one.capability}   {one.waiting:,} waiting"
            yield from _edges(one.capability, found, now)
        yield ""
    if found.notes:
        yield "notes"
        # Names in them are peers' own, and may be anything.
        yield from (f"  ! {one_line(note, NOTE_LENGTH_MAX)}" for note in found.notes)


def _service(service: Service, found: Map, now: float) -> Iterator[str]:
    peers = f"{len(service.peers)} {'peer' if len(service.peers) == 1 else 'peers'}"
    yield (
        f"  {service.capability}   {one_line(service.label)}   contract {service.contract}"
        f"   {peers}: {named(service.peers)}"
    )
    first = next(one for one in found.services if one.capability == service.capability)
    if service is first:
        # What is counted is counted by capability: it stands once, under the first of several versions.
        yield from _edges(service.capability, found, now)


def _edges(capability: str, found: Map, now: float) -> Iterator[str]:
    calls = [edge for edge in found.edges if edge.kind is EdgeKind.CALLS]
    asked = [edge for edge in calls if edge.target == capability]
    asks = [edge for edge in calls if edge.source == capability and not edge.is_client]
    if asked:
        yield f"    asked by      {', '.join(_caller(edge, now) for edge in _most(asked))}"
    if asks:
        yield f"    asks          {', '.join(f'{edge.target} {edge.count:,}' for edge in _most(asks))}"
    for edge in found.edges:
        if edge.source != capability or edge.is_client:
            continue
        if edge.kind is EdgeKind.ESCALATES:
            yield f"    escalates to  {edge.target}, answers less sure than {edge.threshold:g}"
        elif edge.kind is EdgeKind.VERIFIED:
            votes = f", {edge.count} votes" if edge.count > 1 else ""
            yield f"    verified by   {edge.target}{votes}"


def _caller(edge: Edge, now: float) -> str:
    who = f"client {one_line(edge.source, 40)}" if edge.is_client else edge.source
    return f"{who} {edge.count:,} (last {length(max(0.0, now - edge.last_at))} ago)"


def _most(edges: Iterable[Edge]) -> list[Edge]:
    return sorted(edges, key=lambda edge: (-edge.count, edge.source, edge.target))


def document(found: Map) -> dict[str, Any]:
    """The same as one document."""
    return {
        "services": msgspec.to_builtins(found.services),
        "edges": [{**msgspec.to_builtins(edge), "kind": str(edge.kind)} for edge in found.edges],
        "unserved": msgspec.to_builtins(found.unserved),
        "notes": list(found.notes),
    }


def mermaid(found: Map) -> Iterator[str]:
    """A flowchart for documents: https://mermaid.js.org."""
    places = _Places(found)
    yield "flowchart LR"
    for index, owner in enumerate(found.owners):
        yield f'  subgraph o{index}["{_mermaid(owner or NOBODY)}"]'
        for capability, label in _labels(found, owner):
            yield f'    {places.of(capability)}["{_mermaid(capability)}<br/>{_mermaid(label)}"]'
        yield "  end"
    for capability in places.bare:
        yield f'  {places.of(capability)}["{_mermaid(capability)}"]:::bare'
    for client in places.clients:
        yield f'  {places.of(client, is_client=True)}(["{_mermaid(client)}"])'
    for edge in found.edges:
        source, target = places.of(edge.source, is_client=edge.is_client), places.of(edge.target)
        arrow = "-->" if edge.kind is EdgeKind.CALLS else "-.->"
        yield f'  {source} {arrow}|"{_mermaid(_words(edge))}"| {target}'
    if places.bare:
        yield "  classDef bare stroke-dasharray: 4"


def dot(found: Map) -> Iterator[str]:
    """A directed graph for Graphviz: `mesh map --dot | dot -Tsvg`."""
    places = _Places(found)
    yield "digraph mesh {"
    yield "  rankdir=LR; node [shape=box];"
    for index, owner in enumerate(found.owners):
        yield f"  subgraph cluster_{index} {{ label={_quoted(owner or NOBODY)};"
        for capability, label in _labels(found, owner):
            yield f"    {places.of(capability)} [label={_quoted(capability, label)}];"
        yield "  }"
    for capability in places.bare:
        yield f"  {places.of(capability)} [label={_quoted(capability)}, style=dashed];"
    for client in places.clients:
        yield f"  {places.of(client, is_client=True)} [label={_quoted(client)}, shape=oval];"
    for edge in found.edges:
        source, target = places.of(edge.source, is_client=edge.is_client), places.of(edge.target)
        style = "" if edge.kind is EdgeKind.CALLS else ", style=dashed"
        yield f"  {source} -> {target} [label={_quoted(_words(edge))}{style}];"
    yield "}"


class _Places:
    """Short names for the places of a graph: capabilities and clients have names of people's making."""

    def __init__(self, found: Map) -> None:
        served = {service.capability for service in found.services}
        asked = {edge.target for edge in found.edges}
        asked |= {edge.source for edge in found.edges if not edge.is_client}
        self.bare = sorted((asked | {one.capability for one in found.unserved}) - served)
        """Capabilities in it that nobody in it serves."""
        self.clients = sorted({edge.source for edge in found.edges if edge.is_client})
        self._names = {(name, False): f"c{index}" for index, name in enumerate(sorted(served | {*self.bare}))}
        self._names |= {(name, True): f"k{index}" for index, name in enumerate(self.clients)}

    def of(self, name: str, *, is_client: bool = False) -> str:
        return self._names[name, is_client]


def _labels(found: Map, owner: str) -> Iterator[tuple[str, str]]:
    """Each capability once, under its first owner, with the versions of it."""
    done: set[str] = set()
    for service in found.services:
        services = found.of(service.capability)
        if service.capability not in done and services[0].owner == owner:
            done.add(service.capability)
            yield service.capability, ", ".join(dict.fromkeys(one.label for one in services))


def _words(edge: Edge) -> str:
    match edge.kind:
        case EdgeKind.CALLS:
            return f"{edge.count:,}"
        case EdgeKind.ESCALATES:
            return f"below {edge.threshold:g}"
        case EdgeKind.VERIFIED:
            return "verifies" if edge.count < 2 else f"verifies x{edge.count}"


def _mermaid(told: str) -> str:
    plain = one_line(told, 80)
    return "".join(letter if letter.isalnum() or letter in " -_.,:/+@()" else f"#{ord(letter)};" for letter in plain)


def _quoted(*told: str) -> str:
    escaped = (one_line(line, 80).replace("\\", "\\\\").replace('"', '\\"') for line in told)
    return '"' + "\\n".join(escaped) + '"'
