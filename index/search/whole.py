"""The whole gallery ranked: every row scored by vecdot, tile by tile, and none left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.index.search.flat import Part
from reidserve.index.search.ranking import NO_ROW, Ranking, Rows, Scores
from reidserve.index.search.threads import divide

_TILE_BYTES = 2**20  # of embeddings: a core's cache holds them while every query is scored
_PIECE_ROWS = 1024  # what a thread takes at a time
_SIGN = np.uint32(2**31)
_PLACE = np.uint64(2**32 - 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Rows of one block that are scored by one thread.

    Attributes:
        vectors: float32 (m, dim), those of the block.
        places: int (n,), where the piece's rows stand among them, ascending.
        start: where their scores go.
    """

    vectors: Embeddings
    places: NDArray[np.intp]
    start: int

    def score(self, queries: Embeddings, scores: Scores) -> None:
        """Write the scores of each of (Q, dim) queries into their places of scores (Q, rows)."""
        step = max(1, _TILE_BYTES // (4 * queries.shape[1]))
        for first in range(0, len(self.places), step):
            places = self.places[first : first + step]
            into = scores[:, self.start + first : self.start + first + len(places)]
            low, high = int(places[0]), int(places[-1]) + 1
            if len(places) == high - low:
                np.vecdot(queries[:, np.newaxis], self.vectors[np.newaxis, low:high], out=into)
            elif 2 * len(places) > high - low:
                # Scoring some rows too many is cheaper than copying most of them.
                into[:] = np.vecdot(queries[:, np.newaxis], self.vectors[np.newaxis, low:high])[:, places - low]
            else:
                np.vecdot(queries[:, np.newaxis], self.vectors[np.newaxis, places], out=into)


def rank(queries: Embeddings, parts: Sequence[Part], *, left_out: Rows | None = None) -> Ranking:
    """Every row of parts, in row order, for each of (Q, dim) queries: rank_plainly's answer of as many rows.

    The ranking takes 12 bytes for each query and row. While it is made, a row takes 8 more, and 28 more for each core.
    """
    found = [part.block.rows if part.accepted is None else part.block.rows[part.accepted] for part in parts]
    rows = np.concatenate([np.empty(0, np.int64), *found])
    ranking = Ranking(np.empty((len(queries), len(rows)), np.float32), np.empty((len(queries), len(rows)), np.int64))

    def order(place: int) -> None:
        _order(ranking.scores[place], rows, ranking.rows[place], NO_ROW if left_out is None else int(left_out[place]))

    divide([partial(piece.score, queries, ranking.scores) for piece in _pieces(parts)])
    divide([partial(order, place) for place in range(len(queries))])
    return ranking


def _pieces(parts: Sequence[Part]) -> list[_Piece]:
    pieces = []
    start = 0
    for part in parts:
        places = np.arange(part.count) if part.accepted is None else np.flatnonzero(part.accepted)
        for first in range(0, part.count, _PIECE_ROWS):
            pieces.append(_Piece(part.block.vectors, places[first : first + _PIECE_ROWS], start + first))
        start += part.count
    return pieces


def _order(scores: Scores, rows: Rows, ranked: Rows, left_out: int) -> None:
    """Put one query's scores (n,), which are in row order, and their rows best first.

    A score and its place are sorted as one integer: four times as fast as sorting by two keys, and as stable.
    """
    place = np.searchsorted(rows, left_out)
    if place < len(rows) and rows[place] == left_out:
        scores[place] = -np.inf
    # Zeros of both signs are equal, and the bits of a float that is not negative count as it does.
    bits = (np.float32(0) - scores).view(np.uint32)
    keys = np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(rows), dtype=np.uint64)
    keys.sort()
    best = (keys & _PLACE).astype(np.intp)
    scores[:] = scores[best]
    ranked[:] = rows[best]
    ranked[np.isneginf(scores)] = NO_ROW
