"""Flat search: matrix products over all rows nominate, vecdot settles. Exact, and the way of every small gallery."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.index.search.blocks import BLOCK_ROWS
from reidserve.index.search.ranking import (
    SETTLED_WITHIN,
    Ranking,
    Rows,
    Scores,
    empty_ranking,
    settled_pairs,
    write_pairs,
)
from reidserve.index.search.threads import divide

FEW_QUERIES = 5
"""Up to so many queries, one matrix-vector product each is faster than a matrix product, which first repacks the
vectors (measured at 20,000 x 2048 on 2 cores: 3.1 ms a query against 16 ms for 2 to 8)."""

GATHERED_BELOW = 0.25
"""Where less than this part of a block may be found, its rows are copied together and the rest is not multiplied
(benchmarks/gallery.py)."""

_PANEL_BYTES = 16 * 2**20  # of products at once: a block's with 512 queries, which a cache mostly holds
_TURN_BYTES = 8 * 2**20  # of embeddings that a thread takes at a time
_MOST_QUERIES = 512
_MOST_KEPT = 2**20
_MOST_STRIDES = 64
_LOWEST = np.float32(-2)  # below every product of unit vectors, above what is masked


class Vectors(Protocol):
    """What flat search must know of a block: ascending row numbers (n,) and their embeddings (n, dim)."""

    @property
    def rows(self) -> Rows:
        """The row numbers."""
        ...

    @property
    def vectors(self) -> Embeddings:
        """Their embeddings, rows of unit length."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Bare:
    """Embeddings that are of no gallery.

    Attributes:
        rows: int64 (n,), ascending.
        vectors: float32 (n, dim), rows of unit length.
    """

    rows: Rows
    vectors: Embeddings


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a search may find in one block.

    Attributes:
        block: the block.
        accepted: bool (n,), the rows that may be found; None for all.
        count: how many they are.
    """

    block: Vectors
    accepted: NDArray[np.bool_] | None
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """One block's share of a product: all its rows, of which some are masked, or those at `positions`."""

    block: Vectors
    masked: NDArray[np.bool_] | None = None
    positions: NDArray[np.intp] | None = None

    @property
    def rows(self) -> Rows:
        return self.block.rows if self.positions is None else self.block.rows[self.positions]

    @property
    def width(self) -> int:
        return len(self.block.rows if self.positions is None else self.positions)

    def multiply(self, queries: Embeddings, products: Scores, some: slice) -> None:
        """Write those products (Q, width) that are of some rows; what may not be found gets -inf."""
        vectors = self.block.vectors[some if self.positions is None else self.positions[some]]
        mine = products[:, some]
        if len(queries) > FEW_QUERIES:
            np.matmul(queries, vectors.T, out=mine)
        else:
            for query, product in zip(queries, mine, strict=True):
                np.matmul(vectors, query, out=product)
        if self.masked is not None:
            mine[:, self.masked[some]] = -np.inf

    def settle(self, queries: Embeddings, owners: NDArray[np.intp], places: NDArray[np.intp]) -> tuple[Rows, Scores]:
        """Row numbers and vecdot scores of pairs (n,): a query and a place counted in its own rows."""
        inside = places if self.positions is None else self.positions[places]
        return self.block.rows[inside], settled_pairs(queries, owners, self.block.vectors, inside)


