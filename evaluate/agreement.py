"""Agreement: how many of the nearest entries two models have in common, whatever the labels say."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.evaluate.labelled import Labelled, Labels
from reidserve.index.search.flat import rank_bare
from reidserve.index.search.ranking import NO_ROW, Rows, Scores, settled_pairs


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """The entries of a gallery nearest to each query, whose own image is left out.

    Attributes:
        query: Q queries.
        gallery: G entries.
        rows: int64 (Q, k), places in the gallery, best first; -1 where there are fewer.
    """

    query: Labelled
    gallery: Labelled
    rows: Rows

    def agreement(self, other: "Nearest", k: int) -> float:
        """The share of this one's k nearest that the other finds among its own k, of the same queries and gallery.

        What the other finds is scored here, so that of entries that are equally near any counts.
        """
        ours, theirs = (self._scores(rows[:, :k]) for rows in (self.rows, other.rows))
        wanted = (ours > -np.inf).sum(axis=1)
        farthest = np.min(ours, axis=1, initial=np.inf, where=ours > -np.inf)
        shared = (theirs >= farthest[:, np.newaxis]).sum(axis=1)
        return float(np.mean(np.minimum(shared, wanted) / np.maximum(wanted, 1)))

    def _scores(self, rows: Rows) -> Scores:
        """The scores of places (Q, k); -inf where there is none."""
        scores = np.full(rows.shape, -np.inf, np.float32)
        owners, columns = np.nonzero(rows != NO_ROW)
        found = settled_pairs(self.query.embeddings, owners, self.gallery.embeddings, rows[owners, columns])
        scores[owners, columns] = found
        return scores


def find_nearest(query: Labelled, gallery: Labelled, *, top_k: int) -> Nearest:
    """The `top_k` entries nearest to each query by cosine, exactly; equal scores stand in gallery order."""
    # As many more as may be a query's own image, which takes no place.
    copies = Counter(gallery.labels.sources)
    copies[None] = 0
    depth = top_k + max(copies[source] for source in query.labels.sources)
    rows = rank_bare(query.embeddings, gallery.embeddings, top_k=depth).rows
    own = _own(query.labels, gallery.labels, rows)
    order = np.argsort(own, axis=1, kind="stable")
    rows = np.where(own, NO_ROW, rows)
    return Nearest(query, gallery, np.take_along_axis(rows, order, axis=1)[:, :top_k])


def _own(query: Labels, gallery: Labels, rows: Rows) -> NDArray[np.bool_]:
    """Which of places (Q, k) are the query's own image; an unknown source equals none."""
    codes = {source: code for code, source in enumerate(dict.fromkeys(gallery.sources)) if source is not None}
    held = np.array([codes.get(source or "", -1) for source in gallery.sources])
    asked = np.array([codes.get(source or "", -2) for source in query.sources])
    own: NDArray[np.bool_] = held[rows] == asked[:, np.newaxis]
    return own
