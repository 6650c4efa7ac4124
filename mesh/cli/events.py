"""`mesh events`: what happened to tasks and peers, as their stream keeps it, and what happens now."""

import contextlib
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from contracts.errors import ContractError
from contracts.subjects import check_capability, is_legal_id
from mesh.cli import console
from mesh.cli.console import clock, length, one_line

if TYPE_CHECKING:
    from contracts.decision import Decision
    from contracts.event import Event
    from mesh.bus.connection import Bus
    from mesh.bus.records import Stored

SINCE: Final = "1h"
"""How far back it looks where neither a time nor a task is named."""
DIGEST_SHOWN: Final = 12
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(s|min|m|h|d|w)")
_KIND = re.compile(r"[a-z0-9-]+")

Since = Annotated[
    str | None,
    typer.Option("--since", help="From when on: a length of time, as 90s, 15m, 1h30m or 2d, or an ISO time."),
]
OfCapability = Annotated[str | None, typer.Option("--capability", "-c", help="Only of this capability.")]


def events(
    since: Since = None,
    capability: OfCapability = None,
    task_id: Annotated[str | None, typer.Option("--id", help="Only of this task and everything below it.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", "-k", help="Only of this kind, as ended; repeat it.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens now, until Ctrl-C.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest so many of those that are kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, and nothing else.")] = False,
) -> None:
    """Print what happened to tasks and peers, oldest first: the last hour, or all that is kept of a task."""
    now = time.time()
    if capability is not None and capability.count("/") == 1 and task_id is None:
        capability, _, task_id = capability.partition("/")
    if task_id is not None and not is_legal_id(task_id):
        raise ContractError(f"no task can have the id {task_id!r}")
    if capability is not None:
        check_capability(capability)
    for one in kind or ():
        if not _KIND.fullmatch(one):
            raise ContractError(f"--kind is {one!r}; it must be small letters, digits and '-', as dead-lettered")
    if since is None and task_id is None:
        since = SINCE
    from_at = None if since is None else moment(since, now)

    def show(stored: "Stored") -> None:
        print(json_line(stored) if as_json else line(stored, now), flush=follow)

    async def main() -> None:
        last: deque[Stored] = deque(maxlen=limit)
        count, is_live = 0, limit is None

        def show_last() -> None:
            nonlocal is_live
            is_live = True
            while last:
                show(last.popleft())

        async with console.connected() as bus:
            filters = [
                subject
                for each in dict.fromkeys(kind or ["*"])
                for subject in bus.subjects.events_of(each, capability or "*", task_id or "")
            ]
            reading = read_events(bus, filters, since=from_at, follow=follow, caught_up=show_last)
            async with aclosing(reading) as found:
                async for stored in found:
                    count += 1
                    if is_live:
                        show(stored)
                    else:
                        last.append(stored)
            if not count and not as_json:
                console.note(await _why_none(bus, from_at))

    with contextlib.suppress(BrokenPipeError):
        console.run(main())


async def read_events(
    bus: "Bus",
    filters: Sequence[str],
    *,
    since: float | None,
    follow: bool = False,
    caught_up: Callable[[], None] = lambda: None,
) -> "AsyncGenerator[Stored, None]":
    """What the stream of events keeps.

    Raises:
        NoMesh: there is no such stream.
    """
    from mesh.bus.history import NoStream, read_on

    stream = bus.subjects.event_stream
    try:
        reading = read_on(bus, stream, filters, since=since, follow=follow, caught_up=caught_up)
        async with aclosing(reading) as found:
            async for stored in found:
                yield stored
    except NoStream as error:
        raise console.NoMesh(
            f"the mesh {bus.settings.prefix!r} has no stream of events, {bus.subjects.event_stream}: a peer of this"
            f" version makes it; if there should be one, MESH_PREFIX names another mesh"
        ) from error


async def read_told(bus: "Bus", filters: Sequence[str], *, since: float) -> "AsyncGenerator[Event, None]":
    """What events say, less those that cannot be read, which `mesh events` shows.

    Raises:
        NoMesh: there is no such stream.
    """
    from contracts import wire
    from contracts.event import Event

    async with aclosing(read_events(bus, filters, since=since)) as found:
        async for stored in found:
            with contextlib.suppress(ContractError):
                yield wire.decode(Event, stored.data)


