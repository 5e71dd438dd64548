"""The gate: candidates and their reference on one dataset, the figures of each, and what is held against it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import Crop
from reidserve.embed import Embeddings, Precision
from reidserve.errors import EvaluationError
from reidserve.evaluate import (
    MARKET,
    CropEmbedder,
    Embedded,
    Evaluation,
    Labelled,
    Nearest,
    check_labels,
    digest_labels,
    embed_parts,
    evaluate,
    find_nearest,
    labels_of,
)
from reidserve.evaluate.comparison import bootstrap
from reidserve.evaluate.metrics import average_precisions
from reidserve.export.parity.bounds import DEFAULT_BOUNDS, Bounds, Change, judge
from reidserve.export.parity.record import Parity, Row

Progress = Callable[[int, int], None]
Parts = Mapping[str, Sequence[Crop]]

_TOP_K = 10
_ROWS_AT_ONCE = 4096
_DECIMALS, _COSINE_DECIMALS = 6, 8


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """Something that embeds crops, to be held to a reference, or that reference.

    Attributes:
        name: flavour and engine, such as "int8/openvino-cpu".
        precision: of the flavour, which says what bounds it must keep.
        embedder: its network on its engine.
    """

    name: str
    precision: Precision
    embedder: CropEmbedder


def measure(
    reference: Candidate,
    candidates: Sequence[Candidate],
    query: Sequence[Crop],
    gallery: Sequence[Crop],
    *,
    bounds: Mapping[Precision, Bounds] = DEFAULT_BOUNDS,
    samples: int = 10_000,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Parity:
    """Score each candidate against the reference by the rule of Market-1501, in its own gallery and the reference's.

    What the reference cannot embed is left out. Where no query has a pid, rankings alone are compared. Two candidates'
    embeddings are held at a time: the reference's and one other's.

    Raises:
        EvaluationError: no query can match, the reference embeds nothing, or a candidate has another dim or gives no
            embedding for an image that the reference embeds.
    """
    _check_asked([reference, *candidates], samples)
    stages = 1 + len(candidates)
    parts: Parts = {"query": query, "gallery": gallery}
    embedded, failures = _embed(reference, parts, _stage(0, stages, progress))
    readable = {part: found.crops for part, found in embedded.items()}
    bench = _Bench(reference, embedded, samples, seed)
    rows = [bench.row_of_reference()]
    for place, candidate in enumerate(candidates):
        found, lost = _embed(candidate, readable, _stage(1 + place, stages, progress))
        if lost:
            raise EvaluationError(
                f"{candidate.name} gives no embedding for {len(lost)} of the images that {reference.name} embeds, "
                f"first {lost[0][0]}: {lost[0][1]}"
            )
        rows += bench.rows_of(candidate, found, bounds[candidate.precision])
    return Parity(
        reference=reference.name,
        data=digest_labels({part: labels_of(crops) for part, crops in readable.items()}),
        queries=bench.queries,
        gallery=len(readable["gallery"]),
        identities=bench.identities,
        seed=seed,
        samples=samples,
        left_out=tuple(name.rpartition("/")[2] for name, _ in failures),
        rows=tuple(rows),
    )


def _check_asked(every: Sequence[Candidate], samples: int) -> None:
    names = [one.name for one in every]
    if len(set(names)) < len(names):
        raise EvaluationError(f"the reference and each candidate need a name of their own, got {', '.join(names)}")
    if samples < 1:
        raise EvaluationError(f"an interval needs at least 1 sample, got {samples}")


def _stage(place: int, stages: int, progress: Progress) -> Progress:
    """Progress of one model of several, all of which embed about as many images."""
    return lambda done, total: progress(place * total + done, stages * total)


def _embed(
    candidate: Candidate, parts: Parts, progress: Progress
) -> tuple[Mapping[str, Embedded], list[tuple[str, str]]]:
    try:
        return embed_parts(parts, candidate.embedder, progress=progress)
    except EvaluationError as error:
        raise EvaluationError(f"{candidate.name}: {error}") from error


class _Bench:
    """The reference's rankings, and how a candidate is compared with them.

    Attributes:
        queries: queries that figures are means over.
        identities: of these; 0 where no query has a pid.
    """

    def __init__(self, reference: Candidate, embedded: Mapping[str, Embedded], samples: int, seed: int) -> None:
        self._reference, self._samples, self._seed = reference, samples, seed
        self._query, self._gallery = (embedded[part].labelled for part in ("query", "gallery"))
        self._labelled = any(pid is not None for pid in self._query.labels.pids)
        if self._labelled:
            _check_matchable(self._query, self._gallery)
        self._nearest = find_nearest(self._query, self._gallery, top_k=_TOP_K)
        self._evaluation = self._evaluate(self._query, self._gallery)
        self._owners = np.empty(0, np.int64)
        self.queries, self.identities = len(self._query), 0
        if self._evaluation is not None:
            matchable = _matchable(self._evaluation)
            pids = [str(self._query.labels.pids[place]) for place in np.flatnonzero(matchable).tolist()]
            self._owners = np.unique(pids, return_inverse=True)[1].astype(np.int64)
            self.queries, self.identities = len(pids), len(set(pids))

    def row_of_reference(self) -> Row:
        """What the candidates are held to."""
        name, precision = self._reference.name, self._reference.precision
        return Row(
            engine=name,
            precision=precision,
            cosine_min=1.0,
            cosine_mean=1.0,
            top1=1.0,
            top10=1.0,
            **_figures(self._evaluation),
        )

    def rows_of(self, candidate: Candidate, embedded: Mapping[str, Embedded], bounds: Bounds) -> list[Row]:
        """A candidate in its own gallery, and its queries in the reference's."""
        query, gallery = (embedded[part].labelled for part in ("query", "gallery"))
        dims = [one.embeddings.shape[1] for one in (self._query, query)]
        if dims[0] != dims[1]:
            raise EvaluationError(
                f"{candidate.name} gives {dims[1]} dimensions, {self._reference.name} {dims[0]}: they are not of one "
                "network"
            )
        asked = _cosines(self._query.embeddings, query.embeddings)
        held = _cosines(self._gallery.embeddings, gallery.embeddings)
        return [
            self._row(candidate, query, gallery, np.concatenate([asked, held]), bounds, mixed=False),
            self._row(candidate, query, self._gallery, asked, bounds, mixed=True),
        ]

    def _row(
        self,
        candidate: Candidate,
        query: Labelled,
        gallery: Labelled,
        cosines: NDArray[np.float64],
        bounds: Bounds,
        *,
        mixed: bool,
    ) -> Row:
        evaluation = self._evaluate(query, gallery)
        nearest: Nearest = find_nearest(query, gallery, top_k=_TOP_K)
        change = self._change(evaluation)
        lowest, mean = (round(float(value), _COSINE_DECIMALS) for value in (cosines.min(), cosines.mean()))
        return Row(
            engine=candidate.name,
            precision=candidate.precision,
            mixed=mixed,
            cosine_min=lowest,
            cosine_mean=mean,
            top1=self._nearest.agreement(nearest, 1),
            top10=self._nearest.agreement(nearest, _TOP_K),
            change=None if change is None else change.points,
            low=None if change is None else change.low,
            high=None if change is None else change.high,
            bound=None if change is None else bounds.points,
            floor=bounds.cosine,
            refused="; ".join(judge(bounds, cosine=lowest, change=change)) or None,
            **_figures(evaluation),
        )

    def _evaluate(self, query: Labelled, gallery: Labelled) -> Evaluation | None:
        return evaluate(query, gallery, rule=MARKET) if self._labelled else None

    def _change(self, evaluation: Evaluation | None) -> Change | None:
        """The change of mAP, paired by query; identities are drawn, since queries of one are not independent."""
        if evaluation is None or self._evaluation is None:
            return None
        before, after = (_precisions(one) for one in (self._evaluation, evaluation))
        low, high = bootstrap(after - before, self._owners, samples=self._samples, seed=self._seed)
        points, low, high = (round(100 * share, _DECIMALS) for share in (float((after - before).mean()), low, high))
        return Change(points, low, high, self.identities)


