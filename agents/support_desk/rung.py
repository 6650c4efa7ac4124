"""One rung of the ladder: learners that are asked together, and what their sureness is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agents.support_desk.calibration import Calibration
from agents.support_desk.learners import Floats, Indexes, Learner
from agents.support_desk.verdicts import Doubles, Verdicts
from agents.support_desk.views import View


class Answers(NamedTuple):
    """For each ticket the label's index, and the probability that it is right."""

    labels: Indexes
    confidence: Doubles


@dataclass(frozen=True)
class Rung:
    """Learners, each with the view it was trained on, whose scores are averaged."""

    members: tuple[tuple[View, Learner], ...]
    judge: Callable[[Floats], Verdicts]
    calibration: Calibration

    def answers(self, texts: Sequence[str]) -> Answers:
        """What the rung takes the tickets for."""
        scores = mean_scores([learner.label_scores(view.rows(texts)) for view, learner in self.members])
        labels, sureness = self.judge(scores)
        return Answers(labels, self.calibration.confidence(sureness))


def mean_scores(scores: Sequence[Floats]) -> Floats:
    """What the members say together."""
    return np.asarray(np.mean(scores, axis=0, dtype=np.float32))
