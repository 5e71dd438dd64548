"""Curves of an evaluation, as SVG that takes its colours from the page around it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reidserve.evaluate.distribution import BINS
from reidserve.evaluate.openset import OpenSet, roc
from reidserve.evaluate.report.canvas import PAGE, svg_axes
from reidserve.evaluate.report.document import Record, Subject

_SHOWN_BINS = 60
_LEAST_FPR = 1e-5


def draw_cmc(subjects: Sequence[Record]) -> str:
    """The CMC curves of all subjects, which start at Rank-1."""
    with svg_axes("Cumulative match characteristic: share of queries with a right hit, by rank") as drawing:
        axes = drawing.axes
        for place, one in enumerate(subjects):
            ranks, shares = np.arange(1, len(one.figures.cmc) + 1), 100 * np.array(one.figures.cmc)
            axes.plot(ranks, shares, **PAGE.line(place), label=one.name)
        axes.set(xlabel="hits looked at (k)", ylabel="queries with a right hit, %", xlim=(1, None), ylim=(None, 101))
        axes.legend(loc="lower right")
    return drawing.svg


def draw_scores(subject: Subject, points: OpenSet) -> str:
    """How the scores of genuine and of impostor pairs lie, and the thresholds between them."""
    impostors = subject.evaluation.impostors
    assert impostors is not None
    with svg_axes("Distribution of the scores of genuine and impostor pairs") as drawing:
        axes = drawing.axes
        genuine = subject.evaluation.outcomes.scores
        edges = _shown_edges(genuine, impostors.counts)
        bins = np.linspace(-1, 1, BINS, endpoint=False) + 1 / BINS
        for counts, name, place in (
            (np.histogram(bins, edges, weights=impostors.counts)[0], "impostor pairs", 1),
            (np.histogram(genuine, edges)[0], "genuine pairs", 0),
        ):
            density = counts / max(1, counts.sum()) / (edges[1] - edges[0])
            axes.stairs(density, edges, fill=True, color=PAGE.series[place], alpha=0.25, linewidth=0)
            axes.stairs(
                density, edges, color=PAGE.series[place], linewidth=1.6, linestyle=PAGE.dashes(place), label=name
            )
        for place, point in enumerate(points.pairs):
            label = f"{point.threshold:.3f}: FPR {100 * point.rate:g} %"
            axes.axvline(point.threshold, color=PAGE.ink, linewidth=1.2, linestyle=PAGE.dashes(place), label=label)
        axes.set(xlabel="score (cosine)", ylabel="density", ylim=(0, None))
        # Above the axes: the lines cross all that is within.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2)
    return drawing.svg


def draw_roc(subjects: Sequence[Subject]) -> str:
    """The ROC curves of the subjects whose impostors were gathered."""
    with svg_axes("ROC: genuine pairs accepted, by impostor pairs accepted") as drawing:
        axes = drawing.axes
        for place, subject in enumerate(subjects):
            false, true, _ = roc(subject.evaluation)
            line = _corners(np.maximum(false, _LEAST_FPR), 100 * true)
            axes.plot(*line, **PAGE.line(place), label=subject.name)
        axes.set(xlabel="impostor pairs accepted (FPR)", ylabel="genuine pairs accepted (TPR), %")
        axes.set(xscale="log", xlim=(_LEAST_FPR, 1), ylim=(0, 101))
        axes.legend(loc="lower right")
    return drawing.svg


def _shown_edges(genuine: NDArray[np.float32], impostors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Edges of bins over all scores but the outermost impostors, which are too few to see."""
    shares = np.cumsum(impostors) / max(1, impostors.sum())
    first, last = (-1 + 2 * np.searchsorted(shares, share) / BINS for share in (1e-4, 1 - 1e-5))
    low, high = min(first, genuine.min(initial=1)), max(last, genuine.max(initial=-1))
    return np.linspace(low - 0.01, high + 0.01, _SHOWN_BINS + 1)


def _corners(false: NDArray[np.float64], true: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve of many thousand points as the few that a screen can tell apart."""
    keys = np.stack([np.round(np.log10(false) * 200), np.round(true * 5)])
    keep = np.ones(len(false), np.bool_)
    keep[1:-1] = (keys[:, 1:-1] != keys[:, :-2]).any(axis=0)
    return false[keep], true[keep]
