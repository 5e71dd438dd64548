"""Patterns: what is printed on cloth and painted on doors, as polygons over a rectangle."""

import math
from typing import Literal, get_args

from reidserve.datasets.synth.canvas import Colour, Point, mix, rectangle

Pattern = Literal["plain", "rows", "columns", "checks", "dots", "halves", "band", "slash", "fade", "diamonds"]
Mark = tuple[list[Point], Colour]

PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


def marks(pattern: Pattern, base: Colour, accent: Colour, *, centre: Point, half: Point, period: float) -> list[Mark]:
    """Give the polygons of a pattern over the rectangle centre ± half; `period` is the distance of repeats."""
    if pattern == "fade":
        return _fade(base, accent, centre, half)
    return [(_clipped(shape, centre, half), accent) for shape in _shapes(pattern, centre, half, period)]


def _fade(base: Colour, accent: Colour, centre: Point, half: Point, steps: int = 8) -> list[Mark]:
    (x, y), (across, upward) = centre, half
    rows = [rectangle(x, y - upward * (2 * step + 1 - steps) / steps, across, upward / steps) for step in range(steps)]
    return [(row, mix(base, accent, step / (steps - 1))) for step, row in enumerate(rows)]


def _shapes(pattern: Pattern, centre: Point, half: Point, period: float) -> list[list[Point]]:
    (x, y), (across, upward) = centre, half
    rows, columns = round(2 * upward / period) + 1, round(2 * across / period) + 1
    left, top = x - period * columns / 2, y + upward
    grid = [(left + (c + 0.5) * period, top - (r + 0.5) * period) for r in range(rows) for c in range(columns)]
    match pattern:
        case "rows":
            return [rectangle(x, top - (row + 0.5) * period, across, period / 4) for row in range(rows)]
        case "columns":
            return [rectangle(left + (c + 0.5) * period, y, period / 4, upward) for c in range(columns)]
        case "checks":
            odd = [grid[i] for i in range(len(grid)) if (i // columns + i % columns) % 2]
            return [rectangle(u, v, period / 2, period / 2) for u, v in odd]
        case "dots":
            return [_round(u, v, period * 0.3, 8) for u, v in grid]
        case "diamonds":
            return [_round(u, v, period * 0.5, 4) for u, v in grid]
        case "halves":
            return [rectangle(x, y - upward / 2, across, upward / 2)]
        case "band":
            return [rectangle(x, y + upward * 0.3, across, upward * 0.22)]
        case "slash":
            left, right, drop = x - across, x + across, upward * 1.5
            return [[(left, top - upward / 2), (left, top), (right, top - drop), (right, y - upward)]]
    return []


def _clipped(shape: list[Point], centre: Point, half: Point) -> list[Point]:
    (x, y), (across, upward) = centre, half
    return [(min(max(u, x - across), x + across), min(max(v, y - upward), y + upward)) for u, v in shape]


def _round(x: float, y: float, radius: float, corners: int) -> list[Point]:
    turns = [2 * math.pi * corner / corners for corner in range(corners)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
