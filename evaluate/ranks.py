"""Where the right answers stand among features: exact ranks, without ranking the rest.

Matrix products say how many wrong entries stand above each right one, but for those within the settling distance,
which vecdot decides; equal scores stand in gallery order. Each core multiplies queries of its own tile by tile, and
looks at a tile while a cache holds it: memory is one tile a core, whatever Q x G.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.embed.cores import cores
from reidserve.evaluate.distribution import Histogram
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.outcomes import NOBODY, Outcomes, joined
from reidserve.evaluate.rule import Judge, Pairs, Places, Rule
from reidserve.index.search.ranking import SETTLED_WITHIN, Scores, settled_pairs
from reidserve.index.search.threads import undivided_products

_TILE_QUERIES, _TILE_ROWS = 2048, 2048  # 16 MiB of products for each core: as fast as any larger piece
_READ_AT_ONCE = 128  # rows that a core's cache holds
_WITHIN = np.float32(SETTLED_WITHIN)


def rank_features(
    query: Labelled,
    gallery: Labelled,
    rule: Rule,
    *,
    impostors: Histogram | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcomes:
    """The outcomes of ranking a gallery's embeddings by cosine for each query, by brute force.

    The scores of all pairs of which the entry counts and is wrong are added to `impostors`.
    """
    # What only ranking needs is asked for here: an index is tuned without it.
    from reidserve.evaluate.counting import bin_scores

    judge = Judge(rule, query.labels, gallery.labels)
    queries, vectors = np.ascontiguousarray(query.embeddings), np.ascontiguousarray(gallery.embeddings)

    def rank(part: slice) -> tuple[Outcomes, NDArray[np.int64] | None]:
        search = _Searches(queries[part], vectors, part, judge)
        counts = None if impostors is None else np.zeros(len(impostors.counts), np.int64)
        buffer = np.empty((part.stop - part.start) * min(len(vectors), _TILE_ROWS), np.float32)
        for tile in _runs(slice(0, len(vectors)), _TILE_ROWS):
            rows = vectors[tile]
            products = buffer[: (part.stop - part.start) * len(rows)].reshape(-1, len(rows))
            np.matmul(queries[part], rows.T, out=products)
            search.look(products, tile)
            if counts is not None:
                counts += bin_scores(products, len(counts))
        return search.outcomes(), counts

    workers = cores()
    parts = _even_parts(len(queries), workers)
    outcomes: list[Outcomes] = []
    # All cores are busy with queries of their own: a product of many threads would have them wait for each other.
    with undivided_products(), ThreadPoolExecutor(workers, thread_name_prefix="ranks") as threads:
        for part, (found, counts) in zip(parts, threads.map(rank, parts), strict=True):
            outcomes.append(found)
            if impostors is not None and counts is not None:
                impostors.add(counts)
            progress(part.stop, len(queries))
    return joined(outcomes)


def _even_parts(count: int, workers: int) -> list[slice]:
    """Queries in parts of a tile at most, as many for each core."""
    rounds = max(1, -(-count // (workers * _TILE_QUERIES)))
    return _runs(slice(0, count), -(-count // (workers * rounds)))


def _runs(whole: slice, step: int) -> list[slice]:
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, max(1, step))]


class _Searches:
    """Some queries on their way through the gallery, tile by tile."""

    def __init__(self, queries: Embeddings, vectors: Embeddings, places: slice, judge: Judge) -> None:
        self._queries, self._vectors = queries, vectors
        self._right, self._scores = self._best_first(judge, places)
        self._starts = np.searchsorted(self._right.owners, np.arange(len(self._queries) + 1))
        dropped = judge.dropped(places)
        self._counted = judge.counting - np.bincount(dropped.owners, minlength=len(self._queries))
        self._masked, self._never = _by_row(self._right, dropped), judge.never
        self._tops = np.full(len(self._queries), -np.inf, np.float32)
        self._above = np.zeros(len(self._scores), np.int64)
        self._near: list[NDArray[np.int64]] = []
        self._contenders: list[tuple[NDArray[np.int64], Scores]] = []

    def look(self, products: Scores, tile: slice) -> None:
        """Take in the products (Q, w) with the rows of a tile; those of right and dropped entries become -inf."""
        from reidserve.evaluate.counting import count_wrong

        products[:, _within(self._never, tile) - tile.start] = -np.inf
        low, high = np.searchsorted(self._masked.rows, (tile.start, tile.stop))
        products[self._masked.owners[low:high], self._masked.rows[low:high] - tile.start] = -np.inf
        doubts = count_wrong(products, tile.start, self._starts, self._scores, self._tops, self._above, _WITHIN)
        self._near.append(doubts.near)
        self._contenders.append((doubts.contenders, doubts.products))

    def outcomes(self) -> Outcomes:
        """How the queries fared, once all tiles were looked at."""
        above = self._running(self._above)
        better, equal = self._settle()
        wrong, wrong_scores = self._best_wrong()
        places = np.arange(len(above)) - self._starts[self._right.owners]
        return Outcomes(
            starts=self._starts,
            rows=self._right.rows.astype(np.int64),
            scores=self._scores,
            ranks=1 + places + above + better,
            reach=above + better + equal + self._reached(),
            missing=np.zeros(len(self._queries), np.int64),
            counted=self._counted,
            wrong=wrong,
            wrong_scores=wrong_scores,
        )

    def _best_first(self, judge: Judge, places: slice) -> tuple[Pairs, Scores]:
        """The right entries of each query and their scores."""
        same = judge.same(places)
        scores = np.empty(len(same.rows), np.float32)
        bounds = np.searchsorted(same.owners, np.arange(len(self._queries) + 1))
        for queries in judge.alike(places):
            # Queries of one pid share their entries, which are read from memory once.
            rows = same.rows[bounds[queries[0]] : bounds[queries[0] + 1]]
            asked = _at(self._queries, queries)
            for start in range(0, len(rows), _READ_AT_ONCE):
                held = _at(self._vectors, rows[start : start + _READ_AT_ONCE])
                into = bounds[queries, np.newaxis] + start + np.arange(len(held))
                scores[into] = np.vecdot(asked[:, np.newaxis], held[np.newaxis])
        right = judge.is_right(places, same)
        owners, rows, scores = same.owners[right], same.rows[right], scores[right]
        order = np.lexsort((rows, -scores, owners))
        return Pairs(owners[order], rows[order]), scores[order]

    def _running(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts of right entries, best first, summed up within each query: what is above one is above those below."""
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        summed: NDArray[np.int64] = total[1:] - total[self._starts[self._right.owners]]
        return summed

    def _settle(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each right entry, how many wrong entries near it stand above it; and how many below have its score."""
        places, rows = np.concatenate([np.empty((0, 2), np.int64), *self._near]).T
        settled = settled_pairs(self._queries, self._right.owners[places], self._vectors, rows)
        equal = settled == self._scores[places]
        above = (settled > self._scores[places]) | (equal & (rows < self._right.rows[places]))
        count = len(self._scores)
        return np.bincount(places[above], minlength=count), np.bincount(places[equal & ~above], minlength=count)

    def _reached(self) -> NDArray[np.int64]:
        """For each right entry, best first, how many of its query's have its score or a better one."""
        owners, scores = self._right.owners, self._scores
        last = np.ones(len(scores), np.bool_)
        last[:-1] = (owners[1:] != owners[:-1]) | (scores[1:] != scores[:-1])
        ends = np.flatnonzero(last)
        reached: NDArray[np.int64] = 1 + ends[np.searchsorted(ends, np.arange(len(scores)))] - self._starts[owners]
        return reached

    def _best_wrong(self) -> tuple[NDArray[np.int64], Scores]:
        """The place and the score of each query's best wrong entry."""
        places = np.full(len(self._queries), NOBODY, np.int64)
        scores = np.full(len(self._queries), -np.inf, np.float32)
        pairs = np.concatenate([np.empty((0, 2), np.int64), *(found for found, _ in self._contenders)])
        products = np.concatenate([np.empty(0, np.float32), *(values for _, values in self._contenders)])
        # Tiles that came later may have raised what must be reached.
        queries, rows = pairs[products >= self._tops[pairs[:, 0]] - 2 * _WITHIN].T
        settled = settled_pairs(self._queries, queries, self._vectors, rows)
        order = np.lexsort((rows, -settled, queries))
        queries, best = np.unique(queries[order], return_index=True)
        places[queries], scores[queries] = rows[order][best], settled[order][best]
        return places, scores


def _at(vectors: Embeddings, places: Places) -> Embeddings:
    """The vectors at ascending places, uncopied where they stand together, as an identity's files do."""
    together = places[-1] - places[0] + 1 == len(places)
    return vectors[places[0] : places[-1] + 1] if together else vectors[places]


def _by_row(*pairs: Pairs) -> Pairs:
    """All pairs together, by row."""
    owners, rows = (np.concatenate([getattr(one, name) for one in pairs]) for name in ("owners", "rows"))
    order = np.argsort(rows, kind="stable")
    return Pairs(owners[order], rows[order])


def _within(places: Places, tile: slice) -> Places:
    low, high = np.searchsorted(places, (tile.start, tile.stop))
    return places[low:high]
