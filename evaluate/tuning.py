"""Tuning: what an approximate index costs in recall and Rank@k, on the gallery's own labels."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median

import numpy as np

from reidserve.datasets import JUNK, is_distractor
from reidserve.errors import EvaluationError
from reidserve.evaluate.deployed import placed
from reidserve.evaluate.evaluation import evaluate_rankings
from reidserve.evaluate.labelled import Labels
from reidserve.index import Entry, Ranking, Snapshot
from reidserve.index.search.ranking import Rows

_TIMED = 50
_BATCH = 64


@dataclass(frozen=True, slots=True)
class KindReport:
    """How one kind of index ranks a gallery's own entries, each left out of its own hits.

    Attributes:
        kind: "flat" is exact, and what the others are compared with.
        queries: entries that were searched for.
        recall1: share of queries whose best entry is the exact one.
        recall10: share of the exact 10 best that were found among the 10 best.
        recall: the same for the `top_k` best.
        rank1: Rank-1 by the rule of Market-1501; None where some query's `top_k` best hold no entry that counts.
        rank5: Rank-5; None where they hold fewer than five.
        rank10: Rank-10; None where they hold fewer than ten.
        query_ms: median wall-clock time of one query alone, milliseconds.
    """

    kind: str
    queries: int
    recall1: float
    recall10: float
    recall: float
    rank1: float | None
    rank5: float | None
    rank10: float | None
    query_ms: float


def tune(
    snapshots: Mapping[str, Snapshot],
    *,
    queries: int = 1000,
    top_k: int = 50,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[KindReport]:
    """Rank a sample of a gallery's entries with each of `snapshots`: of one generation, by kind, "flat" among them.

    There is no mAP: it needs every rank, of which the `top_k` best are a part. See evaluate/deployed.py for one.

    Raises:
        EvaluationError: no entry has a right one from another camera, or no query is asked for.
        QueryError: `top_k` is not 1 to MAX_TOP_K.
    """
    if queries < 1:
        raise EvaluationError(f"at least one query is needed, got {queries}")
    exact = snapshots["flat"]
    entries = list(exact.entries())
    places = _matchable(entries)
    if not places:
        raise EvaluationError(
            "no entry of the gallery has another one of its pid from another camera: labels are needed"
        )
    chosen = np.random.default_rng(seed).permutation(len(places))[:queries]
    sample = [entries[places[place]] for place in sorted(chosen.tolist())]
    rows = np.array([exact.row(entry.id) for entry in sample])
    asked, held, live = _labels(sample), _labels(entries), exact.rows()
    reference: Ranking | None = None
    reports = []
    for done, (kind, snapshot) in enumerate(sorted(snapshots.items(), key=lambda item: item[0] != "flat")):
        progress(done, len(snapshots))
        ranking = _rank(snapshot, rows, top_k)
        reference = ranking if reference is None else reference
        found = evaluate_rankings([(slice(0, len(sample)), placed(ranking, live))], asked, held).metrics
        reports.append(
            KindReport(
                kind=kind,
                queries=len(sample),
                recall1=_recall(reference, ranking, 1),
                recall10=_recall(reference, ranking, 10),
                recall=_recall(reference, ranking, top_k),
                rank1=_known(found.rank1),
                rank5=_known(found.rank(5)),
                rank10=_known(found.rank(10)),
                query_ms=_query_ms(snapshot, rows[:_TIMED], top_k),
            )
        )
    return reports


def _matchable(entries: Sequence[Entry]) -> list[int]:
    """Which entries have a right one. Counted: where many have one pid, their pairs are too many to write out."""
    pids = Counter(entry.pid for entry in entries)
    cameras = Counter((entry.pid, entry.camid) for entry in entries)
    return [
        place
        for place, entry in enumerate(entries)
        if entry.pid is not None
        and entry.pid != JUNK
        and not is_distractor(entry.pid)
        # Of an unknown camera, an entry only leaves itself out.
        and pids[entry.pid] > (1 if entry.camid is None else cameras[entry.pid, entry.camid])
    ]


def _labels(entries: Sequence[Entry]) -> Labels:
    """Labels by which an entry leaves itself out, and no other of its file."""
    return Labels(*([getattr(entry, name) for entry in entries] for name in ("pid", "camid", "id")))


def _known(share: float) -> float | None:
    return None if isnan(share) else share


def _rank(snapshot: Snapshot, rows: Rows, top_k: int) -> Ranking:
    parts = []
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        queries = np.stack([snapshot.vector(row) for row in some.tolist()])
        parts.append(snapshot.search(queries, top_k=top_k, left_out=some))
    return Ranking(np.concatenate([part.scores for part in parts]), np.concatenate([part.rows for part in parts]))


def _recall(exact: Ranking, found: Ranking, top_k: int) -> float:
    """Scores are compared, so that of equally good rows any counts."""
    depth = min(top_k, exact.scores.shape[1])
    kth = exact.scores[:, depth - 1 : depth]
    wanted = np.maximum((exact.scores[:, :depth] > -np.inf).sum(axis=1), 1)
    got = ((found.scores[:, :depth] >= kth) & (found.scores[:, :depth] > -np.inf)).sum(axis=1)
    return float(np.mean(np.minimum(got / wanted, 1)))


def _query_ms(snapshot: Snapshot, rows: Rows, top_k: int) -> float:
    times = []
    for row in rows.tolist():
        query = snapshot.vector(row)[np.newaxis]
        start = time.perf_counter()
        snapshot.search(query, top_k=top_k, left_out=np.array([row]))
        times.append(time.perf_counter() - start)
    return 1000 * median(times)
