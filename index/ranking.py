"""Exact ranking: matrix products nominate, vecdot settles.

The last digits of a matrix product change with the batch, the row count and the kernel, so equal rows can get
unequal products. One score holds everywhere: `np.vecdot` of the two C-contiguous float32 rows. Whatever a
product puts within SETTLED_WITHIN of the k-th place is scored again by it, and ties go to the lower row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings

SETTLED_WITHIN = 1e-5
"""Ten times the largest difference seen between product and vecdot of unit vectors (1.0e-6, of rows that are all
nearly one direction; twice it would do). What it lets in without need costs one vecdot each."""

FEW_QUERIES = 5
"""Up to so many queries, one matrix-vector product each is faster than a matrix product, which first repacks the
vectors (measured at 20,000 x 2048 on 2 cores: 3.1 ms a query against 16 ms for 2 to 8)."""

_PRODUCT_BYTES = 64 * 2**20

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best rows for Q queries, best first; equal scores stand in row order.

    Attributes:
        scores: float32 (Q, k), cosine; -inf where there are fewer than k rows.
        rows: int64 (Q, k), row numbers; -1 where there are fewer than k rows.
    """

    scores: NDArray[np.float32]
    rows: Rows


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A run of embeddings that never changes.

    Attributes:
        rows: int64 (n,), ascending row numbers.
        vectors: float32 (n, dim), rows of unit length.
        live: bool (n,), False where the entry has been deleted.
    """

    rows: Rows
    vectors: Embeddings
    live: NDArray[np.bool_]


def rank(queries: Embeddings, blocks: Sequence[Block], *, top_k: int, left_out: Rows | None = None) -> Ranking:
    """The `top_k` best live rows for each of (Q, dim) queries, exactly, whatever the batch.

    Blocks follow each other in row order. Fewer than `top_k` live rows leave the ranking padded. `left_out` (Q,)
    names a row that a query must not find, -1 for none.
    """
    count = sum(len(block.rows) for block in blocks)
    scores = np.full((len(queries), top_k), -np.inf, np.float32)
    rows = np.full((len(queries), top_k), -1, np.int64)
    for part in query_chunks(len(queries), count):
        products = _products(queries[part], blocks, count)
        if left_out is not None:
            _leave_out(left_out[part], products, blocks)
        for place, query, product in zip(range(part.start, part.stop), queries[part], products, strict=True):
            found, settled = _settle(query, _nominate(product, top_k), blocks)
            best = np.lexsort((found, -settled))[:top_k]
            scores[place, : len(best)] = settled[best]
            rows[place, : len(best)] = found[best]
    return Ranking(scores, rows)


def query_chunks(queries: int, rows: int) -> Iterator[slice]:
    """Runs of queries whose products with that many rows fit a fixed budget of memory."""
    step = max(1, _PRODUCT_BYTES // (4 * max(1, rows)))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def _products(queries: Embeddings, blocks: Sequence[Block], count: int) -> NDArray[np.float32]:
    products = np.empty((len(queries), count), np.float32)
    start = 0
    for block in blocks:
        stop = start + len(block.rows)
        _multiply(queries, block.vectors, products[:, start:stop])
        products[:, start:stop][:, ~block.live] = -np.inf
        start = stop
    return products


def _leave_out(left_out: Rows, products: NDArray[np.float32], blocks: Sequence[Block]) -> None:
    start = 0
    for block in blocks:
        places = np.searchsorted(block.rows, left_out)
        held = np.flatnonzero(np.isin(left_out, block.rows))
        products[held, start + places[held]] = -np.inf
        start += len(block.rows)


def _multiply(queries: Embeddings, vectors: Embeddings, products: NDArray[np.float32]) -> None:
    if len(queries) > FEW_QUERIES:
        np.matmul(queries, vectors.T, out=products)
        return
    for query, product in zip(queries, products, strict=True):
        np.matmul(vectors, query, out=product)


def _nominate(product: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """Positions that may be among the best, ascending."""
    if 0 < top_k < len(product):
        kth = np.partition(product, len(product) - top_k)[len(product) - top_k]
        if np.isfinite(kth):
            return np.flatnonzero(product >= kth - np.float32(SETTLED_WITHIN))
    return np.flatnonzero(product > -np.inf)


def _settle(
    query: Embeddings, positions: NDArray[np.intp], blocks: Sequence[Block]
) -> tuple[Rows, NDArray[np.float32]]:
    """Row numbers and vecdot scores of positions counted over all blocks."""
    rows, scores = [], []
    start = 0
    for block in blocks:
        stop = start + len(block.rows)
        low, high = np.searchsorted(positions, (start, stop))
        inside = positions[low:high] - start
        if len(inside):
            rows.append(block.rows[inside])
            scores.append(settled_scores(query, block.vectors, inside))
        start = stop
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    return np.concatenate(rows), np.concatenate(scores)


def settled_scores(query: Embeddings, vectors: Embeddings, positions: NDArray[np.intp]) -> NDArray[np.float32]:
    """The one score: vecdot of a query (dim,) with those rows of vectors (n, dim)."""
    if 2 * len(positions) > len(vectors):
        # Scoring every row in place is cheaper than copying most of them.
        every: NDArray[np.float32] = np.vecdot(vectors, query)
        return every[positions]
    some: NDArray[np.float32] = np.vecdot(vectors[positions], query)
    return some