async def _why_none(bus: "Bus", since: float | None) -> str:
    info = await bus.api(f"STREAM.INFO.{bus.subjects.event_stream}")
    state, kept_s = info["state"], info["config"]["max_age"] / 1e9
    if not state["messages"]:
        return (
            "no events are kept: none happened, they are older than"
            f" {length(kept_s) if kept_s else 'the stream keeps'}, or peers publish none (MESH_EVENTS=off)"
        )
    from mesh.bus.records import unix

    oldest = clock(unix(state["first_ts"]))
    looked = f" since {clock(since)}" if since is not None else ""
    return (
        f"no such events{looked}: {state['messages']:,} of other kinds or tasks, or older ones, are kept, the oldest"
        f" of {oldest}; peers with MESH_EVENTS=notable do not tell what ended, with off nothing"
    )


def moment(text: str, now: float) -> float:
    """The Unix time that a length of time before `now`, or an ISO time, stands for; local, if it names no zone.

    Raises:
        ContractError: it is neither.
    """
    plain = text.strip()
    if plain and not _LENGTH.sub("", plain):
        return now - sum(float(count) * _UNITS[unit] for count, unit in _LENGTH.findall(plain))
    try:
        return datetime.fromisoformat(plain).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ContractError(
            f"--since is {text[:60]!r}; it must be a length of time as 90s, 15m, 1h30m or 2d, or an ISO time as"
            f" 2026-11-21T14:00"
        ) from None


def json_line(stored: "Stored") -> str:
    """An event as JSON on one line, as it was published, with its place in the stream."""
    place = {"sequence": stored.sequence, "stored_at": stored.stored_at}
    try:
        fields = msgspec.json.decode(stored.data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = {"kind": "unreadable", "detail": stored.subject}
    return msgspec.json.encode({**place, **fields}).decode()


def line(stored: "Stored", now: float) -> str:
    """An event as one line for people; one that cannot be read says so."""
    from contracts import wire
    from contracts.event import Event

    try:
        event = wire.decode(Event, stored.data)
    except ContractError as error:
        return f"{clock(stored.stored_at)}  unreadable     {one_line(stored.subject, 80)}  {one_line(str(error), 80)}"
    about = f"{event.capability}/{event.id}" if event.id else event.peer
    return f"{clock(event.at)}  {one_line(event.kind, 20):<14} {one_line(about, 80)}  {told(event)}".rstrip()


def told(event: "Event") -> str:
    """What an event says beyond what happened to whom. Kinds that this version does not know are told, too."""
    if event.decision is not None:
        return decision_words(event.decision)
    facts = [event.status]
    if event.status:
        facts[0] += f" ({event.failure})" if event.failure else ""
        if event.attempt > 1:
            # What it waited between its runs is in neither of them.
            facts[0] += f" after {length(event.queue_s + event.run_s)}"
            facts.append(f"attempt {event.attempt}")
        else:
            facts[0] += f" in {length(event.run_s)}"
            facts.append(f"queued {length(event.queue_s)}" if event.queue_s >= 0.001 else "")
        facts.append(f"confidence {event.confidence:.2g}" if event.confidence is not None else "")
        if event.spent is not None:
            tokens = event.spent.tokens_in + event.spent.tokens_out
            facts.append(f"{tokens:,} tokens" if tokens else "")
            facts.append(f"${event.spent.usd:,.4g}" if event.spent.usd else "")
        facts.append(f"version {event.version}" if event.version else "")
        facts.append(f"for {event.caller}" if event.caller else "")
    facts.append(one_line(event.detail))
    facts.append(f"on {event.peer}" if event.id else "")
    return ", ".join(filter(None, facts))


def decision_words(decision: "Decision") -> str:
    """A decision in one line: what was chosen, how sure, why, by whom or with what."""
    found = one_line(decision.choice, 60)
    facts = [f"by {one_line(decision.by, 40)}" if decision.by else ""]
    facts.append(f"confidence {decision.confidence:.2g}" if decision.confidence is not None else "")
    facts.append(f"model {one_line(decision.model, 40)}" if decision.model else "")
    facts.append(f"model digest {decision.model_digest[:DIGEST_SHOWN]}" if decision.model_digest else "")
    facts.append(f"prompt {decision.prompt_digest[:DIGEST_SHOWN]}" if decision.prompt_digest else "")
    if said := ", ".join(filter(None, facts)):
        found += f" ({said})"
    return f"{found}: {one_line(decision.reason)}" if decision.reason else found
