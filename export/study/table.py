"""The table of a study: our figures with their spread, the authors' beside them, and whether both go the same way."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reidserve.export.study.published import PUBLISHED, SOURCES, Published
from reidserve.export.study.results import Row, of_line
from reidserve.export.study.study import UNTRAINED, Line, Study, Tested

_TITLES = {
    "mAP": "mAP",
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "loss": "training loss",
    "accuracy": "training accuracy",
    "val_loss": "held-out loss",
    "val_accuracy": "held-out accuracy",
    "test_accuracy": "test accuracy",
    "frozen": "frozen",
    "parameters": "parameters",
}
_LOSSES, _COUNTS = ("loss", "val_loss"), ("frozen", "parameters")
_WHERE: Mapping[Tested, str] = {"ordinary": "", "swapped": ", test swapped", "other": ", test on the other"}
_EPOCH_FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy", "rank1", "rank5", "rank10", "mAP")


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a study's table, as it is to be read.

    Attributes:
        name: of the line.
        ours: a text for each figure.
        published: the authors' figures or words; empty for none.
        remark: whether ours and theirs go the same way; "" where there is nothing to compare.
    """

    name: str
    ours: tuple[str, ...]
    published: Published
    remark: str


def entries(study: Study, rows: Sequence[Row]) -> list[Entry]:
    """The lines of a study's table: what the network was before training, then the control and what differs."""
    found = [
        Entry(f"untrained{_WHERE[tested]}", _texts(study, drawn), Published(), "")
        for tested in study.tests
        if (drawn := of_line(rows, variant=UNTRAINED, tested=tested))
    ]
    before = of_line(rows, variant=study.control.name, tested=study.logged, epoch=0)
    if study.logged in study.tests and before and before[0].start != "drawn":
        # What the pretrained weights are worth alone, so that nobody credits training with it.
        name = f"before training, from pretrained weights{_WHERE[study.logged]}"
        found.append(Entry(name, _texts(study, before), Published(), ""))
    published = PUBLISHED.get(study.name, {})
    for line in study.lines:
        measured = _rows_of(line, rows)
        if measured:
            theirs = published.get(line.name, Published())
            remark = _remark(study, line, rows, published)
            found.append(Entry(line.name, _texts(study, measured), theirs, remark))
    return found


def write_table(study: Study, rows: Sequence[Row]) -> str:
    """A study's table in Markdown, from its rows alone."""
    header = ["", f"ours: {' / '.join(titles(study))}"]
    source = SOURCES.get(study.name)
    if source:
        header += [f"published ({source}): the authors' figures, not ours", "trend"]
    lines = [f"**{study.title}.** {about(rows)}", "", _row(header), _row(["---"] * len(header))]
    for entry in entries(study, rows):
        cells = [entry.name, " / ".join(entry.ours)]
        lines.append(_row([*cells, _cell(entry.published), entry.remark] if source else cells))
    if study.by_epoch:
        lines += ["", *_epochs(study, rows)]
    return "\n".join(lines) + "\n"


def titles(study: Study) -> list[str]:
    """The names of a table's figures."""
    return [_TITLES[name] for name in study.figures]


def about(rows: Sequence[Row]) -> str:
    """Where our figures come from, in a few sentences."""
    trained = [row for row in rows if row.variant != UNTRAINED]
    if not trained:
        return ""
    control, repeats = trained[0], max(row.repeat for row in rows)
    starts = dict.fromkeys(row.start for row in trained)
    runs = "one run each, so that no spread is known" if repeats == 1 else f"{repeats} runs each, ± half their range"
    return (
        f"Ours (scale: {control.scale}): {control.data}, {control.network}, {control.epochs} epochs; weights: "
        f"{' or '.join(starts)}; seeds from {min(row.seed for row in rows)}, {runs}."
    )


def _rows_of(line: Line, rows: Sequence[Row]) -> list[Row]:
    last = of_line(rows, variant=line.variant, tested=line.tested)
    if line.at == 1 or not last:
        return last
    # A hair less: a tenth of ten epochs is one, whatever a float makes of it.
    epoch = max(1, math.ceil(line.at * last[0].epochs - 1e-9))
    return of_line(rows, variant=line.variant, tested=line.tested, epoch=epoch)


def _texts(study: Study, rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(_text(name, rows) for name in study.figures)


def _text(name: str, rows: Sequence[Row]) -> str:
    values = _values(name, rows)
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if name in _COUNTS:
        return f"{mean:,.0f}"
    scale, digits = (1, 4) if name in _LOSSES else (100, 1)
    spread = "" if len(values) == 1 else f" ±{scale * _range(values) / 2:.{digits}f}"
    return f"{scale * mean:.{digits}f}{spread}"


def _values(name: str, rows: Sequence[Row]) -> list[float]:
    return [value for row in rows if (value := getattr(row, name)) is not None]


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _cell(published: Published) -> str:
    return "; ".join(published.runs) or published.words


def _remark(study: Study, line: Line, rows: Sequence[Row], published: Mapping[str, Published]) -> str:
    """Whether a line differs from the one it is measured from as the authors' does, beyond the spread of the runs."""
    place = study.figures.index(study.metric)
    base = next((one for one in study.lines if one.name == line.against), study.lines[0])
    theirs, base_theirs = (published.get(one.name, Published()) for one in (line, base))
    if line is base or not (theirs.trend or (theirs.figures(place) and base_theirs.figures(place))):
        return ""
    ours = trend(_values(study.metric, _rows_of(line, rows)), _values(study.metric, _rows_of(base, rows)))
    expected = theirs.trend or trend(theirs.figures(place), base_theirs.figures(place))
    if ours is None or expected is None:
        return ""
    words = {1: "better", 0: "no different beyond the spread", -1: "worse"}
    if ours == expected:
        return f"as published: {words[ours]}"
    why = f"; it may be that {theirs.why}" if theirs.why else ""
    return f"not as published: ours {words[ours]}, theirs {words[expected]}{why}"


def trend(values: Sequence[float], base: Sequence[float]) -> int | None:
    """1 where values are higher than the base's by more than either spreads over its runs, -1 lower, else 0."""
    if not values or not base:
        return None
    difference = sum(values) / len(values) - sum(base) / len(base)
    if abs(difference) <= max(_range(values), _range(base)):
        return 0
    return 1 if difference > 0 else -1


def _epochs(study: Study, rows: Sequence[Row]) -> list[str]:
    """Every epoch of each variant's first run."""
    first = [row for row in rows if row.repeat == 1 and row.tested == study.logged and row.variant != UNTRAINED]
    names = [name for name in _EPOCH_FIGURES if _values(name, first)]
    header = ["variant", "epoch", *(_TITLES[name] for name in names)]
    lines = ["Every epoch of the first run of each:", "", _row(header), _row(["---"] * len(header))]
    for row in first:
        lines.append(_row([row.variant, str(row.epoch), *(_text(name, [row]) for name in names)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
