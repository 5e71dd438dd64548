"""Shown: queries worth looking at, each with its best gallery entries as they were ranked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reidserve.errors import EvaluationError
from reidserve.evaluate.breakdown import best_first
from reidserve.evaluate.evaluation import Evaluation
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.metrics import average_precisions, first_ranks
from reidserve.evaluate.rule import Judge
from reidserve.index.search.ranking import Scores

Verdict = Literal["right", "wrong", "dropped"]
Group = Literal["best", "median", "worst"]

_MOST_DROPPED = 5


@dataclass(frozen=True, slots=True)
class ShownHit:
    """A gallery entry as a query found it.

    Attributes:
        source: what it was embedded from; None where unknown.
        pid: its identity; None where unknown.
        camid: its camera; None where unknown.
        score: cosine, higher is better.
        verdict: what the rule says of it; what is dropped takes no rank.
    """

    source: str | None
    pid: str | None
    camid: str | None
    score: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Shown:
    """A query and its best entries.

    Attributes:
        source: what the query was embedded from; None where unknown.
        pid: its identity.
        camid: its camera; None where unknown.
        average_precision: by the formula `hits`.
        first: the rank of its best right entry.
        hits: its best entries, best first, those that were dropped in between.
        dropped: dropped entries above the last hit, of which `hits` holds the first few.
    """

    source: str | None
    pid: str | None
    camid: str | None
    average_precision: float
    first: int
    hits: Sequence[ShownHit]
    dropped: int


def choose_spread(evaluation: Evaluation, count: int) -> list[int]:
    """Places of queries, spread evenly from the best average precision to the worst."""
    ordered = best_first(evaluation)
    steps = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return [ordered[round(step)] for step in steps]


def choose_groups(evaluation: Evaluation, each: int) -> dict[Group, list[int]]:
    """Places of the best, the median and the worst queries, so many of each; none stands in two groups."""
    ordered = best_first(evaluation)
    each = min(each, -(-len(ordered) // 3))
    start = max(each, (len(ordered) - each) // 2)
    return {
        "best": ordered[:each],
        "median": ordered[start : start + each],
        "worst": ordered[max(start + each, len(ordered) - each) :][::-1],
    }


def show(
    evaluation: Evaluation, query: Labelled, gallery: Labelled, places: Sequence[int], *, top_k: int = 10
) -> list[Shown]:
    """The queries at some places of an evaluation of these embeddings, each with its `top_k` best entries that count.

    The query's own image, which the rule drops, is not shown.

    Raises:
        EvaluationError: the evaluation is not one of these embeddings, ranked whole.
    """
    asked = (len(query), len(gallery), len(gallery))
    if (len(evaluation.query), len(evaluation.gallery), evaluation.gallery_size) != asked or not evaluation.whole:
        raise EvaluationError(
            f"expected an evaluation of {len(query)} queries against all of {len(gallery)} entries, got "
            f"{len(evaluation.query)} against {evaluation.gallery_size} in {evaluation.trials} trials"
        )
    judge = Judge(evaluation.rule, query.labels, gallery.labels)
    precisions, firsts = average_precisions(evaluation.outcomes, "hits"), first_ranks(evaluation.outcomes)
    shown = []
    for place in places:
        scores = np.vecdot(gallery.embeddings, query.embeddings[place])
        hits, dropped = _best(scores, judge, query, gallery, place, top_k)
        source, pid, camid = (part[place] for part in (query.labels.sources, query.labels.pids, query.labels.camids))
        shown.append(Shown(source, pid, camid, float(precisions[place]), int(firsts[place]), hits, dropped))
    return shown


def _best(
    scores: Scores, judge: Judge, query: Labelled, gallery: Labelled, place: int, top_k: int
) -> tuple[list[ShownHit], int]:
    """A query's best entries, and how many dropped ones stand above the last of them."""
    verdicts: list[Verdict] = ["wrong"] * len(scores)
    own = query.labels.sources[place]
    right, dropped = judge.right(slice(place, place + 1)).rows, judge.dropped(slice(place, place + 1)).rows
    for row in right.tolist():
        verdicts[row] = "right"
    for row in (*judge.never.tolist(), *dropped.tolist()):
        verdicts[row] = "dropped"
    hits: list[ShownHit] = []
    left, aside = top_k, 0
    for row in np.argsort(-scores, kind="stable").tolist():
        labels = gallery.labels
        if left == 0:
            break
        if own is not None and labels.sources[row] == own:
            continue
        aside += verdicts[row] == "dropped"
        left -= verdicts[row] != "dropped"
        if verdicts[row] != "dropped" or aside <= _MOST_DROPPED:
            hits.append(
                ShownHit(labels.sources[row], labels.pids[row], labels.camids[row], float(scores[row]), verdicts[row])
            )
    return hits, aside
