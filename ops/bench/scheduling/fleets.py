"""Fleets of peers, and the work that comes to them. Times in seconds from the begin of a run."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

PEERS = 8
WORK_S = 0.05
"""A hand-over takes about a millisecond of a slot: with much shorter work it would be what is measured."""
SHORT_WORK_S = 0.02
"""Where peers differ, so that ten times slower ones do enough tasks to tell."""
SLOW = 10.0
STRAGGLER_SHARE = 0.01
STRAGGLER_RATIO = 10.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Eight peers. `slow_peers` are ten times slower, for the whole run or from `slow_from_s` to `slow_until_s`."""

    name: str
    title: str
    draw: Callable[[Random], float]
    mean_work_s: float = WORK_S
    slots: int = 1
    slow_peers: tuple[int, ...] = ()
    slow_from_s: float = 0.0
    slow_until_s: float = float("inf")
    at_first: int = PEERS
    joins_at_s: float = 0.0
    lasts_s: float = 0.0
    """A run is at least this long."""

    @property
    def recovers(self) -> bool:
        return bool(self.slow_peers) and self.slow_until_s < float("inf")

    @property
    def servers(self) -> int:
        return PEERS * self.slots

    @property
    def capacity_per_s(self) -> float:
        """Tasks a second that all peers can do; one that is slow for a while counts as fast."""
        speeds = (1 / SLOW if peer in self.slow_peers and not self.recovers else 1.0 for peer in range(PEERS))
        return sum(speeds) * self.slots / self.mean_work_s

    def slowness(self, peer: int, at_s: float) -> float:
        return SLOW if peer in self.slow_peers and self.slow_from_s <= at_s < self.slow_until_s else 1.0

    def comes_at_s(self, peer: int) -> float:
        return 0.0 if peer < self.at_first else self.joins_at_s


@dataclass(frozen=True, slots=True)
class Trace:
    """When tasks come and how long each takes a fast peer."""

    arrivals_s: tuple[float, ...]
    works_s: tuple[float, ...]


def exponential(mean_s: float) -> Callable[[Random], float]:
    return lambda dice: dice.expovariate(1 / mean_s)


def lognormal_with_stragglers(mean_s: float) -> Callable[[Random], float]:
    """Sigma 1, and one in a hundred takes ten times as long; the mean counts them in."""
    common_s = mean_s / (1 + STRAGGLER_SHARE * (STRAGGLER_RATIO - 1))
    mu = math.log(common_s) - 1 / 2

    def draw(dice: Random) -> float:
        ratio = STRAGGLER_RATIO if dice.random() < STRAGGLER_SHARE else 1.0
        return ratio * dice.lognormvariate(mu, 1.0)

    return draw


def draw_trace(fleet: Fleet, load: float, seed: int, *, seconds: float) -> Trace:
    """The same for every policy of a seed."""
    dice = Random(f"{fleet.name} {load} {seed}")
    gaps = (dice.expovariate(load * fleet.capacity_per_s) for _ in itertools.count())
    arrivals = tuple(itertools.takewhile(lambda at_s: at_s < seconds, itertools.accumulate(gaps)))
    return Trace(arrivals, tuple(fleet.draw(dice) for _ in arrivals))


FLEETS = {
    fleet.name: fleet
    for fleet in (
        Fleet("equal", "8 equal peers, exponential", exponential(WORK_S)),
        Fleet("lognormal", "8 equal peers, lognormal, stragglers", lognormal_with_stragglers(WORK_S)),
        Fleet(
            "mixed",
            "6 fast peers, 2 ten times slower",
            exponential(SHORT_WORK_S),
            mean_work_s=SHORT_WORK_S,
            slow_peers=(6, 7),
        ),
        Fleet("io", "8 peers with 8 parallel slots each", exponential(8 * WORK_S), mean_work_s=8 * WORK_S, slots=8),
        Fleet(
            "turning",
            "1 of 8 peers ten times slower for 10 s",
            exponential(SHORT_WORK_S),
            mean_work_s=SHORT_WORK_S,
            slow_peers=(7,),
            slow_from_s=5.0,
            slow_until_s=15.0,
            lasts_s=23.0,
        ),
        Fleet(
            "joining", "4 peers, 4 more join after 4 s", exponential(WORK_S), at_first=4, joins_at_s=4.0, lasts_s=12.0
        ),
    )
}
