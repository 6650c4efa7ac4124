"""What a learner of labels is, and the one that learns in seconds."""

from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import LinearSVC  # type: ignore[import-untyped]  # scikit-learn ships no types

from agents.support_desk.views import Matrix

Floats = NDArray[np.float32]
Indexes = NDArray[np.intp]


class Learner(Protocol):
    """Something that learns to score every label for a row."""

    def fit(self, rows: Matrix, labels: Indexes) -> Self:
        """Learn. Labels are 0 … n-1, and each occurs."""
        ...

    def label_scores(self, rows: Matrix) -> Floats:
        """One column per label, larger is likelier; what scale it has is the learner's own."""
        ...


class LinearLearner:
    """Scores by linear support vectors: distances to one plane per label."""

    PENALTY: Final = 2.0

    def fit(self, rows: Matrix, labels: Indexes) -> Self:
        """Learn; the same rows give the same planes."""
        machine = LinearSVC(C=self.PENALTY, random_state=0).fit(rows, labels)
        weights, offset = machine.coef_.T.astype(np.float32), machine.intercept_.astype(np.float32)
        if weights.shape[1] == 1:  # for two labels scikit-learn keeps one plane
            weights, offset = np.hstack([-weights, weights]), np.hstack([-offset, offset])
        self._weights: Floats = np.ascontiguousarray(weights)
        self._offset: Floats = offset
        return self

    def label_scores(self, rows: Matrix) -> Floats:
        """Signed distances to the labels' planes."""
        return np.asarray(rows @ self._weights + self._offset)
