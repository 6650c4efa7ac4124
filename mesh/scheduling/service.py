"""How long one task takes on this peer: an average that follows a change and that no outlier poisons.

Rules.
- Each observation moves the mean by a tenth of its surprise; the first ones count evenly.
- A single run far above the mean (more than four times) counts as four times the mean. When the next one is
  far above as well, the peer has become slow: runs count as they are, and by half, until one is not far any more.
- The third run in a row far below the mean (less than a quarter) says that the peer has become fast. Where a peer is
  passed over and seldom tried, one run at the pace of faster peers says so.
- Authors may name a class of payloads. Classes are averaged apart, so that a peer that was handed the large ones
  does not pass for a slow one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

WEIGHT = 0.1
WEIGHT_OF_CHANGE = 0.5
FAR = 4.0
SLOW_AFTER = 2
FAST_AFTER = 3
CLASSES_MAX = 8
OTHERS = "(others)"
"""Stands for every class past the eighth."""


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """A moving average of run times, in seconds. `streak` counts runs in a row that were far above, below 0: below."""

    mean_s: float = 0.0
    seen: int = 0
    streak: int = 0

    def after(self, run_s: float) -> "ServiceTime":
        """The average with one more observation."""
        if not self.seen:
            return ServiceTime(run_s, 1)
        streak = self._streak(run_s)
        has_changed = streak >= SLOW_AFTER or streak <= -FAST_AFTER
        weight = WEIGHT_OF_CHANGE if has_changed else max(WEIGHT, 1 / (self.seen + 1))
        counted_s = run_s if has_changed else min(run_s, FAR * self.mean_s)
        return ServiceTime(self.mean_s + weight * (counted_s - self.mean_s), self.seen + 1, streak)

    def after_sign(self, run_s: float) -> "ServiceTime":
        """The average with one more observation, which says that the peer has become fast."""
        return ServiceTime(self.mean_s + WEIGHT_OF_CHANGE * (run_s - self.mean_s), self.seen + 1)

    def _streak(self, run_s: float) -> int:
        if run_s > FAR * self.mean_s:
            return max(0, self.streak) + 1
        if run_s < self.mean_s / FAR:
            return min(0, self.streak) - 1
        return 0


@dataclass(slots=True)
class ServiceTimes:
    """The averages of one capability: over all its tasks, and by class of payload where its author names classes."""

    every: ServiceTime = ServiceTime()
    by_class: dict[str, ServiceTime] = field(default_factory=dict)

    def observe(self, run_s: float, class_: str = "", *, is_sign: bool = False) -> None:
        """Count one run, which may be a sign that the peer has become fast. Past eight classes the others share one."""
        self.every = self.every.after_sign(run_s) if is_sign else self.every.after(run_s)
        if not class_:
            return
        if class_ not in self.by_class and len(self.by_class) >= CLASSES_MAX:
            class_ = OTHERS
        self.by_class[class_] = self.by_class.get(class_, ServiceTime()).after(run_s)

    def means_s(self) -> Mapping[str, float]:
        """The mean of each class, in seconds."""
        return {class_: service.mean_s for class_, service in self.by_class.items()}
