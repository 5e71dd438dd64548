"""Curves as SVG that takes its colours from the page around it. Nothing else imports Matplotlib."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType
from numpy.typing import NDArray

from reidserve.evaluate.distribution import BINS
from reidserve.evaluate.openset import OpenSet, roc
from reidserve.evaluate.report.document import Record, Subject

_INK, _FAINT = "#0a0b0c", "#0a0b0d"
_SERIES = ("#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14")
# Lines differ in more than colour.
_DASHES: Sequence[str | tuple[int, tuple[float, ...]]] = ("-", (0, (6, 2)), (0, (2, 2)), (0, (7, 2, 1, 2)), (0, (1, 1)))
_SIZE = (5.6, 4)  # inches of 72: text stays readable where 400 pixels are all there is
_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "reidserve",
    "font.size": 11.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
}
_SHOWN_BINS = 60
_LEAST_FPR = 1e-5


@dataclass
class _Drawing:
    axes: Axes
    svg: str = field(default="", init=False)


def draw_cmc(subjects: Sequence[Record]) -> str:
    """The CMC curves of all subjects, which start at Rank-1."""
    with _drawing("Cumulative match characteristic: share of queries with a right hit, by rank") as drawing:
        axes = drawing.axes
        for place, one in enumerate(subjects):
            ranks, shares = np.arange(1, len(one.figures.cmc) + 1), 100 * np.array(one.figures.cmc)
            axes.plot(ranks, shares, **_line(place), label=one.name)
        axes.set(xlabel="hits looked at (k)", ylabel="queries with a right hit, %", xlim=(1, None), ylim=(None, 101))
        axes.legend(loc="lower right")
    return drawing.svg


def draw_scores(subject: Subject, points: OpenSet) -> str:
    """How the scores of genuine and of impostor pairs lie, and the thresholds between them."""
    impostors = subject.evaluation.impostors
    assert impostors is not None
    with _drawing("Distribution of the scores of genuine and impostor pairs") as drawing:
        axes = drawing.axes
        genuine = subject.evaluation.outcomes.scores
        edges = _shown_edges(genuine, impostors.counts)
        bins = np.linspace(-1, 1, BINS, endpoint=False) + 1 / BINS
        for counts, name, place in (
            (np.histogram(bins, edges, weights=impostors.counts)[0], "impostor pairs", 1),
            (np.histogram(genuine, edges)[0], "genuine pairs", 0),
        ):
            density = counts / max(1, counts.sum()) / (edges[1] - edges[0])
            axes.stairs(density, edges, fill=True, color=_SERIES[place], alpha=0.25, linewidth=0)
            axes.stairs(density, edges, color=_SERIES[place], linewidth=1.6, linestyle=_DASHES[place], label=name)
        for place, point in enumerate(points.pairs):
            label = f"{point.threshold:.3f}: FPR {100 * point.rate:g} %"
            axes.axvline(point.threshold, color=_INK, linewidth=1.2, linestyle=_DASHES[place], label=label)
        axes.set(xlabel="score (cosine)", ylabel="density", ylim=(0, None))
        # Above the axes: the lines cross all that is within.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2)
    return drawing.svg


def draw_roc(subjects: Sequence[Subject]) -> str:
    """The ROC curves of the subjects whose impostors were gathered."""
    with _drawing("ROC: genuine pairs accepted, by impostor pairs accepted") as drawing:
        axes = drawing.axes
        for place, subject in enumerate(subjects):
            false, true, _ = roc(subject.evaluation)
            line = _corners(np.maximum(false, _LEAST_FPR), 100 * true)
            axes.plot(*line, **_line(place), label=subject.name)
        axes.set(xlabel="impostor pairs accepted (FPR)", ylabel="genuine pairs accepted (TPR), %")
        axes.set(xscale="log", xlim=(_LEAST_FPR, 1), ylim=(0, 101))
        axes.legend(loc="lower right")
    return drawing.svg


@contextmanager
def _drawing(title: str) -> Iterator[_Drawing]:
    """Axes to draw on, which become SVG when the block ends."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        drawing = _Drawing(figure.subplots())
        yield drawing
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawing.svg = _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """SVG for use within HTML: no prologue, no size, no names that two figures may share, the colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", rest)
    for colour, name in ((_INK, "currentColor"), (_FAINT, "var(--line)")):
        rest = rest.replace(colour, name)
    for place, colour in enumerate(_SERIES):
        rest = rest.replace(colour, f"var(--series-{place})")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{title}" {box[0]}>{rest}'
    )


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


def _line(place: int) -> dict[str, Any]:
    """How the curve of each subject is drawn: after five the colours begin again, with other dashes."""
    turn, again = place % len(_SERIES), place // len(_SERIES)
    return {"color": _SERIES[turn], "linestyle": _DASHES[(turn + again) % len(_DASHES)], "linewidth": 2}
