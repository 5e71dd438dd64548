"""Where the right answers stand: the exact ranks of each query's positives, without ranking the rest.

Matrix products say how many rows stand above a positive, but for those within the settling distance, which
vecdot decides; equal scores stand in gallery order. Memory is a chunk of products, whatever Q x G.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import JUNK
from reidserve.embed import Embeddings
from reidserve.evaluate.labelled import Labelled
from reidserve.index.search.ranking import SETTLED_WITHIN, settled_scores

_UNKNOWN = -1
_PRODUCT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Positives:
    """One query's right answers.

    Attributes:
        ranks: int64 (n,), their ranks among the entries that count, ascending, 1 for the best.
    """

    ranks: NDArray[np.int64]


class MarketRule:
    """The rule of Market-1501 (Zheng et al., 2015) between queries and a gallery.

    For each query, gallery entries with its pid and its camid are dropped, as are junk (pid "-1") and the query's
    own source; what is left of its pid is right, everything else wrong.
    """

    def __init__(self, query: Labelled, gallery: Labelled) -> None:
        codes = _Codes()
        self._query = [codes.of(labels) for labels in (query.pids, query.camids, query.sources)]
        self._gallery = [codes.of(labels) for labels in (gallery.pids, gallery.camids, gallery.sources)]
        self._not_junk = self._gallery[0] != codes.of([JUNK])[0]

    def judge(self, place: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """For one query, which gallery entries (G,) count, and which of these are right."""
        same_pid, same_camid, same_source = (
            _same(labels, label[place]) for labels, label in zip(self._gallery, self._query, strict=True)
        )
        counts = self._not_junk & ~(same_pid & same_camid) & ~same_source
        return counts, counts & same_pid


def rank_positives(query: Labelled, gallery: Labelled) -> Iterator[Positives]:
    """The positives of each query in turn, by the rule of Market-1501."""
    rule = MarketRule(query, gallery)
    parts = list(_chunks(len(query), len(gallery)))
    buffer = np.empty((parts[0].stop if parts else 0, len(gallery)), np.float32)
    for part in parts:
        products = buffer[: part.stop - part.start]
        np.matmul(query.embeddings[part], gallery.embeddings.T, out=products)
        for product, place in zip(products, range(part.start, part.stop), strict=True):
            counts, right = rule.judge(place)
            product[~counts] = -np.inf
            ranks = _ranks(query.embeddings[place], gallery.embeddings, product, np.flatnonzero(right))
            yield Positives(np.sort(ranks))


def _chunks(queries: int, rows: int) -> Iterator[slice]:
    """Runs of queries whose products with that many rows fit a fixed budget of memory."""
    step = max(1, _PRODUCT_BYTES // (4 * max(1, rows)))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


class _Codes:
    """Texts as numbers, equal for equal texts; unknown texts are _UNKNOWN."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def of(self, texts: Sequence[str | None]) -> NDArray[np.int64]:
        codes = self._codes
        return np.array([_UNKNOWN if text is None else codes.setdefault(text, len(codes)) for text in texts], np.int64)


def _same(codes: NDArray[np.int64], code: np.int64) -> NDArray[np.bool_]:
    # What is unknown equals nothing, not even another unknown.
    same: NDArray[np.bool_] = (codes == code) & (code != _UNKNOWN)
    return same


def _ranks(
    query: Embeddings, gallery: Embeddings, product: NDArray[np.float32], right: NDArray[np.intp]
) -> NDArray[np.int64]:
    """The rank of each right answer among rows whose product is above -inf."""
    scores = settled_scores(query, gallery, right)
    highest, lowest = scores + np.float32(SETTLED_WITHIN), scores - np.float32(SETTLED_WITHIN)
    ascending = np.sort(product)
    above = len(ascending) - np.searchsorted(ascending, highest, "right")
    near = len(ascending) - above - np.searchsorted(ascending, lowest, "left")
    ranks = above + 1
    # A positive is always near itself: alone there, its rank is known.
    unsettled = np.flatnonzero(near > 1)
    if len(unsettled):
        doubtful = np.flatnonzero((product >= lowest[unsettled].min()) & (product <= highest[unsettled].max()))
        settled = settled_scores(query, gallery, doubtful)
        for place in unsettled:
            close = (product[doubtful] >= lowest[place]) & (product[doubtful] <= highest[place])
            rows, values = doubtful[close], settled[close]
            better = (values > scores[place]) | ((values == scores[place]) & (rows < right[place]))
            ranks[place] += int(better.sum())
    return ranks.astype(np.int64)
