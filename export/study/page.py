"""The page of a study: its table, and the curves of each variant's first run."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from reidserve.export.study import table
from reidserve.export.study.published import SOURCES, Published
from reidserve.export.study.results import Row
from reidserve.export.study.study import UNTRAINED, Study
from reidserve.export.train import Record, report


def write_page(path: Path, study: Study, rows: Sequence[Row]) -> None:
    """Write a study's page, whole or not at all, from its rows alone.

    Raises:
        OSError: it cannot be written.
    """
    source = SOURCES.get(study.name, "")
    titles = table.titles(study)
    report.write_study(
        path,
        report.Study(
            title=study.title,
            about=[table.about(rows)],
            measures=titles,
            published_measures=titles if source else (),
            source=source,
            rows=[
                report.Row(
                    variant=entry.name,
                    ours=entry.ours,
                    published=_published(entry.published, len(titles)) if source else (),
                    remark=entry.remark,
                )
                for entry in table.entries(study, rows)
            ],
            runs=_runs(study, rows),
        ),
    )


def _published(theirs: Published, count: int) -> list[str]:
    if not theirs.runs:
        return [theirs.words, *[""] * (count - 1)]
    return ["; ".join(cells) for cells in zip(*(run.split(" / ") for run in theirs.runs), strict=True)]


def _runs(study: Study, rows: Sequence[Row]) -> dict[str, list[Record]]:
    known = {field.name for field in fields(Record)} & {field.name for field in fields(Row)} - {"stage"}
    runs: dict[str, list[Record]] = {}
    for row in rows:
        if row.repeat == 1 and row.tested == study.logged and row.variant != UNTRAINED:
            record = Record(**{name: getattr(row, name) for name in known}, stage=row.stage or 1)
            runs.setdefault(row.variant, []).append(record)
    return runs
