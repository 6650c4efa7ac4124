"""When a client stops submitting to one queue, because as many tasks wait in it as may.

A queue is one lane of a capability. How many wait is asked for rarely; in between, a client counts what it has added
itself, so that an ordinary submission asks nothing. What other clients add meanwhile is not known: the bound is soft by
that, and looked at more often where it is near.
"""

import math
from dataclasses import dataclass
from typing import Final

REFRESH_S: Final = 2.0
REFRESH_NEAR_S: Final = 0.5
REFRESH_FULL_S: Final = 0.25
REFRESH_S_MIN: Final = 0.05
NEAR: Final = 0.8
"""A queue is near its bound from this share of it."""
ROOM: Final = 0.01
"""Share of the bound that is to be free when a refused client comes back."""
UNKNOWN_RETRY_S: Final = 1.0
RETRY_S_MIN, RETRY_S_MAX = 0.1, 30.0
MEASURED_S_MIN: Final = 0.2
"""Two looks at a shorter distance do not tell how fast a queue drains."""
STANDS_STILL_S: Final = 10.0
"""A queue that hands nothing out for so long does not drain; for less, its tasks may just take as long."""


@dataclass(frozen=True, slots=True)
class Look:
    """A queue when it was looked at. A `bound` of 0 is none; `handed_out` counts what left it since it was made."""

    depth: int
    bound: int
    handed_out: int
    at: float


@dataclass(frozen=True, slots=True)
class QueueCredit:
    """What the last look at a queue permits.

    `added` are the client's submissions that the look does not show: stored since, or not answered yet.
    """

    look: Look
    measured_from: Look
    drain_per_s: float | None = None
    """Tasks handed out a second between two looks; None before the second one."""

    @classmethod
    def first(cls, look: Look) -> "QueueCredit":
        return cls(look, look)

    def after(self, look: Look) -> "QueueCredit":
        """The credit after another look."""
        took_s = look.at - self.measured_from.at
        handed_out = look.handed_out - self.measured_from.handed_out
        if handed_out < 0:
            # The consumer was made anew.
            return QueueCredit(look, look)
        if took_s < MEASURED_S_MIN or (not handed_out and took_s < STANDS_STILL_S):
            return QueueCredit(look, self.measured_from, self.drain_per_s)
        return QueueCredit(look, look, handed_out / took_s)

    def depth(self, added: int) -> int:
        """How many may wait now."""
        return self.look.depth + added

    @property
    def roomy_below(self) -> float:
        """How many may be added until anything but time makes the look stale."""
        depth, bound = self.look.depth, self.look.bound
        return min((bound - depth) / 2, NEAR * bound - depth) if bound else math.inf

    def admits(self, added: int) -> bool:
        """Whether one more task may be submitted."""
        return not self.look.bound or self.depth(added) < self.look.bound

    def is_stale(self, added: int, *, now: float) -> bool:
        """Whether to look again first."""
        return now - self.look.at >= self._lasts_s(added)

    def retry_after_s(self, added: int) -> float:
        """When there may be room again, as fast as the queue was seen to drain; 0.1 to 30 s."""
        if self.drain_per_s is None:
            return UNKNOWN_RETRY_S
        over = self.depth(added) - self.look.bound + max(1, int(ROOM * self.look.bound))
        if self.drain_per_s * RETRY_S_MAX <= over:
            return RETRY_S_MAX
        return max(RETRY_S_MIN, over / self.drain_per_s)

    def _lasts_s(self, added: int) -> float:
        depth, bound = self.look.depth, self.look.bound
        if not bound:
            return REFRESH_S
        if added < self.roomy_below:
            return REFRESH_S
        if depth + added >= bound:
            # What filled it since may be gone again: looked for at once. A look that finds it full lasts a little.
            return 0.0 if depth < bound else REFRESH_FULL_S
        return REFRESH_S_MIN if 2 * added >= bound - depth else REFRESH_NEAR_S
