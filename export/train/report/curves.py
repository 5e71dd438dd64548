"""Curves of training: of one run, or of several side by side."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reidserve.evaluate.report.canvas import Axes, Palette, Panel, draw_png
from reidserve.export.files import write_whole
from reidserve.export.train.record import Record

_SHOWN_STEPS = 500
_AVERAGED = 1 / 50
"""Share of a run's batches that the running mean is over."""
_AVERAGED_LEAST = 10
_MOST_DOTS = 40
_MOST_NAMES = 16

_Lines = Sequence[tuple[str, str]]
"""What curves are called, and the field of a record that they show."""

LOSSES: _Lines = (("training, all terms", "loss"), ("held-out images, cross-entropy", "val_loss"))
ACCURACIES: _Lines = (("training", "accuracy"), ("held-out images", "val_accuracy"))
RATES: _Lines = (("learning rate", "lr"),)
SCORES: _Lines = (("Rank-1", "rank1"), ("mAP", "mAP"))
COMPARED: _Lines = (
    ("Rank-1", "rank1"),
    ("mAP", "mAP"),
    ("Accuracy on held-out images", "val_accuracy"),
    ("Accuracy in training", "accuracy"),
    ("Loss on held-out images, cross-entropy", "val_loss"),
    ("Loss in training, all terms", "loss"),
)


def draw_curves(runs: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Write a PNG of the curves of one run, or of several runs by their names, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    panels = run_panels(*runs.values()) if len(runs) == 1 else comparison_panels(runs)
    write_whole(path, draw_png(panels))


def run_panels(records: Sequence[Record]) -> list[Panel]:
    """What there is to draw of a run: the loss of each batch, and by epoch loss, accuracy, learning rate and scores."""
    panels = []
    if any(record.step_losses for record in records):
        panels.append(Panel("Loss of each batch", partial(_draw_steps, records=records)))
    for title, lines, ylabel in (
        ("Loss of each epoch", LOSSES, "loss"),
        ("Accuracy", ACCURACIES, "images of the right class, %"),
        ("Learning rate", RATES, "learning rate"),
        ("Rank-1 and mAP", SCORES, "%"),
    ):
        if any(_is_measured(records, name) for _, name in lines):
            panels.append(Panel(title, partial(_draw_epochs, records=records, lines=lines, ylabel=ylabel)))
    return panels


def comparison_panels(runs: Mapping[str, Sequence[Record]]) -> list[Panel]:
    """What there is to draw of several runs: which curve is whose, and the curves measure by measure."""
    panels = [
        Panel(title, partial(_draw_runs, runs=runs, name=name))
        for title, name in COMPARED
        if any(_is_measured(records, name) for records in runs.values())
    ]
    return [Panel("Which curve is whose", partial(_draw_names, names=list(runs))), *panels]


def _is_measured(records: Sequence[Record], name: str) -> bool:
    return any(getattr(record, name) is not None for record in records)


def _draw_steps(axes: Axes, palette: Palette, *, records: Sequence[Record]) -> None:
    losses = np.array([loss for record in records for loss in record.step_losses])
    # Lowest and highest of so many batches that a screen can tell them apart.
    ends = np.linspace(0, len(losses), min(len(losses), _SHOWN_STEPS) + 1).astype(np.int64)
    extremes = [bound.reduceat(losses, ends[:-1]) for bound in (np.minimum, np.maximum)]
    axes.plot(np.repeat(ends[1:], 2), np.stack(extremes, 1).ravel(), color=palette.series[0], alpha=0.35, linewidth=0.8)
    window = max(_AVERAGED_LEAST, round(len(losses) * _AVERAGED))
    axes.plot(
        ends[1:], _running_mean(losses, window)[ends[1:] - 1], **palette.line(0), label=f"mean of {window} batches"
    )
    steps = np.cumsum([len(record.step_losses) for record in records])
    _mark_stages(axes, palette, records, dict(zip((record.epoch for record in records), steps.tolist(), strict=True)))
    axes.set(xlabel="batch", ylabel="loss")
    axes.legend(loc="upper right")


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """At each value, the mean of the last `window` of them, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _draw_epochs(axes: Axes, palette: Palette, *, records: Sequence[Record], lines: _Lines, ylabel: str) -> None:
    if lines is RATES:
        axes.set(yscale="log")
    for place, (label, name) in enumerate(lines):
        if _is_measured(records, name):
            _draw_line(axes, palette, records, name, place, label)
    _mark_stages(axes, palette, records, {record.epoch: record.epoch + 0.5 for record in records})
    axes.set(xlabel="epoch", ylabel=ylabel)
    if len(lines) > 1:
        axes.legend()


def _draw_runs(axes: Axes, palette: Palette, *, runs: Mapping[str, Sequence[Record]], name: str) -> None:
    for place, records in enumerate(runs.values()):
        _draw_line(axes, palette, records, name, place)
    axes.set(xlabel="epoch", ylabel="loss" if "loss" in name else "%")


def _draw_names(axes: Axes, palette: Palette, *, names: Sequence[str]) -> None:
    axes.set_axis_off()
    for place, name in enumerate(names):
        axes.plot([], [], **palette.line(place), label=name)
    axes.legend(loc="upper left", ncols=1 + len(names) // _MOST_NAMES, handlelength=3.5)


def _draw_line(
    axes: Axes, palette: Palette, records: Sequence[Record], name: str, place: int, label: str | None = None
) -> None:
    measured = [record for record in records if getattr(record, name) is not None]
    percent = 1 if name in ("loss", "val_loss", "lr") else 100
    axes.plot(
        [record.epoch for record in measured],
        [percent * getattr(record, name) for record in measured],
        marker="o" if len(measured) <= _MOST_DOTS else None,
        markersize=4,
        **palette.line(place),
        label=label,
    )
    axes.locator_params(axis="x", integer=True)


def _mark_stages(axes: Axes, palette: Palette, records: Sequence[Record], ends: Mapping[int, float]) -> None:
    """A line where each stage but the first begins."""
    for last, record in _stage_starts(records):
        axes.axvline(ends[last], color=palette.ink, linewidth=1, linestyle=":")
        axes.annotate(
            f"stage {record.stage}",
            (ends[last], 1),
            xycoords=("data", "axes fraction"),
            va="bottom",
            ha="center",
            fontsize="small",
        )


def _stage_starts(records: Sequence[Record]) -> Iterator[tuple[int, Record]]:
    for before, after in pairwise(records):
        if after.stage != before.stage:
            yield before.epoch, after
