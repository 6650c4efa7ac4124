"""Learners trained on everything, together with honest scores for what they were trained on.

A model knows its own training tickets too well to tell how sure it may be of others. So each learner is also
trained several times on all but one part of the tickets, and scores the part it has not seen.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final, NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]  # joblib ships no types
from numpy.typing import NDArray

from agents.support_desk.learners import Floats, Indexes, Learner
from agents.support_desk.views import Matrix

FOLDS: Final = 5
ROWS_FOR_PROCESSES: Final = 1_000
"""Fewer are learned sooner than other processes have started."""


class CrossFit(NamedTuple):
    """A learner that knows every ticket, and scores from its like that did not know the ticket in question."""

    learner: Learner
    unseen_scores: Floats


def cross_fit(learners: Sequence[tuple[Learner, Matrix]], labels: Indexes) -> list[CrossFit]:
    """Each learner trained on its rows, in as many processes as there are cores.

    Each label occurs at least twice, so that it is known whichever part is left out.
    """
    part_of = folds(labels)
    worker_count = cpu_count() if len(labels) >= ROWS_FOR_PROCESSES else 1
    done: list[Any] = Parallel(n_jobs=worker_count)(
        [delayed(_trained)(learner, rows, labels) for learner, rows in learners]
        + [
            delayed(_scores_of_unseen)(learner, rows, labels, part_of == part)
            for learner, rows in learners
            for part in range(FOLDS)
        ]
    )
    trained, scores = done[: len(learners)], done[len(learners) :]
    return [
        CrossFit(learner, _joined(scores[FOLDS * place : FOLDS * (place + 1)], part_of))
        for place, learner in enumerate(trained)
    ]


def folds(labels: Indexes) -> Indexes:
    """The part, from 0 to `FOLDS` - 1, that each ticket belongs to.

    Each label is dealt out like cards, so that it is spread evenly and never lies in one part alone.
    """
    random = np.random.default_rng(0)
    shuffled = random.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    part_of = np.empty(len(labels), np.intp)
    part_of[by_label] = np.arange(len(labels)) % FOLDS
    return part_of


def _trained(learner: Learner, rows: Matrix, labels: Indexes) -> Learner:
    return deepcopy(learner).fit(rows, labels)


def _scores_of_unseen(learner: Learner, rows: Matrix, labels: Indexes, is_unseen: NDArray[np.bool_]) -> Floats:
    return _trained(learner, rows[~is_unseen], labels[~is_unseen]).label_scores(rows[is_unseen])


def _joined(scores: Sequence[Floats], part_of: Indexes) -> Floats:
    joined = np.empty((len(part_of), scores[0].shape[1]), np.float32)
    for part, scores_of_part in enumerate(scores):
        joined[part_of == part] = scores_of_part
    return joined
