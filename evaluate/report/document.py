"""The document of a report: all its figures as JSON, so that two reports can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Literal

import msgspec

from reidserve.datasets import path_to_text
from reidserve.errors import EvaluationError
from reidserve.evaluate.breakdown import CameraPair, Confusion, camera_pairs, confusions
from reidserve.evaluate.evaluation import Evaluation
from reidserve.evaluate.metrics import MAX_RANK, Metrics, average_precisions, first_ranks
from reidserve.evaluate.openset import OpenSet, open_set
from reidserve.evaluate.rule import Rule

DOCUMENT_FILE = "report.json"

_MOST_CONFUSIONS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Something that was scored.

    Attributes:
        name: which stage it is, and what else was done, such as "artifact, re-ranked".
        facts: what is known of it, such as identity, engine, index and generation.
        evaluation: how it fared.
    """

    name: str
    facts: Mapping[str, str]
    evaluation: Evaluation


class Figures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The metrics of a subject, shares of 1; None where they are not known.

    Attributes:
        cmc: share of queries with a right entry among the best 1, 2, ...
        mAP: mean average precision by the formula `hits`.
        mAP_trapezoid: the same by `trapezoid`.
        mAP_step: the same by `step`.
        mINP: mean inverse negative penalty.
        queries: queries that the means are over.
        unmatchable: queries that have no right entry.
        positives: right entries, over all queries.
    """

    cmc: tuple[float, ...]
    mAP: float | None
    mAP_trapezoid: float | None
    mAP_step: float | None
    mINP: float | None
    queries: int
    unmatchable: int
    positives: int

    def rank(self, k: int) -> float | None:
        """Rank-k; None beyond the curve's end."""
        return self.cmc[k - 1] if k <= len(self.cmc) else None


class QueryFigures(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a query fared that the means are over; an array in JSON, one stands there for each query.

    Attributes:
        source: what it was embedded from, below the folder that all queries lie in; where unknown, "#" and its place,
            from 0.
        trial: which trial it belongs to, from 1.
        pid: its identity; None where unknown.
        average_precision: by the formula `hits`; None where rankings were cut short.
        first: the rank of its best right entry; None where none was found.
    """

    source: str
    trial: int
    pid: str | None
    average_precision: float | None
    first: int | None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A subject as a document holds it.

    Attributes:
        name: which stage it is, and what else was done.
        facts: what is known of it.
        whole: whether the whole gallery was ranked, without which there is no mAP.
        trials: in how many trials the gallery was drawn; 1 where it was not.
        gallery: entries that were ranked for a query, before the rule.
        figures: its metrics.
        open_set: operating points; None where impostor scores were not gathered.
        cameras: how each query camera fares against each gallery camera.
        confusions: identities taken for others, most queries first; the first few.
        queries: each query that the means are over.
    """

    name: str
    facts: Mapping[str, str]
    whole: bool
    trials: int
    gallery: int
    figures: Figures
    open_set: OpenSet | None
    cameras: tuple[CameraPair, ...]
    confusions: tuple[Confusion, ...]
    queries: tuple[QueryFigures, ...]


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All figures of a report.

    Attributes:
        format: version of this structure.
        written: when, such as 2026-02-03T04:05:06Z.
        dataset: its name, for people.
        layout: how its files are arranged.
        protocol: how queries and gallery were chosen.
        rule: which entries counted.
        counts: how many of what, such as queries, gallery, identities, cameras.
        findings: what labels alone say, a sentence each.
        subjects: what was scored.
        versions: of the packages that took part.
        digests: sha256 of what was read, by name.
        seeds: of all that was drawn, by what it was.
    """

    format: Literal[1] = 1
    written: str
    dataset: str
    layout: str
    protocol: str
    rule: Rule
    counts: Mapping[str, int]
    findings: tuple[str, ...] = ()
    subjects: tuple[Record, ...]
    versions: Mapping[str, str] = {}
    digests: Mapping[str, str] = {}
    seeds: Mapping[str, int] = {}


def record(subject: Subject, *, max_rank: int = MAX_RANK) -> Record:
    """A subject's figures, with its CMC to `max_rank`."""
    evaluation = subject.evaluation
    return Record(
        name=subject.name,
        facts=dict(subject.facts),
        whole=evaluation.whole,
        trials=evaluation.trials,
        gallery=evaluation.gallery_size,
        figures=_figures(evaluation.summary(max_rank=max_rank)),
        open_set=open_set(evaluation) if evaluation.whole and evaluation.impostors is not None else None,
        cameras=tuple(camera_pairs(evaluation)),
        confusions=tuple(confusions(evaluation)[:_MOST_CONFUSIONS]),
        queries=tuple(_queries(evaluation)),
    )


def encode_document(document: Document) -> bytes:
    """The document as JSON, on one line: it holds a row for each query."""
    return msgspec.json.encode(document) + b"\n"


def read_document(path: Path) -> Document:
    """Read the report.json of a report strictly; `path` is the file or its folder.

    Raises:
        EvaluationError: there is none, or it is none of this format.
        OSError: it cannot be read.
    """
    file = path / DOCUMENT_FILE if path.is_dir() else path
    name = path_to_text(file)
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise EvaluationError(f"expected a report's {DOCUMENT_FILE}, there is no {name}") from error
    try:
        return msgspec.json.decode(data, type=Document)
    except msgspec.DecodeError as error:
        raise EvaluationError(f"{name} is no report that this version can read: {error}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{name} is no report: its text is not UTF-8") from error


def _figures(metrics: Metrics) -> Figures:
    return Figures(
        cmc=tuple(metrics.cmc),
        mAP=_known(metrics.mAP),
        mAP_trapezoid=_known(metrics.mAP_trapezoid),
        mAP_step=_known(metrics.mAP_step),
        mINP=_known(metrics.mINP),
        queries=metrics.queries,
        unmatchable=metrics.unmatchable,
        positives=metrics.positives,
    )


def _queries(evaluation: Evaluation) -> Sequence[QueryFigures]:
    outcomes, query = evaluation.outcomes, evaluation.query
    counted = (outcomes.found + outcomes.missing > 0) | (evaluation.rule.queries == "all")
    precisions = average_precisions(outcomes, "hits").tolist()
    firsts, found = first_ranks(outcomes).tolist(), outcomes.found.tolist()
    size = max(1, len(outcomes) // evaluation.trials)
    names = query.names()
    return [
        QueryFigures(
            f"#{place % size}" if (name := names[place]) is None else name,
            1 + place // size,
            query.pids[place],
            precisions[place] if evaluation.whole else None,
            int(firsts[place]) if found[place] else None,
        )
        for place in counted.nonzero()[0].tolist()
    ]


def _known(value: float) -> float | None:
    return None if isnan(value) else value
