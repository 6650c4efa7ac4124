"""From sureness to a confidence that means what it says: of tickets told at 0.9, nine in ten are right."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # scikit-learn ships no types

from agents.support_desk.verdicts import Doubles

CONFIDENCE_MAX: Final = 0.9999
"""Nothing is certain. Also keeps a threshold of 1 out of reach, which is how a rung is told to settle nothing."""


@dataclass(frozen=True)
class Calibration:
    """A rising curve from sureness to confidence (Platt's)."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, sureness: Doubles, is_right: NDArray[np.bool_]) -> Self:
        """Learn the curve from tickets that the model was not trained on.

        Works with a handful of tickets and when all of them are right: each counts as a little of both.
        """
        right_count = int(is_right.sum())
        wrong_count = len(is_right) - right_count
        share_right = np.where(is_right, (right_count + 1) / (right_count + 2), 1 / (wrong_count + 2))
        curve = LogisticRegression(C=100.0).fit(
            np.concatenate([sureness, sureness])[:, None],
            np.repeat([1, 0], len(sureness)),
            sample_weight=np.concatenate([share_right, 1 - share_right]),
        )
        slope = float(curve.coef_[0, 0])
        if slope > 0:
            return cls(slope, float(curve.intercept_[0]))
        # Being surer did not help on these few tickets; then all there is to say is how many are right.
        mean = float(share_right.mean())
        return cls(0.0, float(np.log(mean / (1 - mean))))

    def confidence(self, sureness: Doubles) -> Doubles:
        """The probability, between 0 and 1, that a verdict of this sureness is right."""
        return np.minimum(1 / (1 + np.exp(-(self.slope * sureness + self.intercept))), CONFIDENCE_MAX)
