"""Ranking: what a search answers with, and the plain way to compute it.

The contract of every `search(queries, *, top_k, where=None) -> Ranking`, whatever computes it:

- **Shapes.** Queries are float32 (Q, dim) of unit length. The ranking is (Q, k), k = `top_k` or the number of live
  entries that `where` accepts, if there are fewer.
- **Score.** Cosine, higher is better, as `np.vecdot` of the two C-contiguous float32 rows gives it and nothing else:
  the last digits of a matrix product change with the batch, the row count and the kernel, so products and
  approximate indexes only nominate, and vecdot settles. Scores of two rows are bitwise equal on one kind of CPU.
- **Order.** By score, best first; equal scores in row order, the order in which entries were written.
- **Padding.** A query that finds fewer than k (it leaves itself out) ends in score -inf, row -1.
- **Generation.** A ranking is of one snapshot: all writes up to its generation, and none after it.
- **Sameness.** It does not depend on the batch, on threads, or on blocks. Flat kinds give `rank_plainly`'s answer;
  a quantised kind may miss a row (its recall is measured by `reid-index tune`), but never scores or orders what it
  found differently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings, off_unit
from reidserve.errors import QueryError

SETTLED_WITHIN = 1e-5
"""Ten times the largest difference seen between product and vecdot of unit vectors (1.0e-6, of rows that are all
nearly one direction; twice it would do). What it lets in without need costs one vecdot each."""

Rows = NDArray[np.int64]

Scores = NDArray[np.float32]

NO_ROW = -1

MAX_TOP_K = 10_000

_TILE_BYTES = 2**20  # of vectors, which a core's cache holds while every query is scored
_SETTLED_AT_ONCE = 128  # rows copied together: what a core's cache holds


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best rows for Q queries, best first; equal scores stand in row order.

    Attributes:
        scores: float32 (Q, k), cosine; -inf where there are fewer than k rows.
        rows: int64 (Q, k), row numbers; -1 where there are fewer than k rows.
    """

    scores: Scores
    rows: Rows


def check_top_k(top_k: int) -> None:
    """See that so many hits may be asked for.

    Raises:
        QueryError: `top_k` is not 1 to MAX_TOP_K.
    """
    if not 1 <= top_k <= MAX_TOP_K:
        raise QueryError(f"top_k must be 1 to {MAX_TOP_K:,}, got {top_k}")


def check_queries(queries: Embeddings, dim: int) -> None:
    """See that queries (Q, dim) may be searched with.

    Raises:
        QueryError: they have other dimensions, or are not of unit length.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise QueryError(f"the gallery's embeddings have {dim} dimensions, the query has {queries.shape[-1]}")
    if wrong := off_unit(queries):
        raise QueryError(f"a query must be of unit length (L2-normalise it), got {wrong[0][1]:g}")


def rank_plainly(
    queries: Embeddings,
    vectors: Embeddings,
    rows: Rows,
    *,
    top_k: int,
    accepted: NDArray[np.bool_] | None = None,
    left_out: Rows | None = None,
) -> Ranking:
    """The `top_k` best of ascending `rows` (n,), whose embeddings are (n, dim), by brute force.

    Every search is tested against it. `accepted` (n,) says which rows may be found; `left_out` (Q,) names a row that
    a query must not find.
    """
    ranking = empty_ranking(len(queries), top_k)
    for place, query in enumerate(queries):
        scores = np.vecdot(vectors, query)
        allowed = np.ones(len(rows), np.bool_) if accepted is None else accepted.copy()
        if left_out is not None:
            allowed &= rows != left_out[place]
        write_best(ranking, place, rows[allowed], scores[allowed])
    return ranking


def empty_ranking(queries: int, top_k: int) -> Ranking:
    """A ranking of nothing yet."""
    return Ranking(np.full((queries, top_k), -np.inf, np.float32), np.full((queries, top_k), NO_ROW, np.int64))


def write_best(ranking: Ranking, place: int, rows: Rows, scores: Scores) -> None:
    """Write the best of one query's settled rows into its place of a ranking."""
    best = np.lexsort((rows, -scores))[: ranking.rows.shape[1]]
    ranking.scores[place, : len(best)] = scores[best]
    ranking.rows[place, : len(best)] = rows[best]


def write_pairs(ranking: Ranking, owners: NDArray[np.intp], rows: Rows, scores: Scores) -> None:
    """Write the best of settled pairs (n,), a query's place and a row each, into a ranking of nothing yet."""
    order = np.lexsort((rows, -scores, owners))
    owners = owners[order]
    ranks = np.arange(len(owners)) - np.searchsorted(owners, owners)
    best = ranks < ranking.rows.shape[1]
    ranking.scores[owners[best], ranks[best]] = scores[order][best]
    ranking.rows[owners[best], ranks[best]] = rows[order][best]


def merged(rankings: Sequence[Ranking], *, top_k: int) -> Ranking:
    """The best of several rankings of the same queries over different rows."""
    if len(rankings) == 1 and rankings[0].rows.shape[1] == top_k:
        return rankings[0]
    scores = np.concatenate([ranking.scores for ranking in rankings], axis=1)
    rows = np.concatenate([ranking.rows for ranking in rankings], axis=1)
    owners, places = np.nonzero(rows != NO_ROW)
    best = empty_ranking(len(scores), top_k)
    write_pairs(best, owners, rows[owners, places], scores[owners, places])
    return best


def settled_pairs(
    queries: Embeddings, owners: NDArray[np.intp], vectors: Embeddings, positions: NDArray[np.intp]
) -> Scores:
    """The one score of pairs (n,): a query's place among (Q, dim) and a row's position among vectors (m, dim)."""
    scores = np.empty(len(positions), np.float32)
    for start in range(0, len(positions), _SETTLED_AT_ONCE):
        part = slice(start, start + _SETTLED_AT_ONCE)
        asked = queries[0] if len(queries) == 1 else queries[owners[part]]
        np.vecdot(vectors[positions[part]], asked, out=scores[part])
    return scores


def every_score(queries: Embeddings, vectors: Embeddings) -> Scores:
    """The one score of every pair (Q, n): queries (Q, dim) and vectors (n, dim), which pass through the cache once."""
    scores = np.empty((len(queries), len(vectors)), np.float32)
    step = max(1, _TILE_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        tile = slice(start, start + step)
        np.vecdot(queries[:, np.newaxis], vectors[np.newaxis, tile], out=scores[:, tile])
    return scores
