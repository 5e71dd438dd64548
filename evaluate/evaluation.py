"""Evaluation: what was ranked by which rule, how every query fared, and the figures that follow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from reidserve.evaluate.distribution import Histogram
from reidserve.evaluate.labelled import Labelled, Labels
from reidserve.evaluate.metrics import Metrics, summarise
from reidserve.evaluate.outcomes import NOBODY, Outcomes, joined
from reidserve.evaluate.rankings import rank_order, rank_scores
from reidserve.evaluate.ranks import rank_features
from reidserve.evaluate.rule import MARKET, Judge, Places, Rule
from reidserve.index import Ranking
from reidserve.index.search.ranking import Scores


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How queries fared against a gallery.

    Attributes:
        rule: which entries counted, and what means are over.
        query: labels of the Q queries; where trials were drawn, of those of all trials, one trial after another.
        gallery: labels of the gallery, whose places `outcomes` name.
        outcomes: of each query.
        gallery_size: entries that were ranked for a query, before the rule; of one trial.
        trials: in how many equal runs the queries stand.
        whole: whether the whole gallery was ranked, without which there is no mAP.
        impostors: scores of all pairs whose entry counts and is wrong; None where they were not gathered.
    """

    rule: Rule
    query: Labels
    gallery: Labels
    outcomes: Outcomes
    gallery_size: int
    trials: int = 1
    whole: bool = True
    impostors: Histogram | None = None

    @cached_property
    def metrics(self) -> Metrics:
        """The figures, CMC to rank 50."""
        return self.summary()

    def summary(self, *, max_rank: int = 50) -> Metrics:
        """The figures, CMC to any rank."""
        return summarise(self.outcomes, over_all=self.rule.queries == "all", whole=self.whole, max_rank=max_rank)

    def of_part(self, gallery: Labels, places: Places) -> "Evaluation":
        """The same of a gallery of which only the entries at some places were ranked, which are named as its own."""
        outcomes, wrong = self.outcomes, self.outcomes.wrong.copy()
        wrong[wrong != NOBODY] = places[wrong[wrong != NOBODY]]
        return replace(self, gallery=gallery, outcomes=replace(outcomes, rows=places[outcomes.rows], wrong=wrong))


def evaluate(
    query: Labelled,
    gallery: Labelled,
    *,
    rule: Rule = MARKET,
    impostors: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score the ranking of embeddings (G, dim) by cosine for queries (Q, dim), by brute force in bounded memory."""
    gathered = Histogram() if impostors else None
    outcomes = rank_features(query, gallery, rule, impostors=gathered, progress=progress)
    return Evaluation(rule, query.labels, gallery.labels, outcomes, len(gallery), impostors=gathered)


def evaluate_scores(
    chunks: Iterable[tuple[slice, Scores]],
    query: Labels,
    gallery: Labels,
    *,
    rule: Rule = MARKET,
    impostors: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score rankings by any scores, higher is better: runs of queries and their (q, G), in order; ties by place."""
    judge, gathered = Judge(rule, query, gallery), Histogram() if impostors else None
    outcomes = []
    for queries, scores in chunks:
        outcomes.append(rank_scores(scores, judge, queries, impostors=gathered))
        progress(queries.stop, len(query))
    return Evaluation(rule, query, gallery, joined(outcomes), len(gallery), impostors=gathered)


def evaluate_rankings(
    chunks: Iterable[tuple[slice, Ranking]],
    query: Labels,
    gallery: Labels,
    *,
    rule: Rule = MARKET,
    impostors: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score rankings made elsewhere, of runs of queries in order; rows are places in the gallery, -1 for none.

    Where a ranking does not hold the whole gallery, only Rank-k is known. Queries that no run names are left out.
    """
    judge, gathered = Judge(rule, query, gallery), Histogram() if impostors else None
    outcomes: list[Outcomes] = []
    places: list[int] = []
    whole = True
    for queries, ranking in chunks:
        places += range(queries.start, queries.stop)
        outcomes.append(rank_order(ranking, judge, queries, impostors=gathered))
        whole = whole and ranking.rows.shape[1] == len(gallery) and bool((ranking.rows >= 0).all())
        progress(queries.stop, len(query))
    asked = query if len(places) == len(query) else query.take(np.array(places, np.intp))
    return Evaluation(rule, asked, gallery, joined(outcomes), len(gallery), whole=whole, impostors=gathered)


def joined_trials(trials: list[Evaluation]) -> Evaluation:
    """One evaluation of several trials of one gallery's labels, whose queries stand one trial after another."""
    first = trials[0]
    impostors = None
    if first.impostors is not None:
        impostors = Histogram()
        for trial in trials:
            assert trial.impostors is not None
            impostors.add(trial.impostors.counts)
    columns = ((label for trial in trials for label in getattr(trial.query, name)) for name in Labels.__slots__)
    return Evaluation(
        rule=first.rule,
        query=Labels(*map(list, columns)),
        gallery=first.gallery,
        outcomes=joined([trial.outcomes for trial in trials]),
        gallery_size=first.gallery_size,
        trials=len(trials),
        whole=first.whole,
        impostors=impostors,
    )
