"""CMC, mAP and mINP from the ranks of the right answers, and nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from reidserve.errors import EvaluationError
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.positives import Positives, rank_positives

PROTOCOL = "market1501"


@dataclass(frozen=True, slots=True)
class Report:
    """How well a model ranks, by the rule of Market-1501.

    Attributes:
        protocol: the rule.
        rank1: share of queries whose best entry is right (CMC at 1).
        rank5: share of queries with a right entry among the best 5.
        rank10: share of queries with a right entry among the best 10.
        mAP: mean over queries of the mean precision at each right entry (as torchreid, fast-reid and
            strong-baseline compute it; the original Market-1501 code takes trapezoids).
        mINP: mean over queries of positives / rank of the last one (Ye et al., 2021, "AGW").
        queries: queries that were scored.
        unmatchable: queries left out of the means because the gallery holds no right entry for them.
        gallery: gallery entries.
        positives: right entries, over all queries.
    """

    protocol: str
    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mINP: float
    queries: int
    unmatchable: int
    gallery: int
    positives: int


def average_precision(positives: Positives) -> float:
    """The mean precision at each right entry: mean of j / rank of the j-th."""
    return float(np.mean(np.arange(1, len(positives.ranks) + 1) / positives.ranks))


def inverse_negative_penalty(positives: Positives) -> float:
    """Positives / rank of the last one (Ye et al., 2021)."""
    return len(positives.ranks) / int(positives.ranks[-1])


def evaluate(query: Labelled, gallery: Labelled) -> Report:
    """Score a gallery's ranking for every query.

    Raises:
        EvaluationError: a query without a pid, or no query that has a right entry in the gallery.
    """
    unlabelled = sum(pid is None for pid in query.pids)
    if unlabelled:
        raise EvaluationError(f"{unlabelled} of {len(query)} queries have no pid: say what names mean with --pattern")
    return _summarise(rank_positives(query, gallery), gallery)


def _summarise(positives: Iterable[Positives], gallery: Labelled) -> Report:
    every = list(positives)
    scored = [one for one in every if len(one.ranks)]
    if not scored:
        raise EvaluationError(
            f"none of {len(every)} queries has a right entry in the gallery of {len(gallery)} from another camera: "
            "are query and gallery of the same identities, and are the camids right?"
        )
    first = np.array([one.ranks[0] for one in scored])
    return Report(
        protocol=PROTOCOL,
        rank1=float(np.mean(first <= 1)),
        rank5=float(np.mean(first <= 5)),
        rank10=float(np.mean(first <= 10)),
        mAP=float(np.mean([average_precision(one) for one in scored])),
        mINP=float(np.mean([inverse_negative_penalty(one) for one in scored])),
        queries=len(scored),
        unmatchable=len(every) - len(scored),
        gallery=len(gallery),
        positives=sum(len(one.ranks) for one in scored),
    )
