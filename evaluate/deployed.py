"""What is deployed: a gallery's own rankings, whole where its index ranks the whole, else as deep as Rank-k needs."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from reidserve.datasets import path_to_text, text_to_path
from reidserve.errors import EvaluationError
from reidserve.evaluate.evaluation import Evaluation, evaluate_rankings
from reidserve.evaluate.labelled import Labelled, Labels
from reidserve.evaluate.metrics import MAX_RANK
from reidserve.evaluate.rule import MARKET, Judge, Rule
from reidserve.index import MAX_TOP_K, Ranking, Snapshot
from reidserve.index.search.ranking import Rows

_RANKING_BYTES = 64 * 2**20
_BYTES_PER_HIT = 12
_SEARCHED_TOGETHER = 64
_JUDGED_TOGETHER = 256


class Described(Protocol):
    """What scoring must know of an entry, of a gallery here or on a server."""

    @property
    def pid(self) -> str | None:
        """The identity; None where unknown."""
        ...

    @property
    def camid(self) -> str | None:
        """The camera; None where unknown."""
        ...

    @property
    def source(self) -> str | None:
        """The file that it came from; None where unknown."""
        ...


def labels_of_entries(entries: Iterable[Described]) -> Labels:
    """What scoring must know of a gallery's entries; sources are resolved, as those of crops are."""
    every = list(entries)
    sources = [entry.source and path_to_text(text_to_path(entry.source).resolve()) for entry in every]
    return Labels([entry.pid for entry in every], [entry.camid for entry in every], sources)


def evaluate_snapshot(
    query: Labelled,
    snapshot: Snapshot,
    *,
    rule: Rule = MARKET,
    max_rank: int = MAX_RANK,
    impostors: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a gallery's own rankings of queries (Q, dim), by the labels of its entries.

    An index that may miss rows is asked for as many hits as the CMC to `max_rank` needs; the evaluation is then not
    `whole`.

    Raises:
        EvaluationError: the gallery is empty.
        QueryError: queries and gallery are of other dimensions.
    """
    labels = labels_of_entries(snapshot.entries())
    if not len(labels):
        raise EvaluationError("the gallery is empty: there is nothing to rank")
    rows = snapshot.rows()
    depth = None if snapshot.ranks_all else needed_depth(rule, query.labels, labels, max_rank=max_rank)

    def chunks() -> Iterator[tuple[slice, Ranking]]:
        step = _SEARCHED_TOGETHER if depth else max(1, _RANKING_BYTES // (_BYTES_PER_HIT * len(rows)))
        for start in range(0, len(query), step):
            part = slice(start, min(start + step, len(query)))
            some = query.embeddings[part]
            ranking = snapshot.search(some, top_k=depth) if depth else snapshot.rank_all(some)
            yield part, placed(ranking, rows)

    return evaluate_rankings(chunks(), query.labels, labels, rule=rule, impostors=impostors, progress=progress)


def placed(ranking: Ranking, rows: Rows) -> Ranking:
    """A ranking whose row numbers become places among all live rows, which are ascending."""
    places = np.searchsorted(rows, ranking.rows)
    places[ranking.rows < 0] = -1
    return Ranking(ranking.scores, places)


def needed_depth(rule: Rule, query: Labels, gallery: Labels, *, max_rank: int = MAX_RANK) -> int:
    """How many hits to ask for so that `max_rank` of them count, whatever the rule drops; MAX_TOP_K at most."""
    judge = Judge(rule, query, gallery)
    dropped = 0
    # Some queries at a time: a camera's entries, dropped for each of its queries, are a good part of all pairs.
    for start in range(0, len(query), _JUDGED_TOGETHER):
        some = judge.dropped(slice(start, min(start + _JUDGED_TOGETHER, len(query)))).owners
        dropped = max(dropped, int(np.bincount(some, minlength=1).max()))
    return min(max_rank + dropped + len(judge.never), len(gallery), MAX_TOP_K)
