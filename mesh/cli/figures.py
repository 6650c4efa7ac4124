"""What events say of the work of a time, in rows: how many tasks, how long, how well, at what cost."""

import heapq
import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contracts.event import Event

SLOWEST: Final = 5
NOBODY: Final = "(nobody)"
DAY_S: Final = 86_400.0
TELLS_S: Final = 60.0

ENDED: Final = "ended"
_TROUBLE: Final = {"retried": "retried", "taken-over": "taken_over", "dead-lettered": "dead_lettered"}


class By(StrEnum):
    """What the tasks of a row have in common."""

    CAPABILITY = "capability"
    OWNER = "owner"
    AGENT = "agent"
    VERSION = "version"
    PEER = "peer"
    CALLER = "caller"


@dataclass(slots=True)
class Row:
    """Tasks that ended, and what they met on the way. Times in seconds."""

    name: str
    tasks: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    retried: int = 0
    taken_over: int = 0
    dead_lettered: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0
    confidences: int = 0
    confidence_sum: float = 0.0
    queue_s: "array[float]" = field(default_factory=lambda: array("d"))
    run_s: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def confidence(self) -> float | None:
        """The mean of what answers said of themselves; None where none did."""
        return self.confidence_sum / self.confidences if self.confidences else None

    def add(self, event: "Event") -> None:
        """Count one task that ended."""
        self.tasks += 1
        self.failed += event.status == "failed"
        self.expired += event.status == "expired"
        self.cancelled += event.status == "cancelled"
        self.queue_s.append(event.queue_s)
        self.run_s.append(event.run_s)
        if event.confidence is not None:
            self.confidences += 1
            self.confidence_sum += event.confidence
        if event.spent is not None:
            self.tokens_in += event.spent.tokens_in
            self.tokens_out += event.spent.tokens_out
            self.usd += event.spent.usd


@dataclass(frozen=True, slots=True)
class Slow:
    """One task that took long, from its submission to its answer."""

    capability: str
    id: str
    peer: str
    queue_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """What happened between two Unix times."""

    by: By
    since: float
    until: float
    rows: tuple[Row, ...]
    """Those with the most work first."""
    slowest: tuple[Slow, ...]

    @property
    def usd(self) -> float:
        return math.fsum(row.usd for row in self.rows)

    @property
    def usd_a_day(self) -> float:
        """What a day costs that goes on like this; 0 where the time is too short to tell."""
        span_s = self.until - self.since
        return self.usd / span_s * DAY_S if span_s >= TELLS_S else 0.0


class Tally:
    """Makes rows of events, one after the other."""

    def __init__(self, by: By) -> None:
        self._by = by
        self._rows: dict[str, Row] = {}
        self._who: dict[str, tuple[str, str]] = {}
        self._trouble: Counter[tuple[str, str, str]] = Counter()
        self._slowest: list[tuple[float, int, Slow]] = []
        self._tasks = 0

    def add(self, event: "Event") -> None:
        """Count one event, if its kind tells of work."""
        if event.kind in _TROUBLE:
            self._trouble[_TROUBLE[event.kind], event.capability, event.peer] += 1
        if event.kind != ENDED:
            return
        self._tasks += 1
        self._who[event.capability] = event.owner or NOBODY, event.agent or NOBODY
        self._row(_name(event, self._by)).add(event)
        took_s = event.queue_s + event.run_s
        if len(self._slowest) < SLOWEST or took_s > self._slowest[0][0]:
            slow = Slow(event.capability, event.id, event.peer, event.queue_s, event.run_s)
            heapq.heappush(self._slowest, (took_s, self._tasks, slow))
            if len(self._slowest) > SLOWEST:
                heapq.heappop(self._slowest)

    def report(self, *, since: float, until: float) -> Report:
        """What the events of a time come to."""
        for (what, capability, peer), count in self._trouble.items():
            owner, agent = self._who.get(capability, (NOBODY, NOBODY))
            names = {By.CAPABILITY: capability, By.PEER: peer, By.OWNER: owner, By.AGENT: agent}
            # Such an event tells neither a version nor who asked.
            if self._by in names:
                row = self._row(names[self._by])
                setattr(row, what, getattr(row, what) + count)
        self._trouble.clear()
        ordered = sorted(self._rows.values(), key=lambda row: (-math.fsum(row.run_s), row.name))
        slowest = tuple(slow for _, _, slow in sorted(self._slowest, reverse=True))
        return Report(self._by, since, until, tuple(ordered), slowest)

    def _row(self, name: str) -> Row:
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = Row(name)
        return row


def quantile(values: "array[float]", share: float) -> float:
    """The value below which a share of them lies; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _name(event: "Event", by: By) -> str:
    match by:
        case By.CAPABILITY:
            return event.capability
        case By.OWNER:
            return event.owner or NOBODY
        case By.AGENT:
            return event.agent or NOBODY
        case By.VERSION:
            return f"{event.agent} {event.version}".strip() or NOBODY
        case By.PEER:
            return event.peer
        case By.CALLER:
            return event.caller or NOBODY
