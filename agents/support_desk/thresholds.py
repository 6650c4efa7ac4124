"""How sure a rung must be to settle a ticket itself.

1. Triage is fast but the weaker of the two. It settles as much as it can while `triage_accuracy` of that is
   right, so that it costs the whole desk little.
2. The specialist takes what is left, surest first. Every further ticket spares a person work and adds risk, so
   there is a smallest share to be resolved and a largest one that still keeps `accuracy`. It stops halfway
   between, which leaves the same room for bad luck on both sides.
3. Where no share meets both, the smallest share wins: people cannot read more than they can read. The forecast
   that comes with the thresholds then says that the accuracy is missed. But a desk that is wrong too often
   helps nobody, so below `accuracy_floor` the share gives way.

All of it looks at trials only: verdicts on training tickets by models that had not seen them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agents.support_desk.verdicts import Doubles

NEVER: Final = 1.0
"""A threshold that no confidence reaches."""


@dataclass(frozen=True)
class Goal:
    """What the desk is to achieve without a person."""

    accuracy: float = 0.965
    """Of what is resolved, this share is to be right."""
    resolved_share_min: float = 0.92
    """Of all tickets. Among other tickets it comes out a little larger: see `Forecast`."""
    accuracy_floor: float = 0.95
    """For the sake of the share, accuracy may fall short as far as this."""
    triage_accuracy: float = 0.985
    """Of what triage settles by itself, this share is to be right."""


@dataclass(frozen=True)
class Trial:
    """How sure a rung was of tickets it was not trained on, and whether it was right."""

    confidence: Doubles
    is_right: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_]) -> "Trial":
        """The same for some of the tickets."""
        return Trial(self.confidence[chosen], self.is_right[chosen])


@dataclass(frozen=True)
class Forecast:
    """What to expect of tickets like those trained on, as shares of all tickets except `accuracy`.

    A little pessimistic: the trials were made by models that had seen fewer tickets, and were less sure.
    """

    resolved_share: float
    triage_share: float
    accuracy: float
    """The share of what is resolved that is right; 0 where nothing is."""


def triage_threshold(trial: Trial, goal: Goal) -> float:
    """The lowest confidence down to which triage keeps its accuracy, or `NEVER`."""
    order = np.argsort(-trial.confidence, kind="stable")
    right_counts = np.cumsum(trial.is_right[order])
    is_good = right_counts >= goal.triage_accuracy * np.arange(1, len(order) + 1)
    return _down_to(trial.confidence[order], _last_true(is_good) + 1)


def specialist_threshold(triage: Trial, specialist: Trial, triage_threshold: float, goal: Goal) -> float:
    """The lowest confidence at which the specialist settles what triage passed on, or `NEVER`.

    The trials are of the same tickets in the same order.
    """
    is_kept = triage.confidence >= triage_threshold
    kept_count, right_count = int(is_kept.sum()), int(triage.is_right[is_kept].sum())
    passed_on = specialist.where(~is_kept)
    order = np.argsort(-passed_on.confidence, kind="stable")
    resolved_counts = kept_count + np.arange(len(order) + 1)
    right_counts = right_count + np.concatenate([[0], np.cumsum(passed_on.is_right[order])])
    fewest = int((resolved_counts >= goal.resolved_share_min * len(is_kept)).argmax())
    most = _last_true(right_counts >= goal.accuracy * resolved_counts)
    wanted = max(fewest, (fewest + most) // 2)
    chosen = _last_true((right_counts >= goal.accuracy_floor * resolved_counts)[: wanted + 1])
    return _down_to(passed_on.confidence[order], max(0, chosen))


def forecast(triage: Trial, specialist: Trial, triage_threshold: float, specialist_threshold: float) -> Forecast:
    """What these thresholds would have given on the tickets of the trials."""
    by_triage = triage.confidence >= triage_threshold
    by_specialist = ~by_triage & (specialist.confidence >= specialist_threshold)
    right_count = int(triage.is_right[by_triage].sum() + specialist.is_right[by_specialist].sum())
    resolved_count = int(by_triage.sum() + by_specialist.sum())
    return Forecast(
        resolved_share=resolved_count / len(by_triage),
        triage_share=float(by_triage.mean()),
        accuracy=right_count / resolved_count if resolved_count else 0.0,
    )


def _down_to(falling: Doubles, count: int) -> float:
    """A threshold that lets the first `count` through."""
    return float(falling[count - 1]) if count else NEVER


def _last_true(statements: NDArray[np.bool_]) -> int:
    """Where the last of them is that holds, or -1."""
    return int(statements.nonzero()[0].max(initial=-1))
