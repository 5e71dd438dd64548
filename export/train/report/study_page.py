"""The page of a study: its table beside what others published, and the curves of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reidserve.evaluate.report.canvas import draw_svg
from reidserve.evaluate.report.template import fill
from reidserve.export.files import write_whole
from reidserve.export.train.record import Record
from reidserve.export.train.report.curves import comparison_panels


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant in the table of a study, its figures as they are to be read.

    Attributes:
        variant: its name.
        changes: what differs from the control, such as "head.temperature=0.05".
        ours: a figure for each of the study's measures, such as "71.2 ± 0.8"; "" where there is none.
        published: a figure for each of the study's published measures; "" where there is none.
        remark: what is to be said of it, such as where it disagrees with the published trend.
    """

    variant: str
    changes: Sequence[str] = ()
    ours: Sequence[str]
    published: Sequence[str] = ()
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study as a page shows it.

    Attributes:
        title: its name in words.
        about: what is asked, and what is done, a paragraph each.
        measures: the columns of our figures, such as "Rank-1, %".
        published_measures: the columns of the published figures.
        source: whose the published figures are, and of what network and data; shown with them.
        rows: the variants, in their order.
        runs: the records of each run by its name.
        notes: what limits it, a sentence each.
        facts: where it comes from: data, scale, seeds, versions.
    """

    title: str
    about: Sequence[str]
    measures: Sequence[str]
    published_measures: Sequence[str] = ()
    source: str = ""
    rows: Sequence[Row]
    runs: Mapping[str, Sequence[Record]]
    notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_study(path: Path, study: Study) -> None:
    """Write the page of a study, whole or not at all; it needs nothing else.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(path, render_study(study).encode())


def render_study(study: Study) -> str:
    """The page as HTML; all that is not ours is escaped."""
    figures = [(panel.title, draw_svg(panel)) for panel in comparison_panels(study.runs)] if study.runs else []
    return fill("reidserve.export.train.report", "study.html.jinja", study=study, figures=figures)
