"""The bid: the expected delay of one more task here, as a pull priority from 0 (best) to 9.

The scale is logarithmic: each level is three times the delay of the one below, from a millisecond to half a
minute, so that peers of very different speed still differ in their bids.
"""

import math
from dataclasses import dataclass

LEVELS = 10
FIRST_LEVEL_S = 0.001
LEVEL_RATIO = 3.0

# One slow task moves the average by a fifth of its surprise, and it takes five to move it most of the way.
WEIGHT = 0.2
# A single outlier counts as at most this many times the average.
OUTLIER_RATIO = 10.0


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """A moving average of how long one task takes here, in seconds. 0 until the first."""

    mean_s: float = 0.0

    def after(self, run_s: float) -> "ServiceTime":
        """The average with one more observation."""
        if self.mean_s <= 0:
            return ServiceTime(run_s)
        bounded_s = min(run_s, OUTLIER_RATIO * self.mean_s)
        return ServiceTime(self.mean_s + WEIGHT * (bounded_s - self.mean_s))


def expected_delay_s(service: ServiceTime, in_flight: int, slots: int) -> float:
    """How long one more task would take here: its own time, stretched by how busy the slots are."""
    return service.mean_s * (1 + in_flight / slots)


def bid(delay_s: float) -> int:
    """The priority for an expected delay."""
    if delay_s <= FIRST_LEVEL_S:
        return 0
    return min(LEVELS - 1, int(math.log(delay_s / FIRST_LEVEL_S, LEVEL_RATIO)))
