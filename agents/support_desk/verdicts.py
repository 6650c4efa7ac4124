"""Label scores as a label and how sure it is, one way for each kind of learner."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.support_desk.learners import Floats, Indexes

Doubles = NDArray[np.float64]

_ODDS_MAX: Final = 1e4


class Verdicts(NamedTuple):
    """The likeliest label of each ticket, and a number that grows with its certainty but is no probability yet."""

    labels: Indexes
    sureness: Doubles


def by_margin(label_scores: Floats) -> Verdicts:
    """Sureness as the distance between the best score and the next, for scores of no fixed scale."""
    highest = np.partition(label_scores, -2, axis=1)[:, -2:].astype(np.float64)
    return Verdicts(label_scores.argmax(axis=1), highest[:, 1] - highest[:, 0])


def by_odds(label_scores: Floats) -> Verdicts:
    """Sureness as the logarithm of the odds of the best label, for scores that are probabilities."""
    best = label_scores.max(axis=1).astype(np.float64)
    return Verdicts(label_scores.argmax(axis=1), np.log((best + 1 / _ODDS_MAX) / (1 - best + 1 / _ODDS_MAX)))
