"""The record of a gate: all its figures, as an artifact keeps them in parity.json."""

from typing import Literal

import msgspec

from reidserve.embed import Check, Precision
from reidserve.errors import EvaluationError


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candidate against the reference; of the reference itself, what the others are held to.

    Attributes:
        engine: flavour and engine, such as "int8/openvino-cpu".
        precision: of the flavour.
        mixed: whether its queries searched the reference's gallery, not its own.
        cosine_min: the smallest cosine of an image's two embeddings, over what the candidate embedded here.
        cosine_mean: their mean.
        rank1: share of queries whose best entry is right; None where there were no labels, as all to mINP.
        rank5: share of queries with a right entry among the best 5.
        rank10: among the best 10.
        mAP: mean average precision, 0..1.
        mINP: mean inverse negative penalty, 0..1.
        top1: share of all queries whose best entry, right or wrong, is the reference's.
        top10: share of the reference's 10 best entries that are among the candidate's.
        change: of mAP, in points (0..100).
        low: lower end of the change's 95 % interval, in points.
        high: upper end of it.
        bound: points of mAP that could be lost.
        floor: the least cosine that was asked.
        refused: why it does not pass; None where it does.
    """

    engine: str
    precision: Precision
    mixed: bool = False
    cosine_min: float
    cosine_mean: float
    rank1: float | None = None
    rank5: float | None = None
    rank10: float | None = None
    mAP: float | None = None  # noqa: N815  # the field's name
    mINP: float | None = None  # noqa: N815  # the field's name
    top1: float
    top10: float
    change: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    floor: float | None = None
    refused: str | None = None


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the rank-parity gate measured on one dataset.

    Attributes:
        format: version of this structure.
        reference: name of the row that all others are held to, the first.
        data: sha256 of the labels and file names that were scored.
        queries: queries that figures are means over; of all images, where there were no labels.
        gallery: entries that they searched.
        identities: of these queries; 0 where there were no labels.
        seed: of the draws of the intervals.
        samples: how often identities were drawn.
        left_out: names of files that could not be embedded by the reference, and took no part.
        rows: the reference, and of each candidate one of its own and a mixed one.
    """

    format: Literal[1] = 1
    reference: str
    data: str
    queries: int
    gallery: int
    identities: int
    seed: int
    samples: int
    left_out: tuple[str, ...] = ()
    rows: tuple[Row, ...]

    @property
    def labelled(self) -> bool:
        """Whether right and wrong were known; else rankings alone were compared."""
        return self.identities > 0

    def refusals(self) -> list[str]:
        """Which rows do not pass, and why, a line each."""
        return [f"{self.name(row)}: {row.refused}" for row in self.rows if row.refused is not None]

    def name(self, row: Row) -> str:
        """A row's name for people."""
        return f"{row.engine} on the gallery of {self.reference}" if row.mixed else row.engine

    def check(self, engine: str) -> Check:
        """What a contract keeps of an engine: its own row, where queries and gallery are of one flavour.

        Raises:
            EvaluationError: it was not measured.
        """
        own = {row.engine: row for row in self.rows if not row.mixed}
        if engine not in own:
            raise EvaluationError(f"the parity of {engine} was not measured, only that of {', '.join(own)}")
        row = own[engine]
        return Check(
            engine=engine,
            data=self.data,
            queries=self.queries,
            cosine=row.cosine_min,
            change=row.change,
            low=row.low,
            high=row.high,
            bound=row.bound,
        )
