"""Sparse re-ranking: images are encoded by few others, and share something with few. Nothing else imports scipy."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from reidserve.embed import Embeddings
from reidserve.index.build import Progress
from reidserve.index.rerank import loops
from reidserve.index.rerank.dense import Distances, jaccard, mixed, normalised
from reidserve.index.rerank.neighbours import PANEL_BYTES, Neighbours, find_neighbours, in_threads
from reidserve.index.rerank.reranking import Reranking
from reidserve.index.search.ranking import Scores, settled_pairs

_Sparse = Any
"""A csr_array (N, N): scipy has no types."""


def distances_in_chunks(
    queries: Embeddings, gallery: Embeddings, how: Reranking, progress: Progress
) -> Iterator[tuple[slice, Distances]]:
    """What `rerank_in_chunks` says, of at least one query and one gallery image."""
    vectors = np.concatenate([queries, gallery])
    total = len(vectors) + len(queries)
    found = find_neighbours(vectors, max(how.k1 + 1, how.k2), lambda done, _: progress(done, total))
    encoded = _expanded(_encoded(vectors, found, how), found, how)
    del vectors
    yield from _blocks(queries, gallery, encoded[: len(queries)], encoded[len(queries) :], found, how, progress)


def distances_among(vectors: Embeddings, how: Reranking, progress: Progress) -> Iterator[tuple[slice, Distances]]:
    """What `rerank_among` says, of at least two images."""
    total = 2 * len(vectors)
    found = find_neighbours(vectors, max(how.k1 + 1, how.k2), lambda done, _: progress(done, total))
    encoded = _expanded(_encoded(vectors, found, how), found, how)
    yield from _blocks(vectors, vectors, encoded, encoded, found, how, progress)


def _blocks(
    queries: Embeddings,
    gallery: Embeddings,
    mine: _Sparse,
    others: _Sparse,
    found: Neighbours,
    how: Reranking,
    progress: Progress,
) -> Iterator[tuple[slice, Distances]]:
    """Runs of queries, the first of those whose neighbours were found, and their distances to a gallery."""
    mine, others = csr_array(mine), csr_array(others.T)
    step = max(1, PANEL_BYTES // (4 * len(gallery)))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        shared = _shared(mine[part], others)
        scores = _scores(queries[part], gallery, found.narrow[part])
        in_threads(0, len(scores), partial(_finish, shared, scores, found.lowest[part], how))
        yield part, scores
        progress(len(found.rows) + part.stop, len(found.rows) + len(queries))


def _nearest(found: Neighbours, count: int) -> _Sparse:
    """1 where a column is one of the row's first so many."""
    some = found.rows[:, :count]
    starts = np.arange(0, some.size + 1, some.shape[1])
    return csr_array((np.ones(some.size, np.int32), some.ravel(), starts), shape=(len(some), len(some)))


def _members(found: Neighbours, how: Reranking) -> _Sparse:
    """1 where an image encodes the row's: as in the dense way, product by product."""
    mutual, closer = (near * near.T for near in (_nearest(found, how.k1 + 1), _nearest(found, how.half + 1)))
    shared = (mutual * (mutual @ closer.T)).tocoo()
    trusts = 3 * shared.data > 2 * closer.sum(axis=1)[shared.col]
    trusted = csr_array((np.ones(trusts.sum(), np.int32), (shared.row[trusts], shared.col[trusts])), shape=shared.shape)
    members = csr_array(mutual + trusted @ closer)
    members.data[:] = 1
    return members


def _encoded(vectors: Embeddings, found: Neighbours, how: Reranking) -> _Sparse:
    """Each image's weights, which add up to 1: as near as its members are."""
    members = _members(found, how)
    count = found.rows.shape[1]
    numbered = _nearest(found, count)
    numbered.data[:] = np.tile(np.arange(1, count + 1), len(found.rows))
    # A member is a 1 and, where it is a neighbour, its number more: that one's score is known.
    members = csr_array(members + members * numbered)
    owners = np.repeat(np.arange(len(vectors)), np.diff(members.indptr))
    known = members.data > 1
    scores = np.empty(members.nnz, np.float32)
    scores[known] = found.scores[owners[known], members.data[known] - 2]
    scores[~known] = settled_pairs(vectors, owners[~known], vectors, members.indices[~known].astype(np.intp))
    weights = np.exp(-normalised(scores, found.lowest[owners]))
    weights /= np.add.reduceat(weights, members.indptr[:-1])[owners]
    return csr_array((weights, members.indices, members.indptr), shape=members.shape)


def _expanded(encoded: _Sparse, found: Neighbours, how: Reranking) -> _Sparse:
    """Each image's weights, averaged with those of its nearest."""
    if how.k2 == 1:
        return encoded
    nearest = _nearest(found, how.k2).astype(np.float32)
    return nearest @ encoded / np.float32(min(how.k2, len(found.rows)))


def _shared(queries: _Sparse, gallery: _Sparse) -> Scores:
    """What queries (q, N) have in common with each column of a gallery (N, G)."""
    shared = np.empty((queries.shape[0], gallery.shape[1]), np.float32)
    left, right = ((side.indptr, side.indices, side.data) for side in (queries, gallery))
    in_threads(0, len(shared), lambda start, stop: loops.share(*left, *right, shared, start, stop))
    return shared


def _scores(queries: Embeddings, gallery: Embeddings, narrow: NDArray[np.bool_]) -> Scores:
    scores: Scores = queries @ gallery.T
    for place in np.flatnonzero(narrow):
        np.vecdot(gallery, queries[place], out=scores[place])
    return scores


def _finish(shared: Scores, scores: Scores, lowest: Scores, how: Reranking, start: int, stop: int) -> None:
    """Make scores distances, row by row: what is done with one stays in a core's cache."""
    for place in range(start, stop):
        scores[place] = mixed(jaccard(shared[place]), normalised(scores[place], lowest[place]), how)
