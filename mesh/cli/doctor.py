"""`mesh doctor`: what is wrong with a mesh and how to mend it; what a rate of tasks will need."""

import asyncio
import json
import time
import urllib.request
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli import console
from mesh.cli.capacity import Load, Prediction, predict
from mesh.cli.console import AsJson
from mesh.cli.findings import (
    DEFAULT_SYNC_S,
    Clock,
    Drift,
    Facts,
    Finding,
    Inbox,
    Level,
    OpenBreaker,
    PeerFact,
    Sync,
    judge,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from contracts.card import Described
    from mesh.bus.connection import Bus

UNSERVED_MAX = 50
DESCRIBE_WITHIN_S = 0.5
MONITOR_WITHIN_S = 5.0
VALUE_BYTES = 500
_MARKS = {Level.OK: ("ok", "green"), Level.WARNING: ("warning", "yellow"), Level.PROBLEM: ("PROBLEM", "red")}


def doctor(
    monitor_url: Annotated[
        str | None, typer.Option(help="The server's monitoring address, such as http://nats:8222: tells its fsync.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Ask no server; predict what N tasks per second need.", metavar="N")
    ] = None,
    value_bytes: Annotated[
        float, typer.Option(min=0, help="With --rate: mean size of a result's value.")
    ] = VALUE_BYTES,
    as_json: AsJson = False,
) -> None:
    """Check the server, streams, clocks, peers and queues, and say how to mend what is wrong.

    Exits with 1 where a problem was found. With --rate it predicts memory, disk and restart time instead.
    """
    if rate is not None:
        raise typer.Exit(_predict(rate, value_bytes, as_json=as_json))
    facts = console.run(_examine(monitor_url))
    findings = judge(facts)
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    if as_json:
        console.print_json({"findings": [asdict(f) for f in findings], "problems": problems})
    else:
        _print(findings)
    raise typer.Exit(console.FAILED if problems else console.OK)


async def _examine(monitor_url: str | None) -> Facts:
    async with console.connected() as bus:
        return await gather(bus, await _sync(bus, monitor_url))


async def gather(bus: "Bus", sync: Sync | None) -> Facts:
    """Everything that can be asked of the server and the peers."""
    from mesh.bus import survey, topology
    from mesh.bus.dead_letters import census
    from mesh.cli.fleet import describe

    server = await survey.server(bus)
    facts = Facts(
        server_version=server.version,
        api_level=server.api_level,
        round_trip_s=server.round_trip_s,
        full_at=bus.settings.full_at,
        prefix=bus.settings.prefix,
        sync=sync,
    )
    if server.api_level is None:
        return facts
    described = await describe(bus, within_s=DESCRIBE_WITHIN_S)
    peers = tuple(PeerFact(peer.beat.peer, str(peer.beat.state), frozenset(peer.beat.load)) for peer in described)
    streams = await survey.streams(bus, queue_bounds(described, default=bus.settings.queue_max))
    if streams is None:
        return replace(facts, is_made=False, peers=peers)
    return replace(
        facts,
        drift=(
            *(Drift(str(difference), is_essential=difference.is_essential) for difference in streams.differences),
            *(Drift(f"{spec.kind} {spec} is missing", is_essential=not spec.is_optional) for spec in streams.missing),
        ),
        stream=streams.mesh,
        clocks=(Clock("the server's clock", streams.mesh.server_ahead_s, streams.mesh.server_ahead_error_s),),
        peers=peers,
        queues=streams.queues,
        unserved=await topology.unserved(bus, capabilities_max=UNSERVED_MAX),
        timeouts_s=_timeouts_s(described),
        parked=await survey.parked(bus),
        breakers=await _open_breakers(bus),
        inbox=await _inbox(bus),
        dead_letters=(await census(bus)).letters,
    )


def queue_bounds(peers: "Iterable[Described]", *, default: int) -> dict[str, int]:
    """How many tasks may wait for each capability, as the live peers want it; the least where they differ."""
    bounds: dict[str, int] = {}
    for peer in peers:
        for card in peer.cards:
            for capability in card.capabilities:
                bound = capability.queue_max or default
                bounds[capability.name] = min(bound, bounds.get(capability.name, bound))
    return bounds


def _timeouts_s(peers: "Iterable[Described]") -> dict[str, float]:
    """How long an attempt may take, the longest where peers differ."""
    found: dict[str, float] = {}
    for peer in peers:
        for card in peer.cards:
            for capability in card.capabilities:
                found[capability.name] = max(capability.timeout_s, found.get(capability.name, 0.0))
    return found


async def _open_breakers(bus: "Bus") -> tuple[OpenBreaker, ...]:
    from mesh.bus import control

    now, changes = time.time(), await control.breakers(bus)
    return tuple(
        OpenBreaker(name, str(change.state), max(0.0, now - change.at), change.reason)
        for name, change in changes.items()
        if change.state != "closed"
    )


async def _inbox(bus: "Bus") -> Inbox | None:
    from mesh.errors import PermissionDenied
    from mesh.inbox import read_inbox

    try:
        waiting = [question.asked_at for question in await read_inbox(bus) if question.is_open]
    except PermissionDenied:
        return None
    return Inbox(len(waiting), max(0.0, time.time() - min(waiting))) if waiting else Inbox()


async def _sync(bus: "Bus", monitor_url: str | None) -> Sync | None:
    """When the server writes through to disk, where that can be known: from its monitoring, or because it is ours."""
    from mesh.local.discovery import find_local

    if monitor_url is not None:
        return await asyncio.to_thread(_monitored_sync, monitor_url)
    local = find_local()
    if local is not None and local["url"] == bus.settings.nats_url and local["sync_interval"]:
        return Sync(_seconds(local["sync_interval"]), "the server of `mesh up`")
    return None


def _monitored_sync(url: str) -> Sync:
    place = f"{url.rstrip('/')}/varz"
    try:
        with urllib.request.urlopen(place, timeout=MONITOR_WITHIN_S) as answer:  # noqa: S310  # an operator's own address
            config = json.load(answer)["jetstream"]["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise console.Failed(f"{place} does not tell the server's configuration: {error}") from error
    interval_s = 0.0 if config.get("sync_always") else config.get("sync_interval", DEFAULT_SYNC_S * 1e9) / 1e9
    return Sync(interval_s, place)


def _seconds(interval: str) -> float:
    """`1s`, `2m` or `always` as seconds."""
    if interval == "always":
        return 0.0
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0}
    digits = interval.rstrip("mhs")
    return float(digits) * units[interval[len(digits) :]]


def _predict(rate: float, value_bytes: float, *, as_json: bool) -> int:
    settings = console.settings()
    load = Load(
        tasks_per_s=rate,
        value_bytes=value_bytes,
        result_ttl_s=settings.result_ttl_s,
        stream_bytes_max=settings.stream_bytes_max,
        full_at=settings.full_at,
        replicas=settings.replicas,
    )
    prediction = predict(load)
    if as_json:
        console.print_json({"load": asdict(load), "prediction": asdict(prediction)})
    else:
        print(told(load, prediction))
    return console.FAILED if prediction.full_after_s is not None else console.OK


def told(load: Load, prediction: Prediction) -> str:
    """A prediction in words."""
    copies = "1 copy" if load.replicas == 1 else f"{load.replicas} copies"
    limit = "no limit" if load.stream_bytes_max <= 0 else _size(load.stream_bytes_max)
    text = f"""\
{load.tasks_per_s:,g} tasks/s, values of {load.value_bytes:,g} bytes, {copies}, \
results kept for {console.length(load.result_ttl_s)} (MESH_RESULT_TTL_S)

On each server that holds a copy:
  kept results   {prediction.kept_results:,.0f}
  memory         {_size(prediction.memory_bytes)}
  disk           {_size(prediction.disk_bytes)}, {_size(prediction.stream_bytes)} of it counted against {limit}
  restart        {console.length(prediction.restart_s)}; \
from a cold disk about {console.length(prediction.cold_restart_s)}"""
    if prediction.full_after_s is not None:
        text += f"""

PROBLEM: the stream is full after {console.length(prediction.full_after_s)}, and refuses new tasks.
Keep results for less time (MESH_RESULT_TTL_S, or result_ttl_s of a capability), or raise the stream's limit
(MESH_STREAM_BYTES_MAX, then `mesh topology apply`)."""
    return text


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.1f} TiB"


def _print(findings: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, colour = _MARKS[finding.level]
        text = Text(finding.text)
        if finding.mend:
            text.append(f"\n→ {finding.mend}", style="dim")
        table.add_row(Text(mark, style=colour), finding.check, text)
    console.out().print(table)
