"""Clusters of images without labels, and how far they agree with the truth. Nothing else imports scikit-learn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from sklearn.cluster import DBSCAN
from sklearn.metrics.cluster import pair_confusion_matrix

from reidserve.embed import Embeddings
from reidserve.errors import ExportError
from reidserve.export.adapt.settings import AdaptSettings
from reidserve.export.train.sampler import Labels
from reidserve.index.rerank import Reranking, rerank_among

NOISE = -1
BLOCK = 2**24
"""Of cosine distances at once."""
MOST_PAIRS = 2**27
"""Of neighbours that are kept, 8 bytes each: more of them than 8,000 for each of 16,000 images is no clustering."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """The clusters of N images.

    Attributes:
        labels: (N,) int64, the cluster of each from 0 upwards, or NOISE.
    """

    labels: Labels

    def __len__(self) -> int:
        return int(self.labels.max(initial=NOISE)) + 1

    @property
    def members(self) -> NDArray[np.int64]:
        """The rows of the images that are in a cluster."""
        return np.flatnonzero(self.labels != NOISE)

    @property
    def noise(self) -> float:
        """The share of images in no cluster."""
        return float(np.mean(self.labels == NOISE))


def find_clusters(
    embeddings: Embeddings, how: AdaptSettings, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Clusters:
    """Cluster images (N, dim) by density: DBSCAN (Ester et al., 1996).

    Only pairs that are neighbours are kept: of 16,000 images with 100 neighbours each 13 MB, beside what
    `rerank_among` takes.

    Raises:
        ExportError: too many images are neighbours.
    """
    near = _neighbours(_distances(embeddings, how, progress), how.eps)
    found = DBSCAN(eps=how.eps, min_samples=how.min_samples, metric="precomputed").fit_predict(near)
    return Clusters(found.astype(np.int64))


def pair_f_score(labels: Labels, identities: Labels) -> float:
    """How far clusters (N,) agree with identities (N,): F of the pairs of images put together; noise stands alone.

    The harmonic mean of the share of pairs in one cluster that are of one identity, and of the share of pairs of one
    identity that are in one cluster.
    """
    alone = np.arange(len(labels)) + labels.max(initial=NOISE) + 1
    (_, wrong), (missed, right) = pair_confusion_matrix(identities, np.where(labels == NOISE, alone, labels))
    return float(2 * right / max(1, 2 * right + wrong + missed))


def unit_centres(embeddings: Embeddings, labels: Labels) -> Embeddings:
    """The mean (C, dim) of the rows of each of C classes, of unit length; rows of class NOISE are left out."""
    chosen = labels != NOISE
    sums = np.zeros((labels.max() + 1, embeddings.shape[1]), np.float32)
    np.add.at(sums, labels[chosen], embeddings[chosen])
    centres: Embeddings = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return centres


def _distances(
    embeddings: Embeddings, how: AdaptSettings, progress: Callable[[int, int], None]
) -> Iterator[NDArray[np.float32]]:
    if how.distance == "rerank":
        for _, block in rerank_among(embeddings, Reranking(how.k1, how.k2, weight=0), progress=progress):
            yield block
    else:
        step = max(1, BLOCK // max(1, len(embeddings)))
        for start in range(0, len(embeddings), step):
            yield 1 - embeddings[start : start + step] @ embeddings.T
            progress(min(start + step, len(embeddings)), len(embeddings))


def _neighbours(blocks: Iterator[NDArray[np.float32]], within: float) -> csr_array:
    """The distances up to `within`, of rows that come block by block; others are not in it."""
    kept, pairs = [], 0
    for block in blocks:
        rows, columns = np.nonzero(block <= within)
        pairs += len(rows)
        if pairs > MOST_PAIRS:
            raise ExportError(f"more than {MOST_PAIRS:,} pairs of images are within eps {within:g}: give a lower eps")
        starts = np.searchsorted(rows, np.arange(len(block) + 1))
        # A rounding below 0 is no distance.
        near = np.maximum(block[rows, columns], 0)
        kept.append(csr_array((near, columns.astype(np.int32), starts), shape=block.shape))
    return vstack(kept, format="csr")
