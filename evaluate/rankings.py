"""Where the right answers stand in rankings that were made elsewhere: by an index, by a server, by other scores."""

import numpy as np
from numpy.typing import NDArray

from reidserve.evaluate.distribution import Histogram
from reidserve.evaluate.outcomes import NOBODY, Outcomes, joined
from reidserve.evaluate.rule import Judge, Places
from reidserve.index import Ranking
from reidserve.index.search.ranking import NO_ROW, Scores

_WRONG, _RIGHT, _DROPPED = 0, 1, 2


def rank_scores(scores: Scores, judge: Judge, queries: slice, *, impostors: Histogram | None = None) -> Outcomes:
    """The outcomes of a run of queries by scores (q, G), higher is better, equal ones in gallery order."""
    rows = np.argsort(-scores, axis=1, kind="stable")
    ranking = Ranking(np.take_along_axis(scores, rows, axis=1), rows.astype(np.int64))
    return rank_order(ranking, judge, queries, impostors=impostors)


def rank_order(ranking: Ranking, judge: Judge, queries: slice, *, impostors: Histogram | None = None) -> Outcomes:
    """The outcomes of a run of queries by rankings (q, k), best first, whose rows are places in the gallery."""
    right, dropped = judge.right(queries), judge.dropped(queries)
    bounds = np.arange(len(ranking.rows) + 1)
    rights, drops = np.searchsorted(right.owners, bounds), np.searchsorted(dropped.owners, bounds)
    kinds = np.full(judge.size, _WRONG, np.int8)
    kinds[judge.never] = _DROPPED
    outcomes = []
    for query in range(len(ranking.rows)):
        its_right = right.rows[rights[query] : rights[query + 1]]
        its_dropped = dropped.rows[drops[query] : drops[query + 1]]
        kinds[its_dropped] = _DROPPED
        kinds[its_right] = _RIGHT
        ranked = ranking.rows[query] != NO_ROW
        outcomes.append(
            _outcome(ranking.rows[query][ranked], ranking.scores[query][ranked], kinds, len(its_right), impostors)
        )
        kinds[its_dropped] = kinds[its_right] = _WRONG
    return joined(outcomes)


def _outcome(
    rows: NDArray[np.int64], scores: Scores, kinds: NDArray[np.int8], wanted: int, impostors: Histogram | None
) -> Outcomes:
    """The outcome of one query: `rows` and `scores` (k,), best first, and what each gallery place is to it."""
    found = kinds[rows]
    counts = found != _DROPPED
    rows, scores, found = rows[counts], scores[counts], found[counts]
    places: Places = np.flatnonzero(found == _RIGHT)
    wrong = np.flatnonzero(found == _WRONG)
    if impostors is not None:
        impostors.add_scores(scores[wrong])
    return Outcomes(
        starts=np.array([0, len(places)]),
        rows=rows[places],
        scores=scores[places],
        ranks=places + 1,
        reach=np.searchsorted(-scores, -scores[places], "right"),
        missing=np.array([wanted - len(places)]),
        counted=np.array([len(rows)]),
        wrong=rows[wrong[:1]] if len(wrong) else np.array([NOBODY]),
        wrong_scores=scores[wrong[:1]] if len(wrong) else np.array([-np.inf], np.float32),
    )
