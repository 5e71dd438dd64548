"""Axes in the house style, as SVG with the colours of the page around it or as PNG. Nothing else imports Matplotlib."""

import html
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

__all__ = ["PAGE", "PRINT", "Axes", "Palette", "Panel", "draw_png", "draw_svg", "svg_axes"]

# Lines differ in more than colour.
_DASHES: Sequence[str | tuple[int, tuple[float, ...]]] = ("-", (0, (6, 2)), (0, (2, 2)), (0, (7, 2, 1, 2)), (0, (1, 1)))
_SIZE = (5.6, 4)  # inches of 72: text stays readable where 400 pixels are all there is
_COLUMNS, _DPI, _ROOM = 3, 110, 18


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a drawing.

    Attributes:
        paper: behind it.
        ink: text and axes.
        faint: the grid.
        series: curves, in their order.
    """

    paper: str
    ink: str
    faint: str
    series: tuple[str, ...]

    def line(self, place: int) -> dict[str, Any]:
        """How the curve at a place is drawn: after five the colours begin again, with other dashes."""
        turn, again = place % len(self.series), place // len(self.series)
        return {"color": self.series[turn], "linestyle": self.dashes(turn + again), "linewidth": 2}

    def dashes(self, place: int) -> str | tuple[int, tuple[float, ...]]:
        """The dashes of the curve at a place."""
        return _DASHES[place % len(_DASHES)]


PAGE = Palette("none", "#0a0b0c", "#0a0b0d", ("#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14"))
"""Stand-ins, which the style sheet of a page gives their colours."""
PRINT = Palette("#ffffff", "#1f2933", "#d9d6cd", ("#0072b2", "#c75500", "#00805d", "#a8487f", "#6b6b6b"))
"""The style sheet's colours on white."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A drawing that has not been drawn yet.

    Attributes:
        title: what it shows.
        draw: draws it on axes, in the colours of a palette.
    """

    title: str
    draw: Callable[[Axes, Palette], None]


@dataclass
class Drawing:
    """Axes, and when they are done the SVG of what was drawn on them."""

    axes: Axes
    svg: str = field(default="", init=False)


@contextmanager
def svg_axes(title: str) -> Iterator[Drawing]:
    """Axes to draw on in the colours of PAGE, which become SVG when the block ends."""
    with mpl.rc_context(_style(PAGE)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        drawing = Drawing(figure.subplots())
        yield drawing
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawing.svg = _inline(buffer.getvalue(), title)


def draw_svg(panel: Panel) -> str:
    """A panel as SVG for use within HTML."""
    with svg_axes(panel.title) as drawing:
        panel.draw(drawing.axes, PAGE)
    return drawing.svg


def draw_png(panels: Sequence[Panel]) -> bytes:
    """Panels side by side, each under its title, as one PNG."""
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(_style(PRINT)):
        figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1] * rows), dpi=_DPI, layout="constrained")
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.set_title(panel.title, fontsize="medium", loc="left", pad=_ROOM)
            panel.draw(axes, PRINT)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _style(palette: Palette) -> dict[RcKeyType, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "reidserve",
        "font.size": 11.5,
        "text.color": palette.ink,
        "axes.edgecolor": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": palette.faint,
        "grid.linewidth": 0.6,
        "xtick.color": palette.ink,
        "ytick.color": palette.ink,
        "legend.frameon": False,
        "figure.facecolor": palette.paper,
    }


def _inline(svg: str, title: str) -> str:
    """SVG for use within HTML: no prologue, no size, no names that two figures may share, the colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", rest)
    for colour, name in ((PAGE.ink, "currentColor"), (PAGE.faint, "var(--line)")):
        rest = rest.replace(colour, name)
    for place, colour in enumerate(PAGE.series):
        rest = rest.replace(colour, f"var(--series-{place})")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{html.escape(title)}" {box[0]}>{rest}'
    )
