"""How the mesh does: facts and a time in, judgements out. Nothing here waits, asks or looks at a clock.

Rules about what is old:

- A peer is `silent` after three of its beats were missed, and `gone` after ten, or once it said that it leaves. Its
  numbers are then left out of every sum.
- While the connection is gone nothing can be told of peers: they are `?`, and so are sums over them. After a
  reconnection each is `?` until its next beat, for as long as it may take.
- A number that was asked for more than three intervals ago, or that could not be asked for again, has a `?`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from contracts.card import Load, PeerState
from mesh.cli.console import clock, length, one_line
from mesh.cli.top.facts import Card, Facts, Heard, Look
from mesh.cli.top.table import UNKNOWN

SILENT_AFTER: Final = 3.0
"""Missed beats."""
GONE_AFTER: Final = 10.0
STALE_AFTER: Final = 3.0
"""Intervals."""
NEAR_BOUND: Final = 0.8
LANES: Final = ("urgent", "normal", "bulk")
LOOK_S: Final = {"queues": 2.0, "controls": 5.0, "limits": 5.0, "letters": 5.0, "unserved": 10.0, "inbox": 10.0}
"""How often each is asked for, in seconds, unless the screen is slower."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a screen is drawn: `at` on the clock of the facts, and Unix time. `slow` stretches all intervals."""

    at: float
    unix: float
    slow: float = 1.0


class Peerage(StrEnum):
    """What is known of a peer's life."""

    UNHEARD = "?"
    SILENT = "silent"
    GONE = "gone"


def state_of(heard: Heard, facts: Facts, moment: Moment) -> str:
    """A peer's state: its own word for it while it beats."""
    if not facts.is_connected:
        return Peerage.UNHEARD
    if heard.left:
        return Peerage.GONE
    interval_s = max(heard.interval_s, 0.05)
    # What was sent while the connection was gone was missed here and not there.
    silent_s = moment.at - max(heard.at, facts.connected_at)
    if silent_s > GONE_AFTER * interval_s:
        return Peerage.GONE
    if silent_s > SILENT_AFTER * interval_s:
        return Peerage.SILENT
    if heard.at < facts.connected_at:
        return Peerage.UNHEARD
    return str(heard.beat.state)


def live(facts: Facts, moment: Moment) -> list[Heard]:
    """Peers that beat now."""
    own = {str(state) for state in PeerState}
    return [heard for heard in facts.peers.values() if state_of(heard, facts, moment) in own]


def is_stale(look: Look[Any], interval_s: float, facts: Facts, moment: Moment) -> bool:
    """Whether what a look showed may have changed since."""
    if look.at is None or look.error or not facts.is_connected:
        return True
    return moment.at - look.at > STALE_AFTER * interval_s * moment.slow


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane's queue."""

    waiting: int = 0
    in_hand: int = 0
    bound: int = 0


@dataclass(frozen=True, slots=True)
class CapabilityNow:
    """One capability at a moment. What is not known is None."""

    name: str
    cards: tuple[Card, ...]
    peers: tuple[Heard, ...]
    is_known: bool
    """Whether it can be told who serves it."""
    lanes: dict[str, Lane]
    are_lanes_stale: bool
    is_paused: bool
    held_by: tuple[str, ...]

    @property
    def loads(self) -> list[Load]:
        return [heard.beat.load[self.name] for heard in self.peers]

    @property
    def waiting(self) -> int:
        return sum(lane.waiting for lane in self.lanes.values())

    @property
    def rate(self) -> float | None:
        """Answers a second; None while no peer has beaten twice."""
        rates = [rate for heard in self.peers if (rate := heard.rate(self.name)) is not None]
        return sum(rates) if rates else None

    @property
    def owner(self) -> str:
        return ", ".join(dict.fromkeys(card.owner for card in self.cards if card.owner))

    @property
    def fullest(self) -> float:
        """The largest share of its bound that waits in a lane."""
        return max((lane.waiting / lane.bound for lane in self.lanes.values() if lane.bound), default=0.0)

    @property
    def state(self) -> str:
        """What an operator should know first."""
        if not self.is_known:
            return UNKNOWN
        if not self.peers:
            return "NO PEER"
        if self.is_paused:
            return "PAUSED"
        if self.held_by:
            return f"held: {', '.join(self.held_by)}"
        if self.fullest >= 1:
            return "FULL"
        if self.fullest >= NEAR_BOUND:
            return f"{self.fullest:.0%} full"
        if not any(heard.beat.state is PeerState.READY for heard in self.peers):
            return "draining"
        return "ok"


