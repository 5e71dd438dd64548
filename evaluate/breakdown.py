"""Where it hurts: which cameras, which queries, which identities."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.evaluate.evaluation import Evaluation
from reidserve.evaluate.metrics import average_precisions, first_ranks
from reidserve.evaluate.outcomes import NOBODY


@dataclass(frozen=True, slots=True)
class CameraPair:
    """How queries of one camera find what another camera has seen.

    Right entries of this gallery camera alone are right; those of others are left out of the ranking.

    Attributes:
        query_camid: camera of the queries; None where unknown.
        gallery_camid: camera of the right entries; None where unknown.
        queries: how many queries of that camera have right entries of that camera.
        rank1: share of these whose best entry is right.
        mAP: mean average precision over these.
    """

    query_camid: str | None
    gallery_camid: str | None
    queries: int
    rank1: float
    mAP: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """An identity that is taken for another one.

    Attributes:
        pid: identity of the queries.
        taken_for: identity of their best entry, which is wrong; None where unknown.
        queries: how many queries of `pid` this happens to.
        of: how many queries of `pid` have a right entry.
    """

    pid: str
    taken_for: str | None
    queries: int
    of: int


def camera_pairs(evaluation: Evaluation) -> list[CameraPair]:
    """How each query camera fares against each gallery camera, ordered by both; none where rankings were cut short.

    A right entry's rank among those that are left is its rank less the right entries of other cameras above it.
    """
    outcomes = evaluation.outcomes
    if not evaluation.whole or not len(outcomes.rows):
        return []
    query_names, of_query = _coded(evaluation.query.camids)
    names, of_gallery = _coded(evaluation.gallery.camids)
    owners = np.repeat(np.arange(len(outcomes)), outcomes.found)
    places = np.arange(len(owners)) - outcomes.starts[owners] + 1
    groups = owners * len(names) + of_gallery[outcomes.rows]
    keys, firsts, precisions = _answered(groups, outcomes.ranks, places)
    pairs = of_query[keys // len(names)] * len(names) + keys % len(names)
    queries = np.bincount(pairs)
    rank1, totals = np.bincount(pairs, firsts), np.bincount(pairs, precisions)
    return [
        CameraPair(
            query_camid=query_names[pair // len(names)],
            gallery_camid=names[pair % len(names)],
            queries=int(queries[pair]),
            rank1=float(rank1[pair] / queries[pair]),
            mAP=float(totals[pair] / queries[pair]),
        )
        for pair in np.flatnonzero(queries).tolist()
    ]


def _answered(
    groups: NDArray[np.int64], ranks: NDArray[np.int64], places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Each group of right entries (n,), whether its best is at rank 1 once others are left out, and its precision.

    `places` are 1, 2, ... for all right entries of a query, best first.
    """
    # Stable: within a group, best first.
    order = np.argsort(groups, kind="stable")
    keys, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    within = np.arange(len(order)) - np.repeat(starts, sizes) + 1
    left = ranks[order] - (places[order] - within)
    return keys, left[starts] == 1, np.add.reduceat(within / left, starts) / sizes


def confusions(evaluation: Evaluation) -> list[Confusion]:
    """Which identities' queries have a wrong best entry, and whose it is; most queries first, then by name."""
    outcomes, pids = evaluation.outcomes, evaluation.query.pids
    matchable = np.flatnonzero(outcomes.found + outcomes.missing > 0).tolist()
    of = Counter(pids[query] for query in matchable)
    astray = (outcomes.wrong != NOBODY) & (first_ranks(outcomes) > 1)
    taken = Counter(
        (pids[query], evaluation.gallery.pids[outcomes.wrong[query]]) for query in matchable if astray[query]
    )
    found = [Confusion(pid, other, count, of[pid]) for (pid, other), count in taken.items() if pid is not None]
    return sorted(found, key=lambda one: (-one.queries, one.pid, one.taken_for or ""))


def best_first(evaluation: Evaluation) -> list[int]:
    """The queries that have a right entry, from the best average precision to the worst.

    Of rankings that were cut short, from the best first right rank to the worst. Equal ones stand in their order.
    """
    outcomes = evaluation.outcomes
    badness = -average_precisions(outcomes, "hits") if evaluation.whole else first_ranks(outcomes)
    matchable = np.flatnonzero(outcomes.found + outcomes.missing > 0)
    order: list[int] = matchable[np.argsort(badness[matchable], kind="stable")].tolist()
    return order


def camera_order(camid: str | None) -> tuple[bool, int, str]:
    """What cameras are sorted by: c2 stands before c10, and an unknown one last."""
    return camid is None, len(camid or ""), camid or ""


def _coded(camids: Sequence[str | None]) -> tuple[list[str | None], NDArray[np.int64]]:
    """The cameras in their order, and the place of each image's among them."""
    names = sorted(set(camids), key=camera_order)
    codes = {camid: code for code, camid in enumerate(names)}
    return names, np.array([codes[camid] for camid in camids], np.int64)