def _check_matchable(query: Labelled, gallery: Labelled) -> None:
    found = check_labels(query.labels, gallery.labels, MARKET)
    if sum(map(len, found.unmatchable.values())) == found.queries:
        raise EvaluationError(
            f"none of {found.queries} queries has a right entry in the gallery of {len(gallery)}: "
            f"{'; '.join(found.lines())}. Are query and gallery of the same identities, and are the camids right?"
        )


def _matchable(evaluation: Evaluation) -> NDArray[np.bool_]:
    return evaluation.outcomes.found > 0


def _precisions(evaluation: Evaluation) -> NDArray[np.float64]:
    """The average precision of each query that has a right entry."""
    return average_precisions(evaluation.outcomes, "hits")[_matchable(evaluation)]


class _Figures(TypedDict, total=False):
    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mINP: float


def _figures(evaluation: Evaluation | None) -> _Figures:
    if evaluation is None:
        return {}
    found = evaluation.metrics
    return {
        "rank1": found.rank(1),
        "rank5": found.rank(5),
        "rank10": found.rank(10),
        "mAP": found.mAP,
        "mINP": found.mINP,
    }


def _cosines(one: Embeddings, other: Embeddings) -> NDArray[np.float64]:
    """The cosine of each row of (N, dim) with its fellow; float32 rows are of unit length to four digits only."""
    cosines = np.empty(len(one))
    for start in range(0, len(one), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        a, b = one[some].astype(np.float64), other[some].astype(np.float64)
        cosines[some] = np.vecdot(a, b) / np.sqrt(np.vecdot(a, a) * np.vecdot(b, b))
    return cosines
