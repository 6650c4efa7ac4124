"""Percentiles, and ratios that are paired over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_S = 1.0
WINDOW_STEP_S = 0.1

# Student's t, 97.5 %, by degrees of freedom from 1.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_T_BEYOND = 2.086


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one run's sojourn times, in milliseconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """A geometric mean over seeds with its 95 % interval, which one seed does not give."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.low is None else f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def percentiles(sojourns_s: Sequence[float]) -> Percentiles:
    return Percentiles(*(1e3 * percentile(sojourns_s, share) for share in (0.5, 0.9, 0.99)))


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Of two figures of the same seeds, in the same order."""
    logs = [math.log(a / b) for a, b in zip(over, under, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(mean), None, None, len(logs))
    freedom = len(logs) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else _T_BEYOND
    reach = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach), len(logs))


def half_share_after_s(
    ends: Sequence[tuple[float, int]], peer: int, *, peers: int, since_s: float, until_s: float
) -> float | None:
    """Seconds from `since_s` to the end of the first second in which `peer` finished half of its fair share.

    `ends` are the times at which tasks ended, each with its peer. None: not before `until_s`.
    """
    at_s = since_s + WINDOW_S
    while at_s <= until_s:
        window = [who for end_s, who in ends if at_s - WINDOW_S < end_s <= at_s]
        if window and window.count(peer) * 2 * peers >= len(window):
            return at_s - since_s
        at_s += WINDOW_STEP_S
    return None
