"""Outcomes: how each query fared, which is all that CMC, mAP and mINP need to know of a ranking."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOBODY = -1
"""The place of a wrong entry where none counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """How Q queries fared: of each its right entries, best first, and its best wrong one.

    Right entries of all queries stand in one row of numbers; those of query i are `starts[i]` to `starts[i + 1]`.

    Attributes:
        starts: int64 (Q + 1,).
        rows: int64 (n,), places of right entries in the gallery.
        scores: float32 (n,), their scores, higher is better.
        ranks: int64 (n,), their ranks among the entries that count, 1 for the best.
        reach: int64 (n,), how many of the entries that count have their score or a better one.
        missing: int64 (Q,), right entries that a ranking cut short did not reach.
        counted: int64 (Q,), entries that count, of those that were ranked.
        wrong: int64 (Q,), the place of the best wrong entry; NOBODY where there is none.
        wrong_scores: float32 (Q,), its score; -inf where there is none.
    """

    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    ranks: NDArray[np.int64]
    reach: NDArray[np.int64]
    missing: NDArray[np.int64]
    counted: NDArray[np.int64]
    wrong: NDArray[np.int64]
    wrong_scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.counted)

    @property
    def found(self) -> NDArray[np.int64]:
        """How many right entries of each query were found, int64 (Q,)."""
        return np.diff(self.starts)

    def of(self, query: int) -> slice:
        """Where one query's right entries stand."""
        return slice(int(self.starts[query]), int(self.starts[query + 1]))


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several runs of queries, one after another."""
    every = [_NOTHING, *parts]
    return Outcomes(
        starts=np.cumsum(np.concatenate([np.zeros(1, np.int64), *(part.found for part in parts)])),
        rows=np.concatenate([part.rows for part in every]),
        scores=np.concatenate([part.scores for part in every]),
        ranks=np.concatenate([part.ranks for part in every]),
        reach=np.concatenate([part.reach for part in every]),
        missing=np.concatenate([part.missing for part in every]),
        counted=np.concatenate([part.counted for part in every]),
        wrong=np.concatenate([part.wrong for part in every]),
        wrong_scores=np.concatenate([part.wrong_scores for part in every]),
    )


_NO_NUMBERS, _NO_SCORES = np.empty(0, np.int64), np.empty(0, np.float32)
_NOTHING = Outcomes(
    starts=np.zeros(1, np.int64),
    rows=_NO_NUMBERS,
    scores=_NO_SCORES,
    ranks=_NO_NUMBERS,
    reach=_NO_NUMBERS,
    missing=_NO_NUMBERS,
    counted=_NO_NUMBERS,
    wrong=_NO_NUMBERS,
    wrong_scores=_NO_SCORES,
)