def capabilities(facts: Facts, moment: Moment) -> list[CapabilityNow]:
    """Every capability that a live peer serves or that has a queue, by name."""
    peers = live(facts, moment)
    unsure = any(state_of(heard, facts, moment) == Peerage.UNHEARD for heard in facts.peers.values())
    queues: dict[str, dict[str, Lane]] = {}
    for look in facts.queues.value:
        queues.setdefault(look.capability, {})[look.lane] = Lane(look.waiting, look.in_hand, look.bound)
    stale = is_stale(facts.queues, LOOK_S["queues"], facts, moment)
    serving: dict[str, list[Heard]] = {}
    for heard in peers:
        for name in heard.beat.load:
            serving.setdefault(name, []).append(heard)
    found = []
    for name in sorted({*queues, *serving}):
        by = tuple(serving.get(name, ()))
        loads = [heard.beat.load[name] for heard in by]
        paused = any(load.is_paused for load in loads) if not facts.pauses.value else name in facts.pauses.value
        held = tuple(sorted({breaker for load in loads for breaker in load.held_by}))
        found.append(
            CapabilityNow(
                name,
                facts.cards.get(name, ()),
                by,
                is_known=facts.is_connected and (bool(by) or not unsure),
                lanes=queues.get(name, {}),
                are_lanes_stale=stale,
                is_paused=paused,
                held_by=held,
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole mesh in one line. What is not known is None."""

    peers: int | None
    rate: float | None
    running: int | None
    slots: int | None
    waiting: int | None
    inbox: int | None
    inbox_oldest_at: float | None
    dead_letters: int | None
    unserved: int | None
    open_breakers: int | None
    paused: int | None


def totals(facts: Facts, moment: Moment) -> Totals:
    """The sums over what is known now; None instead of a sum that may be old."""
    peers = live(facts, moment)
    loads = [load for heard in peers for load in heard.beat.load.values()]
    rates = [rate for heard in peers for name in heard.beat.load if (rate := heard.rate(name)) is not None]
    is_known = facts.is_connected

    def fresh(look: Look[Any], what: str) -> bool:
        return not is_stale(look, LOOK_S[what], facts, moment)

    inbox = facts.inbox.value
    queues = fresh(facts.queues, "queues")
    orphaned = [now for now in capabilities(facts, moment) if now.is_known and not now.peers]
    unserved = sum(facts.unserved.value.values()) + sum(now.waiting for now in orphaned)
    return Totals(
        peers=len(peers) if is_known else None,
        rate=sum(rates) if is_known and (rates or not peers) else None,
        running=sum(load.in_flight for load in loads) if is_known else None,
        slots=sum(load.slots for load in loads) if is_known else None,
        waiting=sum(look.waiting for look in facts.queues.value) if queues else None,
        inbox=inbox.count if fresh(facts.inbox, "inbox") else None,
        inbox_oldest_at=inbox.oldest_at if fresh(facts.inbox, "inbox") else None,
        dead_letters=facts.letters.value.all.count if fresh(facts.letters, "letters") else None,
        unserved=unserved if fresh(facts.unserved, "unserved") and queues else None,
        open_breakers=sum(change.state != "closed" for change in facts.breakers.value.values())
        if fresh(facts.breakers, "controls")
        else None,
        paused=len(facts.pauses.value) if fresh(facts.pauses, "controls") else None,
    )


def headline(facts: Facts, moment: Moment) -> tuple[str, str]:
    """Two lines: how the mesh does, and what needs somebody."""
    all_of = totals(facts, moment)
    oldest = ""
    if all_of.inbox_oldest_at is not None:
        oldest = f" (oldest {length(max(0.0, moment.unix - all_of.inbox_oldest_at))})"
    rate = UNKNOWN if all_of.rate is None else f"{all_of.rate:,.1f}" if all_of.rate < 100 else f"{all_of.rate:,.0f}"
    first = (
        f"{_count(all_of.peers)} live {'peer' if all_of.peers == 1 else 'peers'}   {rate} answers/s"
        f"   {_count(all_of.running)}/{_count(all_of.slots)} running   {_count(all_of.waiting)} waiting"
    )
    second = (
        f"inbox {_count(all_of.inbox)}{oldest}   dead letters {_count(all_of.dead_letters)}"
        f"   unserved {_count(all_of.unserved)}   breakers open {_count(all_of.open_breakers)}"
        f"   paused {_count(all_of.paused)}"
    )
    return first, second


def warning(facts: Facts, moment: Moment) -> str:
    """What is wrong with what is shown; empty if nothing is."""
    if not facts.is_connected:
        gone_s = moment.at - facts.connected_at
        since = clock(moment.unix - gone_s)
        return f"NOT CONNECTED since {since} ({length(gone_s)}): what is shown is older than that; reconnecting"
    errors = {
        name: look.error
        for name, look in (
            ("queues", facts.queues),
            ("breakers", facts.breakers),
            ("limits", facts.limits),
            ("inbox", facts.inbox),
            ("dead letters", facts.letters),
            ("unserved tasks", facts.unserved),
        )
        if look.error
    }
    if errors:
        first, told = next(iter(errors.items()))
        return f"not known now: {', '.join(errors)} ({first}: {one_line(told, 100)})"
    return ""


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"
