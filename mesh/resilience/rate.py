"""A rate that many share, as two token buckets (requests, tokens) from which turns are booked ahead.

Time and amounts are seconds: a call costs as many seconds of a bucket as its rate takes to earn what the call uses. A
bucket is told by the time at which it is full again, `until` (GCRA's theoretical arrival time). Rules:

- A turn comes at the earliest time at which both buckets hold what is asked, and never before the turn booked last.
  So order of booking is order of turns, and nobody overtakes a caller who asks for more.
- Both buckets are charged at the turn, not at the booking: nothing is earned twice while a caller waits.
- What was booked and not used is given back only as far as it cannot have been earned again meanwhile. Had the
  call been booked as what it came to be, the bucket would be full again no later than it is taken to be now.
- So the calls whose turns lie within any `t` seconds use no more than the burst and what `t` seconds earn. A turn
  that is booked for now begins when it is stored; as much later as that is, as much closer may the next ones come.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

NEVER_FULL = 1e-9
"""Seconds by which rounding may make a call dearer than a full bucket."""


@dataclass(frozen=True, slots=True)
class Price:
    """What calls cost: seconds of each bucket, 0 for what is not limited; and what full buckets hold."""

    request_s: float = 0.0
    token_s: float = 0.0
    requests_burst_s: float = 0.0
    tokens_burst_s: float = 0.0

    @classmethod
    def of(cls, requests_per_minute: float | None, tokens_per_minute: float | None, burst_s: float) -> "Price":
        """The price under a limit. A bucket of requests holds at least one."""
        request_s = 60 / requests_per_minute if requests_per_minute is not None else 0.0
        token_s = 60 / tokens_per_minute if tokens_per_minute is not None else 0.0
        return cls(request_s, token_s, max(burst_s, request_s), burst_s)

    def fits(self, tokens: float) -> bool:
        """Whether a full bucket holds so many tokens."""
        return tokens * self.token_s <= self.tokens_burst_s + NEVER_FULL


@dataclass(frozen=True, slots=True)
class Filling:
    """One bucket: full again at `until`; `booked` is everything ever booked."""

    until: float = 0.0
    booked: float = 0.0

    def earliest(self, cost_s: float, burst_s: float) -> float:
        """When it holds what is asked for."""
        return self.until + cost_s - burst_s if cost_s else 0.0

    def charge(self, cost_s: float, at: float) -> "Filling":
        return Filling(max(self.until, at) + cost_s, self.booked + cost_s) if cost_s else self


@dataclass(frozen=True, slots=True)
class Level:
    """Both buckets, and the last turn that was booked."""

    requests: Filling = Filling()
    tokens: Filling = Filling()
    turn: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that wants a turn, at `latest` then."""

    tokens: float
    latest: float


@dataclass(frozen=True, slots=True)
class Booking:
    """A turn at a time, and what both buckets had booked with it."""

    turn: float
    requests_booked: float
    tokens_booked: float


@dataclass(frozen=True, slots=True)
class TooLate:
    """The turn would come at a time later than the caller waits; nothing was booked."""

    turn: float


@dataclass(frozen=True, slots=True)
class Correction:
    """A booked call came to so much less of each bucket, or more where negative, at the price it was booked for."""

    booking: Booking
    requests_s: float
    tokens_s: float


def turn_of(level: Level, price: Price, tokens: float, *, now: float) -> float:
    """When a call has its turn, were it booked now."""
    return max(
        now,
        level.turn,
        level.requests.earliest(price.request_s, price.requests_burst_s),
        level.tokens.earliest(tokens * price.token_s, price.tokens_burst_s),
    )


def book(level: Level, price: Price, asks: Sequence[Ask], *, now: float) -> tuple[Level, list[Booking | TooLate]]:
    """Book turns in the order in which they are asked for; who would be late books nothing."""
    answers: list[Booking | TooLate] = []
    for ask in asks:
        turn = turn_of(level, price, ask.tokens, now=now)
        if turn > ask.latest:
            answers.append(TooLate(turn))
            continue
        requests = level.requests.charge(price.request_s, turn)
        tokens = level.tokens.charge(ask.tokens * price.token_s, turn)
        level = Level(requests, tokens, turn)
        answers.append(Booking(turn, requests.booked, tokens.booked))
    return level, answers


def correct(level: Level, correction: Correction) -> Level:
    """Give back what a call did not use, or take what it used beyond."""
    booking = correction.booking
    return replace(
        level,
        requests=_corrected(level.requests, correction.requests_s, booking.requests_booked, level.turn),
        tokens=_corrected(level.tokens, correction.tokens_s, booking.tokens_booked, level.turn),
    )


def _corrected(bucket: Filling, unused_s: float, booked_then: float, last_turn: float) -> Filling:
    if unused_s <= 0:
        return Filling(bucket.until - unused_s, bucket.booked - unused_s)
    if bucket.booked < booked_then:
        # The record expired meanwhile: nothing is known of what was booked since.
        return bucket
    # Later calls began no later than at the last turn, and filled the bucket with no more than was booked since.
    # Below that, what is given back would have been earned again by now.
    floor = last_turn + bucket.booked - booked_then
    return replace(bucket, until=min(bucket.until, max(bucket.until - unused_s, floor)))
