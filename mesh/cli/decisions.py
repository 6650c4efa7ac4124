"""`mesh decisions`: what agents chose, how often and how sure, and when their model or prompt changed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from contracts.subjects import check_capability
from mesh.cli import console
from mesh.cli.console import AsJson, clock, one_line
from mesh.cli.events import DIGEST_SHOWN, Since, moment, read_told

if TYPE_CHECKING:
    from contracts.event import Event

SINCE = "7d"
CHOICES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """How often something was chosen. `confidence` is the mean of those that told one."""

    capability: str
    version: str
    choice: str
    count: int
    confidence: float | None
    is_by_people: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A model or prompt that was seen for the first time under a version; `before` is what the decision before had."""

    at: float
    capability: str
    version: str
    before: tuple[str, str, str]
    after: tuple[str, str, str]


def decisions(
    capability: Annotated[str | None, typer.Argument(metavar="[CAPABILITY]", help="Of all, if none is named.")] = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Count what agents chose, and show where model or prompt changed while the version stayed: the last 7 days."""
    if capability is not None:
        check_capability(capability)
    from_at = moment(since or SINCE, time.time())

    async def main() -> "list[Event]":
        from contracts.event import EventKind

        async with console.connected() as bus:
            filters = bus.subjects.events_of(EventKind.DECIDED, capability or "*")
            return [event async for event in read_told(bus, filters, since=from_at)]

    made = console.run(main())
    counted, changes = counts(made), drift(made)
    if as_json:
        console.print_json({"choices": msgspec.to_builtins(counted), "changes": [_document(one) for one in changes]})
        return
    if not counted:
        console.note(f"no decisions since {clock(from_at)}: agents record none (ctx.decide), or MESH_EVENTS is off")
        return
    for one in counted:
        sure = f"  confidence {one.confidence:.2g}" if one.confidence is not None else ""
        people = " (by people)" if one.is_by_people else ""
        print(f"{one.count:>9,}  {_under(one.capability, one.version)}  {one_line(one.choice, 60)}{people}{sure}")
    for change in changes:
        print(f"\n{clock(change.at)}  {_under(change.capability, change.version)} changed without a new version:")
        for what, before, after in zip(
            ("model", "model digest", "prompt digest"), change.before, change.after, strict=True
        ):
            if before != after:
                print(f"  {what:<14} {before[:DIGEST_SHOWN] or '(none)'} -> {after[:DIGEST_SHOWN] or '(none)'}")


def counts(made: "Iterable[Event]") -> list[Chosen]:
    """Choices with how often they were made, by capability and version, the most frequent first."""
    found: dict[tuple[str, str, str, bool], list[float | None]] = {}
    for event in made:
        if (decision := event.decision) is not None:
            key = event.capability, decision.version, decision.choice, bool(decision.by)
            found.setdefault(key, []).append(decision.confidence)
    counted = [
        Chosen(capability, version, choice, len(sure), _mean(sure), is_by_people)
        for (capability, version, choice, is_by_people), sure in found.items()
    ]
    return sorted(counted, key=lambda one: (one.capability, one.version, -one.count, one.choice))


def drift(made: "Iterable[Event]") -> list[Change]:
    """Where model or prompt changed under the same capability and version, oldest first.

    What was seen before is no change: while peers are replaced one by one, old and new take turns. Decisions of
    people, and those that tell of no model and no prompt, are left out.
    """
    latest: dict[tuple[str, str], tuple[str, str, str]] = {}
    seen: dict[tuple[str, str], set[tuple[str, str, str]]] = {}
    found: list[Change] = []
    for event in sorted(made, key=lambda event: event.at):
        decision = event.decision
        if decision is None or decision.by:
            continue
        marks = (decision.model, decision.model_digest, decision.prompt_digest)
        if not any(marks):
            continue
        under = event.capability, decision.version
        before = latest.get(under)
        if before is not None and marks not in seen[under]:
            found.append(Change(event.at, *under, before, marks))
        latest[under] = marks
        seen.setdefault(under, set()).add(marks)
    return found


def _mean(sure: list[float | None]) -> float | None:
    known = [one for one in sure if one is not None]
    return sum(known) / len(known) if known else None


def _under(capability: str, version: str) -> str:
    return f"{capability} {version}".rstrip()


def _document(change: Change) -> dict[str, Any]:
    names = ("model", "model_digest", "prompt_digest")
    return {
        "at": change.at,
        "capability": change.capability,
        "version": change.version,
        "before": dict(zip(names, change.before, strict=True)),
        "after": dict(zip(names, change.after, strict=True)),
    }
