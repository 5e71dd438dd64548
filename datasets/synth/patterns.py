"""Patterns: what is printed on cloth and painted on doors, as polygons over a rectangle."""

import math
from typing import Literal, get_args

from reidserve.datasets.synth.canvas import Colour, Point, mix

Pattern = Literal[
    "plain", "rows", "columns", "checks", "dots", "halves", "band", "slash", "fade", "diamonds"
]
Mark = tuple[list[Point], Colour]

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


def marks(
    pattern: Pattern, base: Colour, accent: Colour, *, centre: Point, half: Point, period: float
) -> list[Mark]:
    """Give the polygons of a pattern over the rectangle centre ± half; `period` is the distance of repeats."""
    (x, y), (across, upward) = centre, half
    rows, columns = round(2 * upward / period) + 1, round(2 * across / period) + 1
    left, top = x - period * columns / 2, y + upward
    grid = [(left + (c + 0.5) * period, top - (r + 0.5) * period) for r in range(rows) for c in range(columns)]
    match pattern:
        case "plain":
            shapes: list[list[Point]] = []
        case "rows":
            shapes = [_box(x, top - (row + 0.5) * period, across, period / 4) for row in range(rows)]
        case "columns":
            shapes = [_box(left + (c + 0.5) * period, y, period / 4, upward) for c in range(columns)]
        case "checks":
            odd = [grid[i] for i in range(len(grid)) if (i // columns + i % columns) % 2]
            shapes = [_box(u, v, period / 2, period / 2) for u, v in odd]
        case "dots":
            shapes = [_round(u, v, period * 0.3, 8) for u, v in grid]
        case "diamonds":
            shapes = [_round(u, v, period * 0.5, 4) for u, v in grid]
        case "halves":
            shapes = [_box(x, y - upward / 2, across, upward / 2)]
        case "band":
            shapes = [_box(x, y + upward * 0.3, across, upward * 0.22)]
        case "slash":
            lean = upward * 0.5
            shapes = [
                [(x - across, y + upward - lean), (x - across, y + upward), (x + across, y - upward + lean),
                 (x + across, y - upward)]
            ]
        case "fade":
            steps = 8
            return [
                (_box(x, y - upward * (2 * step + 1 - steps) / steps, across, upward / steps),
                 mix(base, accent, step / (steps - 1)))
                for step in range(steps)
            ]
    return [(shape, accent) for shape in shapes]


def _box(x: float, y: float, across: float, upward: float) -> list[Point]:
    return [(x - across, y - upward), (x - across, y + upward), (x + across, y + upward), (x + across, y - upward)]


def _round(x: float, y: float, radius: float, corners: int) -> list[Point]:
    turns = [2 * math.pi * corner / corners for corner in range(corners)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
