"""The nearest neighbours of every image among all: products nominate, panel by panel, and vecdot settles."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.embed.cores import cores
from reidserve.index.build import Progress
from reidserve.index.rerank import loops
from reidserve.index.search.ranking import SETTLED_WITHIN, Scores, settled_pairs
from reidserve.index.search.threads import divide

PANEL_BYTES = 64 * 2**20
"""Of products at once."""

_SPARE = 12  # kept beyond those asked for, so that seldom more than these lie within a rounding of the last

_NARROW = 0.9
"""Where all images are nearer than this to one, a rounding of a product is no longer small beside their distances,
and vecdot scores all pairs."""


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The k nearest of N images, each its own first; the others by score, then in row order.

    Attributes:
        rows: int32 (N, k).
        scores: float32 (N, k), cosine, within 1e-6 of vecdot's.
        lowest: float32 (N,), the least score of each image with any.
    """

    rows: NDArray[np.int32]
    scores: Scores
    lowest: Scores

    @property
    def narrow(self) -> NDArray[np.bool_]:
        """Which images (N,) need vecdot for every score."""
        return self.lowest > _NARROW


def find_neighbours(vectors: Embeddings, count: int, progress: Progress) -> Neighbours:
    """The `count` nearest of each of N >= 2 images (N, dim), or all if there are fewer, whatever the panels."""
    images = len(vectors)
    wanted = min(count, images) - 1
    kept = min(wanted + _SPARE, images - 1)
    scores = np.full((images, kept), -np.inf, np.float32)
    rows = np.zeros((images, kept), np.int32)
    lowest = np.full(images, np.inf, np.float32)
    for first, products in _panels(vectors):
        best = (first, products, scores, rows, lowest)
        in_threads(0, len(products), partial(loops.keep_of_rows, *best))
        in_threads(len(products), products.shape[1], partial(loops.keep_of_columns, *best))
        progress(first + len(products), images)
    _settle(vectors, scores, rows)
    own = np.arange(images, dtype=np.int32)[:, np.newaxis]
    itself = np.vecdot(vectors, vectors)[:, np.newaxis]
    found = Neighbours(np.hstack([own, rows]), np.hstack([itself, scores]), lowest)
    doubtful = found.narrow
    if kept < images - 1:
        # What was not kept is no better than the last that was.
        doubtful |= scores[:, wanted - 1] - scores[:, -1] <= SETTLED_WITHIN
    chosen = np.flatnonzero(doubtful)
    in_threads(0, len(chosen), lambda start, stop: _score_plainly(vectors, chosen[start:stop], found))
    return Neighbours(found.rows[:, : wanted + 1], found.scores[:, : wanted + 1], lowest)


def in_threads(start: int, stop: int, work: Callable[[int, int], object]) -> None:
    """Do `work(start, stop)` in equal parts, one for each core."""
    cuts = np.linspace(start, stop, cores() + 1).astype(int).tolist()
    divide([partial(work, *cut) for cut in pairwise(cuts)])


def _panels(vectors: Embeddings) -> Iterator[tuple[int, Scores]]:
    """The products of each run of images with itself and all after it, and where it starts: every pair once."""
    images = len(vectors)
    step = max(1, min(images, PANEL_BYTES // (4 * images)))
    # One for all panels: memory that is new costs a tenth of the product.
    buffer = np.empty(step * images, np.float32)
    for first in range(0, images, step):
        some = vectors[first : first + step]
        products = buffer[: len(some) * (images - first)].reshape(len(some), -1)
        yield first, np.matmul(some, vectors[first:].T, out=products)


def _settle(vectors: Embeddings, scores: Scores, rows: NDArray[np.int32]) -> None:
    """Give neighbours (N, kept) that stand within a rounding of the next their vecdot scores, and order them anew."""
    close = scores[:, :-1] - scores[:, 1:] <= SETTLED_WITHIN
    doubtful = np.zeros(scores.shape, np.bool_)
    doubtful[:, :-1] |= close
    doubtful[:, 1:] |= close
    owners, places = np.nonzero(doubtful)
    scores[owners, places] = settled_pairs(vectors, owners, vectors, rows[owners, places].astype(np.intp))
    touched = np.flatnonzero(close.any(axis=1))
    order = np.lexsort((rows[touched], -scores[touched]), axis=1)
    scores[touched] = np.take_along_axis(scores[touched], order, axis=1)
    rows[touched] = np.take_along_axis(rows[touched], order, axis=1)


def _score_plainly(vectors: Embeddings, images: NDArray[np.intp], found: Neighbours) -> None:
    """Write what these images' neighbours are by every pair's vecdot."""
    kept = found.rows.shape[1]
    for image in images.tolist():
        scores = np.vecdot(vectors, vectors[image])
        found.lowest[image] = scores.min()
        scores[image], itself = np.inf, scores[image]
        order = np.argsort(-scores, kind="stable")[:kept]
        scores[image] = itself
        found.rows[image], found.scores[image] = order, scores[order]
