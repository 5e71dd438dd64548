"""CMC, mAP and mINP from the ranks of the right answers, and nothing else.

Of a query with n right entries at ranks r_1 < ... < r_n:

- `hits`: the mean of j / r_j, the precision at each right entry (torchreid, fast-reid, strong-baseline: the default of
  papers today).
- `trapezoid`: each precision averaged with that just before it, (j - 1) / (r_j - 1), or 1 at rank 1 (the Oxford
  building code of Philbin et al., 2007, which Market-1501's Matlab code and layumi's took over).
- `step`: the area of scikit-learn's average_precision_score, where entries of equal score are reached together:
  the mean of (right entries reached) / (entries reached). It is `hits` where no scores are equal.
- INP: n / r_n (Ye et al., 2021, "AGW").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reidserve.evaluate.outcomes import Outcomes

Formula = Literal["hits", "trapezoid", "step"]

MAX_RANK = 50
"""How far CMC is reported where nothing else is said."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metrics:
    """How well queries were answered; all but counts are shares of 1, NaN where nothing could be scored.

    Attributes:
        cmc: share of queries with a right entry among the best 1, 2, ...
        mAP: mean average precision by the formula `hits`; NaN where rankings were cut short.
        mAP_trapezoid: the same by `trapezoid`.
        mAP_step: the same by `step`.
        mINP: mean inverse negative penalty; NaN where rankings were cut short.
        queries: queries that the means are over.
        unmatchable: queries that have no right entry in the gallery, whether the means leave them out or not.
        positives: right entries, over all queries.
    """

    cmc: Sequence[float]
    mAP: float
    mAP_trapezoid: float
    mAP_step: float
    mINP: float
    queries: int
    unmatchable: int
    positives: int

    def rank(self, k: int) -> float:
        """Rank-k: the CMC at k; beyond the curve's end NaN."""
        return self.cmc[k - 1] if k <= len(self.cmc) else float("nan")

    @property
    def rank1(self) -> float:
        """CMC at 1."""
        return self.rank(1)


def summarise(outcomes: Outcomes, *, over_all: bool = False, whole: bool = True, max_rank: int = MAX_RANK) -> Metrics:
    """The metrics of outcomes: CMC to `max_rank`, means over the matchable queries or, with `over_all`, all.

    Of rankings that were cut short (not `whole`) only the CMC is known, to where the first query may yet have been
    answered by what was cut off.
    """
    positives = outcomes.found + outcomes.missing
    means_over = np.ones(len(outcomes), np.bool_) if over_all else positives > 0
    open_ended = (outcomes.found == 0) & (outcomes.missing > 0)
    known = int(outcomes.counted[open_ended].min(initial=max_rank))

    def mean(values: Values) -> float:
        return float(values[means_over].mean()) if whole and means_over.any() else float("nan")

    return Metrics(
        cmc=cmc(outcomes, max_rank=known)[means_over].mean(axis=0).tolist() if means_over.any() else [],
        mAP=mean(average_precisions(outcomes, "hits")),
        mAP_trapezoid=mean(average_precisions(outcomes, "trapezoid")),
        mAP_step=mean(average_precisions(outcomes, "step")),
        mINP=mean(inverse_negative_penalties(outcomes)),
        queries=int(means_over.sum()),
        unmatchable=int((positives == 0).sum()),
        positives=int(positives.sum()),
    )


def first_ranks(outcomes: Outcomes) -> Values:
    """The rank of each query's best right entry (Q,); inf where none was found."""
    firsts = np.full(len(outcomes), np.inf)
    found = outcomes.found > 0
    firsts[found] = outcomes.ranks[outcomes.starts[:-1][found]]
    return firsts


def cmc(outcomes: Outcomes, *, max_rank: int) -> Values:
    """Per query (Q, max_rank): 1 from the rank of its first right entry on, else 0."""
    return (first_ranks(outcomes)[:, np.newaxis] <= np.arange(1, max_rank + 1)).astype(np.float64)


def cmc_all_shots(outcomes: Outcomes, *, max_rank: int) -> Values:
    """Per query (Q, max_rank): the share of its right entries with fewer than k wrong ones above (open-reid)."""
    wrong_above = outcomes.ranks - _places(outcomes)
    reached = wrong_above[:, np.newaxis] < np.arange(1, max_rank + 1)
    return np.stack([_mean_of_right(outcomes, column) for column in reached.T.astype(np.float64)], axis=1)


def average_precisions(outcomes: Outcomes, formula: Formula) -> Values:
    """The average precision of each query (Q,); 0 where no right entry was found."""
    places = _places(outcomes)
    match formula:
        case "hits":
            precisions = places / outcomes.ranks
        case "trapezoid":
            before = np.where(outcomes.ranks > 1, (places - 1) / np.maximum(outcomes.ranks - 1, 1), 1.0)
            precisions = (before + places / outcomes.ranks) / 2
        case _:
            precisions = _reached_together(outcomes, places) / outcomes.reach
    return _mean_of_right(outcomes, precisions)


def inverse_negative_penalties(outcomes: Outcomes) -> Values:
    """Right entries / rank of the last one, of each query (Q,); 0 where none was found (Ye et al., 2021)."""
    penalties = np.zeros(len(outcomes))
    found = outcomes.found > 0
    penalties[found] = outcomes.found[found] / outcomes.ranks[outcomes.starts[1:][found] - 1]
    return penalties


def _places(outcomes: Outcomes) -> NDArray[np.int64]:
    """1, 2, ... for the right entries of each query."""
    places: NDArray[np.int64] = 1 + np.arange(len(outcomes.ranks)) - np.repeat(outcomes.starts[:-1], outcomes.found)
    return places


def _reached_together(outcomes: Outcomes, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each right entry, how many right entries of its query have its score or a better one."""
    # Entries of equal score have equal reach, so the last place of each run of equals counts for the whole run.
    owners = np.repeat(np.arange(len(outcomes)), outcomes.found)
    last = np.ones(len(places), np.bool_)
    last[:-1] = (owners[1:] != owners[:-1]) | (outcomes.reach[1:] != outcomes.reach[:-1])
    runs = np.searchsorted(np.flatnonzero(last), np.arange(len(places)))
    return places[last][runs]


def _mean_of_right(outcomes: Outcomes, values: Values) -> Values:
    found = outcomes.found
    totals = np.zeros(len(found))
    some = found > 0
    if some.any():
        totals[some] = np.add.reduceat(values, outcomes.starts[:-1][some]) / found[some]
    return totals
