"""When a waiting task leaves memory: a decision over its waits, as plain values."""

from collections.abc import Collection
from dataclasses import dataclass

SETTLE_S = 0.02
"""How long a task whose every wait is a long one is given, for branches that are about to begin another."""


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """One wait in flight: over when a record stands under one of `records`, or at the Unix time `due`.

    `is_long` says that it is not worth staying in memory for.
    """

    records: tuple[str, ...] = ()
    due: float | None = None
    is_long: bool = False


def parks_at(
    waits: Collection[Wait], *, long_waits: int, is_busy: bool, changed_at: float, hot_s: float
) -> float | None:
    """The time at which a task parks if nothing changes, or None while it must not.

    `changed_at` is when a wait last began or ended, on the clock that the answer is on.
    """
    if is_busy or not waits:
        return None
    return changed_at + (SETTLE_S if long_waits == len(waits) else hot_s)


def next_due(waits: Collection[Wait], *, now: float, again_s: float, limits: Collection[float | None]) -> float:
    """When a parked task is woken at the latest: its first wait that ends by the clock, a limit, or a look after
    `again_s` seconds, which heals a wake that was lost."""
    dues = [wait.due for wait in waits if wait.due is not None]
    return min(now + again_s, *dues, *(limit for limit in limits if limit is not None))