def rank(queries: Embeddings, parts: Sequence[Part], *, top_k: int, left_out: Rows | None = None) -> Ranking:
    """The `top_k` best rows of parts, in row order, for each of (Q, dim) queries, exactly."""
    ranking = empty_ranking(len(queries), top_k)
    factors = [_factor(part) for part in parts if part.count]
    if not top_k or not factors:
        return ranking
    step = max(1, min(_MOST_QUERIES, _MOST_KEPT // top_k))
    for start in range(0, len(queries), step):
        chunk = slice(start, start + step)
        some = None if left_out is None else left_out[chunk]
        nominees = _nominate(queries[chunk], factors, top_k, some)
        _settle(queries[chunk], factors, nominees, Ranking(ranking.scores[chunk], ranking.rows[chunk]))
    return ranking


def rank_bare(queries: Embeddings, vectors: Embeddings, *, top_k: int) -> Ranking:
    """The `top_k` best rows of vectors (n, dim), counted from 0, for each of (Q, dim) queries, exactly."""
    parts = []
    for start in range(0, len(vectors), BLOCK_ROWS):
        some = vectors[start : start + BLOCK_ROWS]
        parts.append(Part(Bare(np.arange(start, start + len(some)), some), None, len(some)))
    return rank(queries, parts, top_k=min(top_k, len(vectors)))


def _factor(part: Part) -> _Factor:
    if part.accepted is None:
        return _Factor(part.block)
    if part.count < GATHERED_BELOW * len(part.block.rows):
        return _Factor(part.block, positions=np.flatnonzero(part.accepted))
    return _Factor(part.block, masked=~part.accepted)


@dataclass(frozen=True, slots=True, eq=False)
class _Nominees:
    """Pairs that may be among the best: of query `owners` (n,) and column `columns` (n,), counted over all factors."""

    owners: NDArray[np.intp]
    columns: NDArray[np.intp]


def _nominate(queries: Embeddings, factors: Sequence[_Factor], top_k: int, left_out: Rows | None) -> _Nominees:
    """Every pair whose product comes within the settling distance of the query's `top_k`-th best, and a few more.

    Products are looked at in strided groups: the k-th best of the groups' best is reached by k rows at least, so a
    pass of maxima takes the place of a partition, and only groups that reach it are looked into.
    """
    total = sum(factor.width for factor in factors)
    strides = max(1, min(_MOST_STRIDES, total // (4 * top_k)))
    reached = np.full((len(queries), top_k), -np.inf, np.float32)
    found = []
    first = 0
    panels = list(_panels(factors, len(queries)))
    # One for all panels: memory that is new costs a tenth of the product.
    buffer = np.empty(len(queries) * max(_padded(panel, strides) for panel in panels), np.float32)
    for panel in panels:
        products = _products(queries, panel, buffer, strides, left_out)
        peaks = products.reshape(len(queries), strides, -1).max(axis=1)
        both = np.concatenate([reached, peaks], axis=1)
        reached = np.partition(both, peaks.shape[1], axis=1)[:, peaks.shape[1] :]
        lowest = _lowest(reached)
        owners, groups = np.nonzero(peaks >= lowest[:, np.newaxis])
        columns = groups[:, np.newaxis] + peaks.shape[1] * np.arange(strides)
        values = products[owners[:, np.newaxis], columns]
        high = values >= lowest[owners, np.newaxis]
        found.append((np.broadcast_to(owners[:, np.newaxis], high.shape)[high], first + columns[high], values[high]))
        first += sum(factor.width for factor in panel)
    owners, columns, values = (np.concatenate(some) for some in zip(*found, strict=True))
    high = values >= _lowest(reached)[owners]
    return _Nominees(owners[high], columns[high])


def _lowest(reached: Scores) -> Scores:
    """Below which product (Q,) no row can be among the best, once these (Q, top_k) are reached by so many."""
    lowest: Scores = np.maximum(reached.min(axis=1) - np.float32(SETTLED_WITHIN), _LOWEST)
    return lowest


def _panels(factors: Sequence[_Factor], queries: int) -> Iterator[Sequence[_Factor]]:
    """Runs of factors whose products with so many queries fit a fixed budget of memory, or single ones."""
    panel: list[_Factor] = []
    width = 0
    for factor in factors:
        if panel and 4 * queries * (width + factor.width) > _PANEL_BYTES:
            yield panel
            panel, width = [], 0
        panel.append(factor)
        width += factor.width
    yield panel


def _padded(panel: Sequence[_Factor], strides: int) -> int:
    """A panel's width, rounded up to whole strides."""
    return -(-sum(factor.width for factor in panel) // strides) * strides


def _products(
    queries: Embeddings, panel: Sequence[_Factor], buffer: Scores, strides: int, left_out: Rows | None
) -> Scores:
    """Products (Q, width) with a panel's rows, in `buffer`; what the width is padded with can never be found."""
    width = _padded(panel, strides)
    products = buffer[: len(queries) * width].reshape(len(queries), width)
    products[:, sum(factor.width for factor in panel) :] = -np.inf
    ends = np.cumsum([factor.width for factor in panel]).tolist()
    shares = [(factor, products[:, end - factor.width : end]) for factor, end in zip(panel, ends, strict=True)]
    step = max(1, _TURN_BYTES // (4 * queries.shape[1]))
    divide(
        [
            partial(factor.multiply, queries, mine, slice(first, first + step))
            for factor, mine in shares
            for first in range(0, factor.width, step)
        ]
    )
    if left_out is not None:
        for factor, mine in shares:
            _leave_out(left_out, mine, factor.rows)
    return products


def _leave_out(left_out: Rows, products: Scores, rows: Rows) -> None:
    held = np.flatnonzero((left_out >= rows[0]) & (left_out <= rows[-1]))
    places = np.searchsorted(rows, left_out[held])
    there = rows[places] == left_out[held]
    products[held[there], places[there]] = -np.inf


def _settle(queries: Embeddings, factors: Sequence[_Factor], nominees: _Nominees, ranking: Ranking) -> None:
    """Score all nominees by vecdot and write the best into the ranking."""
    order = np.argsort(nominees.columns, kind="stable")
    owners, columns = nominees.owners[order], nominees.columns[order]
    starts = np.cumsum([0, *(factor.width for factor in factors)])
    cuts = np.searchsorted(columns, starts)
    settled = [
        factors[place].settle(
            queries, owners[cuts[place] : cuts[place + 1]], columns[cuts[place] : cuts[place + 1]] - starts[place]
        )
        for place in np.flatnonzero(np.diff(cuts)).tolist()
    ]
    if not settled:
        return
    rows, scores = (np.concatenate(some) for some in zip(*settled, strict=True))
    write_pairs(ranking, owners, rows, scores)
