"""The canvas: shapes drawn large, taken down to pixels with soft edges, and a mask of all that was drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
Point = tuple[float, float]  # in units of the thing drawn: right, up
Layer = NDArray[np.float32]  # (H, W, channels)

SUPERSAMPLING = 3


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Mix two colours: 0 gives the one, 1 the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def shade(colour: Colour, factor: float) -> Colour:
    """Make a colour darker (below 1) or lighter."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def rectangle(x: float, y: float, across: float, upward: float) -> list[Point]:
    """Give the corners of a rectangle of two half sides around (x, y)."""
    return [(x - across, y - upward), (x - across, y + upward), (x + across, y + upward), (x + across, y - upward)]


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """A finished drawing.

    Attributes:
        colours: float32 (H, W, 3), 0 to 255, times the coverage.
        cover: float32 (H, W, 1), how much of a pixel is drawn on, 0 to 1.
        shadow: float32 (H, W, 1), how much of a pixel behind lies in shadow, 0 to 1.
    """

    colours: Layer
    cover: Layer
    shadow: Layer


class Canvas:
    """A transparent picture to draw on, in the units of what is drawn.

    Attributes:
        width: pixels of the finished picture.
        height: pixels of the finished picture.
        unit: pixels of the large drawing for one unit.
        outline: width of the dark line around each shape, units; 0 for none.
    """

    def __init__(self, width: int, height: int, *, scale: float, origin: Point, outline: float = 0.0) -> None:
        """Place the unit system: `scale` pixels a unit, its zero at `origin`, pixels from the top left."""
        self.width, self.height, self.outline = width, height, outline
        self.unit = scale * SUPERSAMPLING
        self._x, self._y = origin[0] * SUPERSAMPLING, origin[1] * SUPERSAMPLING
        size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self._colours, self._mask = Image.new("RGB", size), Image.new("L", size)
        self._shadow = Image.new("L", (width, height))
        self._draw, self._cover = ImageDraw.Draw(self._colours), ImageDraw.Draw(self._mask)

    def polygon(self, points: Sequence[Point], colour: Colour, *, outlined: bool = True) -> None:
        """Fill a polygon."""
        dots = self._dots(points)
        if outlined and self.outline:
            width = round(2 * self.outline * self.unit)
            ring = [*dots, dots[0], dots[1]]
            self._draw.line(ring, shade(colour, 0.45), width, joint="curve")
            self._cover.line(ring, 255, width, joint="curve")
        self._draw.polygon(dots, colour)
        self._cover.polygon(dots, 255)

    def ellipse(self, centre: Point, across: float, upward: float, colour: Colour, *, outlined: bool = True) -> None:
        """Fill an ellipse of two half axes."""
        if outlined and self.outline:
            self._ellipse(centre, across + self.outline, upward + self.outline, shade(colour, 0.45))
        self._ellipse(centre, across, upward, colour)

    def limb(self, joints: Sequence[Point], radii: Sequence[float], colour: Colour) -> None:
        """Fill a chain of capsules: a round end at each joint, tapering between them."""
        if self.outline:
            self._limb(joints, [radius + self.outline for radius in radii], shade(colour, 0.45))
        self._limb(joints, radii, colour)

    def cloth(self, points: Sequence[Point], base: Colour, marks: Sequence[tuple[Sequence[Point], Colour]]) -> None:
        """Fill a polygon with a base colour and those parts of the marks that lie inside."""
        self.polygon(points, base)
        dots = self._dots(points)
        left, top = (math.floor(min(dot[axis] for dot in dots)) for axis in (0, 1))
        right, bottom = (math.ceil(max(dot[axis] for dot in dots)) + 1 for axis in (0, 1))
        cloth, cut = (
            Image.new("RGB", (right - left, bottom - top), base),
            Image.new("L", (right - left, bottom - top)),
        )
        draw = ImageDraw.Draw(cloth)
        for mark, colour in marks:
            draw.polygon([(x - left, y - top) for x, y in self._dots(mark)], colour)
        ImageDraw.Draw(cut).polygon([(x - left, y - top) for x, y in dots], 255)
        self._colours.paste(cloth, (left, top), cut)

    def shadow(self, points: Sequence[Point]) -> None:
        """Darken what is behind the drawing, inside a polygon with soft edges."""
        dots = [(x / SUPERSAMPLING, y / SUPERSAMPLING) for x, y in self._dots(points)]
        ImageDraw.Draw(self._shadow).polygon(dots, 255)

    def layers(self) -> Layers:
        """Take the drawing down to pixels."""
        shadow = self._shadow.filter(ImageFilter.BoxBlur(2))
        return Layers(
            colours=np.asarray(self._colours.reduce(SUPERSAMPLING), np.float32),
            cover=_shares(self._mask.reduce(SUPERSAMPLING)),
            shadow=_shares(shadow),
        )

    def _dots(self, points: Sequence[Point]) -> list[Point]:
        return [(self._x + x * self.unit, self._y - y * self.unit) for x, y in points]

    def _ellipse(self, centre: Point, across: float, upward: float, colour: Colour) -> None:
        x, y = self._x + centre[0] * self.unit, self._y - centre[1] * self.unit
        across, upward = across * self.unit, upward * self.unit
        box = (x - across, y - upward, x + across, y + upward)
        self._draw.ellipse(box, colour)
        self._cover.ellipse(box, 255)

    def _limb(self, joints: Sequence[Point], radii: Sequence[float], colour: Colour) -> None:
        for joint, radius in zip(joints, radii, strict=True):
            self._ellipse(joint, radius, radius, colour)
        for index in range(len(joints) - 1):
            (x0, y0), (x1, y1) = joints[index], joints[index + 1]
            length = math.hypot(x1 - x0, y1 - y0)
            if length < 1e-6:
                continue
            across, upward = (y0 - y1) / length, (x1 - x0) / length
            r0, r1 = radii[index], radii[index + 1]
            near = [(x0 + across * r0, y0 + upward * r0), (x1 + across * r1, y1 + upward * r1)]
            far = [(x1 - across * r1, y1 - upward * r1), (x0 - across * r0, y0 - upward * r0)]
            dots = self._dots(near + far)
            self._draw.polygon(dots, colour)
            self._cover.polygon(dots, 255)


def _shares(levels: Image.Image) -> Layer:
    return np.asarray(levels, np.float32)[..., None] / np.float32(255)
