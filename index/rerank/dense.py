"""Dense re-ranking: every pair in plain matrices. For shortlists, and what the sparse way is compared with."""

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.index.rerank.reranking import Reranking, check_embeddings
from reidserve.index.search.ranking import SETTLED_WITHIN, Scores

Distances = NDArray[np.float32]
"""Lower is nearer: 0 for a query's double, 1 for what shares no neighbour with it and is farthest from it."""

Order = NDArray[np.intp]

_Matrix = NDArray[np.float32]


def rerank(queries: Embeddings, gallery: Embeddings, how: Reranking = Reranking()) -> Distances:  # noqa: B008
    """The k-reciprocal distances (Q, G) of queries (Q, dim) and a gallery (G, dim), which are neighbours to each other.

    Zhong et al., 2017, "Re-ranking Person Re-identification with k-reciprocal Encoding", as torchreid and fast-reid
    compute it: squared Euclidean distances are squared once more and each image's divided by its largest. The variant
    of reid-strong-baseline, which does not square again and differs by up to 0.1, is not offered: one formula.

    Each image is its own first neighbour, the others follow by score and then in row order (queries before gallery),
    so an answer depends on nothing but the rows. Time and memory grow with (Q + G)²: it is milliseconds for a
    hundred images.

    Raises:
        QueryError: the two have other dimensions.
    """
    check_embeddings(queries, gallery)
    count = len(queries)
    if not count or not len(gallery):
        return np.empty((count, len(gallery)), np.float32)
    vectors = np.concatenate([queries, gallery])
    scores = np.stack([np.vecdot(vectors, vector) for vector in vectors])
    order = _order(scores)
    apart = normalised(scores, scores.min(axis=1, keepdims=True))
    encoded = np.exp(-apart) * _members(order, how)
    encoded /= encoded.sum(axis=1, keepdims=True)
    if how.k2 > 1:
        nearest = _nearest(order, how.k2)
        encoded = nearest @ encoded / nearest.sum(axis=1, keepdims=True)
    shared = np.stack([np.minimum(encoded[place], encoded[count:]).sum(axis=1) for place in range(count)])
    return mixed(jaccard(shared), apart[:count, count:], how)


def normalised(scores: Scores, lowest: Scores) -> Distances:
    """The plain distances of scores, with the lowest ones that their images have over all: 0 to 1.

    Where all images are one to within rounding, nothing is far: the distances are 0.
    """
    alike = lowest >= 1 - SETTLED_WITHIN
    distances: Distances = np.square(2 - 2 * scores)
    distances *= np.where(alike, 0, 1 / np.square(2 - 2 * np.where(alike, 0, lowest))).astype(np.float32)
    return distances


def jaccard(shared: Scores) -> Distances:
    """The Jaccard distances of encodings that each add up to 1 and have this much in common."""
    distances: Distances = 1 - shared / (2 - shared)
    return distances


def mixed(neighbours: Distances, apart: Distances, how: Reranking) -> Distances:
    """The final distances: Jaccard's and the plain one, by their weight."""
    distances: Distances = neighbours * np.float32(1 - how.weight) + apart * np.float32(how.weight)
    return distances


def _order(scores: Scores) -> Order:
    keys = -scores
    np.fill_diagonal(keys, -np.inf)
    return np.argsort(keys, axis=1, kind="stable")


def _nearest(order: Order, count: int) -> _Matrix:
    """1 where a column is one of the row's first so many, else 0."""
    nearest = np.zeros(order.shape, np.float32)
    np.put_along_axis(nearest, order[:, :count], 1, axis=1)
    return nearest


def _members(order: Order, how: Reranking) -> NDArray[np.bool_]:
    """Which images (n, n) encode each: its k-reciprocal neighbours, and those of such as share two thirds with it."""
    mutual, closer = (near * near.T for near in (_nearest(order, how.k1 + 1), _nearest(order, how.half + 1)))
    # Products of zeros and ones count; float32 holds such counts exactly.
    shared = mutual @ closer.T
    trusted = mutual * (3 * shared > 2 * closer.sum(axis=1))
    members: NDArray[np.bool_] = (mutual + trusted @ closer) > 0
    return members
