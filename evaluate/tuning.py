"""Tuning: what an approximate index costs in recall, Rank@k and mAP, on the gallery's own labels."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from reidserve.datasets import JUNK
from reidserve.errors import EvaluationError
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
        rank1: share of queries whose best entry that counts is right, by the rule of Market-1501.
        rank5: share with a right entry among the best 5 that count.
        rank10: share with a right entry among the best 10 that count.
        mAP: mean over queries of the precision at each right entry among the `top_k` best, over all right
            entries of the gallery: those beyond `top_k` count as not found, for every kind alike.
        query_ms: median wall-clock time of one query alone, milliseconds.
    """

    kind: str
    queries: int
    recall1: float
    recall10: float
    recall: float
    rank1: float
    rank5: float
    rank10: float
    mAP: float
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

    Raises:
        EvaluationError: no entry has a right one from another camera, or no query is asked for.
        QueryError: `top_k` is not 1 to MAX_TOP_K.
    """
    if queries < 1:
        raise EvaluationError(f"at least one query is needed, got {queries}")
    exact = snapshots["flat"]
    entries = list(exact.entries())
    rule = _Rule(entries)
    judged = [entry for entry in entries if rule.right(entry)]
    if not judged:
        raise EvaluationError(
            "no entry of the gallery has another one of its pid from another camera: labels are needed"
        )
    chosen = np.random.default_rng(seed).permutation(len(judged))[:queries]
    sample = [judged[place] for place in sorted(chosen.tolist())]
    rows = np.array([exact.row(entry.id) for entry in sample])
    reference: Ranking | None = None
    reports = []
    for done, (kind, snapshot) in enumerate(sorted(snapshots.items(), key=lambda item: item[0] != "flat")):
        progress(done, len(snapshots))
        ranking = _rank(snapshot, rows, top_k)
        reference = ranking if reference is None else reference
        hits = [[hit.entry for hit in found] for found in snapshot.hits(ranking)]
        scores = [rule.score(entry, found) for entry, found in zip(sample, hits, strict=True)]
        firsts = np.array([first for first, _ in scores])
        reports.append(
            KindReport(
                kind=kind,
                queries=len(sample),
                recall1=_recall(reference, ranking, 1),
                recall10=_recall(reference, ranking, 10),
                recall=_recall(reference, ranking, top_k),
                rank1=float(np.mean(firsts <= 1)),
                rank5=float(np.mean(firsts <= 5)),
                rank10=float(np.mean(firsts <= 10)),
                mAP=float(np.mean([precision for _, precision in scores])),
                query_ms=_query_ms(snapshot, rows[:_TIMED], top_k),
            )
        )
    return reports


class _Rule:
    """The rule of Market-1501 (Zheng et al., 2015) within one gallery: a query's camera does not count for its pid."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._pids = Counter(entry.pid for entry in entries)
        self._pairs = Counter((entry.pid, entry.camid) for entry in entries)

    def right(self, query: Entry) -> int:
        """How many right entries a query has."""
        if query.pid is None or query.pid == JUNK:
            return 0
        # Of an unknown camera, a query only leaves itself out.
        same = 1 if query.camid is None else self._pairs[query.pid, query.camid]
        return self._pids[query.pid] - same

    def score(self, query: Entry, found: Sequence[Entry]) -> tuple[float, float]:
        """The rank of the first right entry (inf where none was found) and the average precision."""
        counted = [
            entry
            for entry in found
            if entry.pid != JUNK and not (entry.pid == query.pid and entry.camid == query.camid is not None)
        ]
        ranks = np.flatnonzero([entry.pid == query.pid for entry in counted]) + 1
        if not len(ranks):
            return np.inf, 0.0
        return float(ranks[0]), float((np.arange(1, len(ranks) + 1) / ranks).sum() / self.right(query))


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
