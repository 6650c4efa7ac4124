"""How long a mesh took to recover from each fault: a decision over the times in a recorded history.

A strike lasts from its beginning to its end: the kill itself, the last moment of a pause or a partition, the
restart of a server. Two times are counted from its *end*:

- `throughput_s`: until answers come again as before. The rate before is that of the answers in the
  `BEFORE_S` seconds up to the beginning, or since the first answer if that is later. It is back at the first
  moment from which the next `WINDOW_S` seconds hold at least `SHARE` of it. Nothing was lost of it: zero.
- `in_flight_s`: until every task that was confirmed before the beginning, and not answered, is answered. What was
  answered before the end: zero.

A time is None where it never came in this history, or cannot be told: too few answers before. Strikes that follow
upon each other closely disturb each other's times; nothing is taken out for that.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mesh.testing.history import Entry, What

BEFORE_S = 5.0
WINDOW_S = 1.0
SHARE = 0.8
ANSWERS_MIN = 5
"""With fewer answers than this before a strike there is no rate to come back to."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One stroke of a fault. `ended` is None while it goes on; times are those of the history."""

    number: int
    fault: str
    target: str
    began: float
    ended: float | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long after the end of a strike things were as before, in seconds."""

    strike: Strike
    throughput_s: float | None
    in_flight_s: float | None
    in_flight: int
    """How many tasks were in flight when it began."""


def strikes(entries: Iterable[Entry]) -> list[Strike]:
    """Every numbered strike, in the order of their beginnings. What dies at a point of its own has no number."""
    began: dict[str, Entry] = {}
    ended: dict[str, float] = {}
    for entry in entries:
        if entry.what is What.FAULT and entry.value:
            began[entry.value] = entry
        elif entry.what is What.HEALED:
            ended[entry.value] = entry.at
    found = [
        Strike(int(number), entry.detail, entry.peer or entry.task, entry.at, ended.get(number))
        for number, entry in began.items()
    ]
    return sorted(found, key=lambda strike: strike.began)


def recoveries(entries: Sequence[Entry]) -> list[Recovery]:
    """The recovery of every strike that is over."""
    answered: dict[str, float] = {}
    confirmed: dict[str, float] = {}
    for entry in entries:
        if entry.what is What.ANSWERED:
            answered.setdefault(entry.task, entry.at)
        elif entry.what is What.CONFIRMED:
            confirmed.setdefault(entry.task, entry.at)
    times = sorted(answered.values())
    return [_recovery(strike, times, confirmed, answered) for strike in strikes(entries)]


def throughput_s(times: Sequence[float], *, began: float, ended: float) -> float | None:
    """From `ended` on, how long until answers come as they did before `began`; `times` are theirs, in order."""
    if not times:
        return None
    since = max(began - BEFORE_S, times[0])
    before = bisect_left(times, began) - bisect_left(times, since)
    if before < ANSWERS_MIN or began <= since:
        return None
    wanted = SHARE * WINDOW_S * before / (began - since)
    # The count of a window grows only where an answer enters it, at its end.
    moments = [ended, *(max(ended, at - WINDOW_S) for at in times[bisect_right(times, ended) :])]
    for moment in moments:
        if bisect_right(times, moment + WINDOW_S) - bisect_left(times, moment) >= wanted:
            return moment - ended
    return None


def _recovery(
    strike: Strike, times: Sequence[float], confirmed: dict[str, float], answered: dict[str, float]
) -> Recovery:
    in_flight = [
        task for task, at in confirmed.items() if at < strike.began and answered.get(task, float("inf")) >= strike.began
    ]
    if strike.ended is None:
        return Recovery(strike, None, None, len(in_flight))
    waited: float | None = 0.0
    if any(task not in answered for task in in_flight):
        waited = None
    elif in_flight:
        waited = max(0.0, max(answered[task] for task in in_flight) - strike.ended)
    back_s = throughput_s(times, began=strike.began, ended=strike.ended)
    return Recovery(strike, back_s, waited, len(in_flight))


def middle(times: Iterable[float]) -> float | None:
    """The median, the lower one of two; None of nothing."""
    found = sorted(times)
    return found[(len(found) - 1) // 2] if found else None
