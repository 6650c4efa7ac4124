"""A small neural network for sparse rows that learns from tickets most of whose features are hidden.

scikit-learn's own network has no dropout, and with a hundred tickets per label dropout is what counts.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sparse  # type: ignore[import-untyped]  # SciPy ships no types
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from agents.support_desk.learners import Floats, Indexes
from agents.support_desk.views import Matrix


@dataclass
class DropoutNet:
    """Scores by a network with one hidden layer, trained on what is left of each ticket after most is dropped.

    Four in five features of a ticket are hidden from each step of the training, so no label comes to hang on a
    single phrase. With as few tickets as there are, that is worth more than anything else that was tried, and
    scikit-learn's own network has no dropout.
    """

    seed: int
    hidden_count: int = 64
    epoch_count: int = 60
    batch_rows_max: int = 128
    rate: float = 0.1
    dropped_features: float = 0.8
    dropped_hidden: float = 0.2

    _SPREAD = np.float32(0.05)
    _FIRST_SQUARES = np.float32(1e-3)
    _GRADIENT_SCALE = 8

    def fit(self, rows: Matrix, labels: Indexes) -> Self:
        """Learn; the same rows and seed give the same network."""
        # Threads would split sums differently on other machines, and cost more than they bring at this size.
        with threadpool_limits(1):
            return self._fit(rows, labels)

    def label_scores(self, rows: Matrix) -> Floats:
        """Probabilities of the labels, not calibrated."""
        hidden = np.maximum(rows @ self._inner + self._inner_offset, 0)
        return _probabilities(hidden @ self._outer + self._outer_offset)

    def _fit(self, rows: Matrix, labels: Indexes) -> Self:
        random = np.random.default_rng(self.seed)
        row_count, feature_count = rows.shape
        label_count = int(labels.max()) + 1
        wanted = np.eye(label_count, dtype=np.float32)[labels]
        self._inner = random.standard_normal((feature_count, self.hidden_count), dtype=np.float32) * self._SPREAD
        self._inner_offset = np.zeros(self.hidden_count, np.float32)
        self._outer = random.standard_normal((self.hidden_count, label_count), dtype=np.float32) * self._SPREAD
        self._outer_offset = np.zeros(label_count, np.float32)
        self._squares = [
            np.full_like(weights, self._FIRST_SQUARES)
            for weights in (np.empty(feature_count, np.float32), self._inner_offset, self._outer, self._outer_offset)
        ]
        # Small sets get small batches: what counts is the number of steps.
        batch_rows = min(self.batch_rows_max, max(8, row_count // 16))
        starts = range(0, row_count, batch_rows)
        step_count = self.epoch_count * len(starts)
        step = 0
        for _ in range(self.epoch_count):
            shuffled = random.permutation(row_count)
            thinned = self._thinned(rows[shuffled], random)
            for start in starts:
                rate = np.float32(self.rate * (1 - step / step_count))
                picked = shuffled[start : start + batch_rows]
                self._step(thinned[start : start + batch_rows], wanted[picked], rate, random)
                step += 1
        # A feature that these rows do not have kept its random start: it must say nothing.
        self._inner[np.bincount(rows.indices, minlength=feature_count) == 0] = 0
        del self._squares
        return self

    def _thinned(self, rows: Matrix, random: np.random.Generator) -> Matrix:
        is_kept = random.random(rows.nnz, dtype=np.float32) >= self.dropped_features
        ends = np.concatenate([[0], np.cumsum(is_kept)])[rows.indptr]
        kept = rows.data[is_kept] / np.float32(1 - self.dropped_features)
        return sparse.csr_matrix((kept, rows.indices[is_kept], ends), shape=rows.shape)

    def _step(self, rows: Matrix, wanted: Floats, rate: np.float32, random: np.random.Generator) -> None:
        """One step of AdaGrad. Only the features that occur in the batch are touched: they are few of many."""
        features, places = np.unique(rows.indices, return_inverse=True)
        narrow = sparse.csr_matrix((rows.data, places, rows.indptr), shape=(rows.shape[0], len(features)))
        inner = self._inner[features]
        summed = narrow @ inner + self._inner_offset
        is_kept = random.random(summed.shape, dtype=np.float32) >= self.dropped_hidden
        gate = (summed > 0) * is_kept / np.float32(1 - self.dropped_hidden)
        hidden = summed * gate
        told = _probabilities(hidden @ self._outer + self._outer_offset)

        outer_slope = (told - wanted) * np.float32(self._GRADIENT_SCALE / len(wanted))
        inner_slope = (outer_slope @ self._outer.T) * gate
        feature_slopes = narrow.T @ inner_slope
        of_features, *of_rest = self._squares
        of_features[features] += np.einsum("ij,ij->i", feature_slopes, feature_slopes) / np.float32(self.hidden_count)
        self._inner[features] = inner - feature_slopes * (rate / np.sqrt(of_features[features]))[:, None]
        slopes = (inner_slope.sum(0), hidden.T @ outer_slope, outer_slope.sum(0))
        for weights, squares, slope in zip(
            (self._inner_offset, self._outer, self._outer_offset), of_rest, slopes, strict=True
        ):
            squares += slope * slope
            weights -= rate * slope / np.sqrt(squares)


def _probabilities(scores: Floats) -> Floats:
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)
