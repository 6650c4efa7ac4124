"""Tickets as sparse rows of numbers. Models that look at different views err on different tickets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import scipy.sparse as sparse  # type: ignore[import-untyped]  # SciPy ships no types
from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]  # ships no types
from sklearn.preprocessing import normalize  # type: ignore[import-untyped]  # ships no types

from agents.support_desk.words import neighbours, ordered, pairs, plain, stems

Matrix = Any
"""A `scipy.sparse.csr_matrix` of float32, one row per ticket, rows of length 1 (or 0 where nothing is known)."""

ROWS_FOR_PRUNING: Final = 1_000
"""With fewer tickets even what is seen once is kept: there is little to learn from, and it is cheap."""


@dataclass(frozen=True)
class Part:
    """One kind of feature. Weighted by itself, so that many letters do not drown few words."""

    split: Callable[[str], list[str]] | None
    """Makes features of a text; None for runs of letters."""
    tickets_min: int = 1
    """A feature seen in fewer tickets is left out."""
    letters: tuple[int, int] = (3, 4)
    is_across_words: bool = False


WORD_PAIRS: Final = (Part(stems), Part(neighbours, 2), Part(pairs, 3), Part(None, 3))
WORD_ORDER: Final = (Part(stems), Part(neighbours, 2), Part(ordered, 2), Part(None, 3))
LETTERS: Final = (Part(stems), Part(None, 5, letters=(3, 6), is_across_words=True))


class View:
    """Turns texts into rows, with the vocabulary and the rarity of features learned from the training texts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self._vectorizers: list[Any] = []

    def fit(self, texts: Sequence[str]) -> Self:
        """Learn the vocabulary; labels play no role.

        Raises:
            ValueError: there is nothing to be seen in any of the texts.
        """
        is_pruned = len(texts) >= ROWS_FOR_PRUNING
        fitted = [_fitted(_vectorizer(part, is_pruned=is_pruned), texts) for part in self._parts]
        self._vectorizers = [vectorizer for vectorizer in fitted if vectorizer is not None]
        if not self._vectorizers:
            raise ValueError(f"{len(texts)} texts without a word or letter to learn from")
        return self

    def rows(self, texts: Sequence[str]) -> Matrix:
        """One row per text."""
        columns = sparse.hstack([vectorizer.transform(texts) for vectorizer in self._vectorizers]).tocsr()
        rows = normalize(columns).astype(np.float32)
        rows.sort_indices()
        return rows


def _fitted(vectorizer: Any, texts: Sequence[str]) -> Any | None:
    """The vectorizer, or None if these texts have no feature of its kind: texts of one word have no pairs."""
    try:
        return vectorizer.fit(texts)
    except ValueError:  # scikit-learn's word for an empty vocabulary
        return None


def _vectorizer(part: Part, *, is_pruned: bool) -> Any:
    tickets_min = part.tickets_min if is_pruned else 1
    if part.split is not None:
        return TfidfVectorizer(analyzer=part.split, sublinear_tf=True, min_df=tickets_min)
    return TfidfVectorizer(
        analyzer="char" if part.is_across_words else "char_wb",
        ngram_range=part.letters,
        preprocessor=plain,
        sublinear_tf=True,
        min_df=tickets_min,
    )
