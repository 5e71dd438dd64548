"""Solids: outlines of a side stretched across, seen face by face from a view."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reidserve.datasets.synth.canvas import Canvas, Colour, Point, shade
from reidserve.datasets.synth.views import Point3, View

LIGHT = (0.35, 0.25, 0.9)
"""Where the light comes from in a body's own axes; that it turns along with the body is not seen."""


@dataclass(frozen=True, slots=True)
class Solid:
    """A loft: a profile (forward, up) clockwise as seen from its left, and a half width at each of its points.

    Its faces are "left", "right" and, for the edge from point i to point i + 1, i.
    """

    profile: tuple[Point, ...]
    half: tuple[float, ...]

    def faces(self) -> dict[str | int, list[Point3]]:
        """Give the corners of each face."""
        left = [(x, w, z) for (x, z), w in zip(self.profile, self.half, strict=True)]
        right = [(x, -w, z) for x, w, z in left]
        faces: dict[str | int, list[Point3]] = {"left": left, "right": right}
        for index in range(len(left)):
            after = (index + 1) % len(left)
            faces[index] = [left[index], left[after], right[after], right[index]]
        return faces


def box(back: float, front: float, low: float, high: float, half: float) -> Solid:
    """Give a box; its edges are 0 the front, 1 the top, 2 the back, 3 the bottom."""
    return Solid(((front, low), (front, high), (back, high), (back, low)), (half,) * 4)


def paint_solid(
    canvas: Canvas,
    view: View,
    solid: Solid,
    colours: Mapping[str | int, Colour],
    decals: Mapping[str | int, Sequence[tuple[Sequence[Point3], Colour]]],
) -> None:
    """Paint the faces that are seen, from far to near, each with its decals; faces without a colour are left out."""
    profile = solid.profile
    middle = sum(x for x, _ in profile) / len(profile), 0.0, sum(z for _, z in profile) / len(profile)
    faces = solid.faces()
    seen = []
    for key, colour in colours.items():
        corners = faces[key]
        light, facing = _turned(corners, middle, view)
        if facing > 0.02:
            depth = sum(view.depth(x, y) for x, y, _ in corners) / len(corners)
            seen.append((depth, str(key), key, colour, light))
    for _, _, key, colour, light in sorted(seen):
        canvas.polygon([view.point(*corner) for corner in faces[key]], shade(colour, light))
        for points, mark in decals.get(key, ()):
            canvas.polygon([view.point(*point) for point in points], shade(mark, light), outlined=False)


def _turned(corners: Sequence[Point3], middle: Point3, view: View) -> tuple[float, float]:
    """Say how bright a face is, and how far it faces the camera (above 0: it is seen)."""
    normal = [0.0, 0.0, 0.0]
    for (x0, y0, z0), (x1, y1, z1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        # Newell's method: a sum over edges, good for faces that are not quite flat.
        normal[0] += (y0 - y1) * (z0 + z1)
        normal[1] += (z0 - z1) * (x0 + x1)
        normal[2] += (x0 - x1) * (y0 + y1)
    outward = [sum(corner[axis] for corner in corners) / len(corners) - middle[axis] for axis in range(3)]
    length = math.hypot(*normal) or 1.0
    sign = -1 if sum(n * o for n, o in zip(normal, outward, strict=True)) < 0 else 1
    along, aside, up = (sign * n / length for n in normal)
    lift = math.radians(view.elevation)
    facing = (along * view.facing - aside * view.turned) * math.cos(lift) + up * math.sin(lift)
    return 0.74 + 0.3 * max(0.0, along * LIGHT[0] + aside * LIGHT[1] + up * LIGHT[2]), facing
