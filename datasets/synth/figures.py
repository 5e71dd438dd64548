"""Figures: persons as a camera sees them, limb by limb from far to near."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator

from reidserve.datasets.synth.canvas import Canvas, Colour, Point, rectangle, shade
from reidserve.datasets.synth.draws import between
from reidserve.datasets.synth.patterns import marks
from reidserve.datasets.synth.persons import Person
from reidserve.datasets.synth.views import View

Part = tuple[float, Callable[[], None]]  # how near it is, and what draws it

SHOULDER, NECK, HEAD = 0.81, 0.855, 0.925
HEMS = {"tee": 0.03, "shirt": 0.05, "jacket": 0.01, "coat": 0.2, "sleeveless": 0.03}
"""How far below the hip an upper garment ends."""


@dataclass(frozen=True, slots=True)
class Pose:
    """A moment of a walk.

    Attributes:
        phase: of the stride, radians.
        elbow: how far the elbows are bent, radians.
        lean: how far the head is moved sideways.
    """

    phase: float
    elbow: float
    lean: float


def draw_pose(rng: Generator) -> Pose:
    """Draw a moment of a walk."""
    return Pose(between(rng, 0, 2 * math.pi), between(rng, 0.1, 0.7), between(rng, -0.008, 0.008))


def paint_person(canvas: Canvas, person: Person, view: View, pose: Pose) -> None:
    """Paint a person standing at (0, 0) of the canvas, 1 unit tall."""
    legs = [_leg(canvas, person, view, pose, side) for side in (-1, 1)]
    upper = [
        *(_arm(canvas, person, view, pose, side) for side in (-1, 1)),
        (0.0, lambda: _torso(canvas, person, view)),
        *_luggage(canvas, person, view),
        *_head(canvas, person, view, pose),
    ]
    # Whatever the depth of a leg, a coat and a skirt hang over it.
    for _, paint in sorted(legs, key=lambda part: part[0]):
        paint()
    if person.bottom == "skirt":
        _skirt(canvas, person, view)
    for _, paint in sorted(upper, key=lambda part: part[0]):
        paint()


def _leg(canvas: Canvas, person: Person, view: View, pose: Pose, side: int) -> Part:
    swing = side * person.stride * math.sin(pose.phase)
    left, reach = side * 0.052 * person.build, person.leg * math.sin(swing)
    lift = 0.05 * max(0.0, side * math.cos(pose.phase)) * person.stride * 2
    hip, knee = view.point(0, left, person.leg), view.point(reach * 0.5 + lift, left, person.leg * 0.54)
    ankle = view.point(reach, left, 0.045 + lift)
    toe = view.point(reach + 0.085, left, 0.022 + lift)
    wide, thigh, shin = person.bottom == "flared", 0.054 * person.build, 0.036 * person.build
    far = shade(person.bottom_colour, 0.82 if view.depth(0, left) < 0 else 1.0)

    def paint() -> None:
        canvas.limb([ankle, toe], [0.028, 0.024], person.shoes)
        if person.bottom in ("shorts", "skirt"):
            canvas.limb([knee, ankle], [shin * 1.05, shin * 0.75], person.skin)
        if person.bottom == "shorts":
            canvas.limb([hip, knee], [thigh, thigh * 0.95], far)
        elif person.bottom != "skirt":
            canvas.limb([hip, knee, ankle], [thigh, shin * (1.2 if wide else 1.1), shin * (1.7 if wide else 0.9)], far)
            if person.seam:
                canvas.limb([hip, knee, ankle], [0.012] * 3, person.seam)
        if person.boots:
            middle = ((knee[0] + ankle[0] * 2) / 3, (knee[1] + ankle[1] * 2) / 3)
            canvas.limb([middle, ankle], [shin * 1.15, shin], person.shoes)

    return view.depth(reach * 0.5, left), paint


def _skirt(canvas: Canvas, person: Person, view: View) -> None:
    waist, hem = view.across(0.085, 0.06) * person.build, view.across(0.125, 0.105) * person.build
    top, bottom = person.leg + 0.04, person.leg * 0.5
    points = [(-waist, top), (waist, top), (hem, bottom), (-hem, bottom)]
    band = [(-hem * 0.96, bottom + 0.035), (hem * 0.96, bottom + 0.035), (hem, bottom), (-hem, bottom)]
    canvas.cloth(points, person.bottom_colour, [(band, person.seam)] if person.seam else [])


def _torso(canvas: Canvas, person: Person, view: View) -> None:
    shoulder = view.across(0.118, 0.07) * person.build
    waist = view.across(0.092, 0.068) * person.build
    hip = view.across(0.098 if person.top != "coat" else 0.125, 0.075) * person.build
    hem, neck = person.leg - HEMS[person.top], view.across(0.04, 0.036)
    right = [
        (neck, NECK),
        (shoulder * 0.8, SHOULDER + 0.015),
        (shoulder, SHOULDER - 0.02),
        (waist, person.leg + 0.12),
        (hip, person.leg),
        (hip, hem),
    ]
    outline = right + [(-x, y) for x, y in reversed(right)]
    height = (NECK - hem) / 2
    prints = marks(
        person.pattern, person.base, person.accent,
        centre=(0, hem + height), half=(0.16 * person.build, height), period=person.period,
    )  # fmt: skip
    canvas.limb([(0, SHOULDER), (0, HEAD)], [neck, 0.036], person.skin)
    canvas.cloth(outline, person.base, prints)
    if person.top in ("jacket", "coat"):
        # An open front shows what is worn below, from the front alone.
        _plate(canvas, view, (0.07, 0.028, NECK - 0.01, hem), person.sleeves)
    if person.logo != "none":
        front = 1 if person.logo == "chest" else -1
        _plate(canvas, view, (0.07 * front, 0.05, SHOULDER - 0.04, SHOULDER - 0.13), person.accent)


def _plate(canvas: Canvas, view: View, place: tuple[float, float, float, float], colour: Colour) -> None:
    """Paint an upright patch (forward, half width, top, bottom), if it faces the camera."""
    forward, half, top, bottom = place
    if view.depth(forward) > 0.3 * abs(forward):
        corners = [(-half, bottom), (-half, top), (half, top), (half, bottom)]
        points = [view.point(forward, left * math.copysign(1, forward), up) for left, up in corners]
        canvas.polygon(points, colour, outlined=False)


def _arm(canvas: Canvas, person: Person, view: View, pose: Pose, side: int) -> Part:
    swing = -side * person.stride * math.sin(pose.phase)
    left = side * 0.125 * person.build
    elbow_forward, bent = 0.17 * math.sin(swing), swing + pose.elbow
    shoulder = view.point(0, left, SHOULDER - 0.02)
    elbow = view.point(elbow_forward, left * 1.12, SHOULDER - 0.17 * math.cos(swing))
    hand_forward = elbow_forward + 0.16 * math.sin(bent)
    hand = view.point(hand_forward, left * 1.12, SHOULDER - 0.17 - 0.16 * math.cos(bent))
    sleeve = shade(person.sleeves, 0.85 if view.depth(0, left) < 0 else 0.95)
    upper, lower = 0.036 * person.build, 0.027 * person.build

    def paint() -> None:
        if person.top == "sleeveless":
            canvas.limb([shoulder, elbow, hand], [upper * 0.85, lower, lower * 0.8], person.skin)
        elif person.top == "tee":
            canvas.limb([shoulder, elbow, hand], [upper * 0.8, lower, lower * 0.8], person.skin)
            middle = ((shoulder[0] + elbow[0] * 2) / 3, (shoulder[1] + elbow[1] * 2) / 3)
            canvas.limb([shoulder, middle], [upper, upper], sleeve)
        else:
            canvas.limb([hand], [0.024], person.skin)
            wrist = (elbow[0] + (hand[0] - elbow[0]) * 0.9, elbow[1] + (hand[1] - elbow[1]) * 0.9)
            canvas.limb([shoulder, elbow, wrist], [upper, lower * 1.15, lower], sleeve)
        if side < 0 and person.umbrella:
            canvas.limb([(hand[0], hand[1] + 0.05), (hand[0], hand[1] - 0.34)], [0.02, 0.008], person.umbrella)
        if side > 0 and person.bag == "handbag":
            _handbag(canvas, person, view, hand)

    return view.depth(hand_forward * 0.5, left), paint


def _handbag(canvas: Canvas, person: Person, view: View, hand: Point) -> None:
    half, top = view.across(0.035, 0.085), hand[1] - 0.045
    canvas.limb([(hand[0], hand[1]), (hand[0], top)], [0.012, 0.012], shade(person.bag_colour, 0.6))
    points = [(-half * 0.8, top), (half * 0.8, top), (half, top - 0.13), (-half, top - 0.13)]
    canvas.polygon([(hand[0] + x, y) for x, y in points], person.bag_colour)


def _luggage(canvas: Canvas, person: Person, view: View) -> list[Part]:
    if person.bag == "backpack":
        pack = (view.depth(-0.3), lambda: _pack(canvas, person, view))
        return [pack, (view.depth(0.06), lambda: _straps(canvas, person, view))] if view.facing > 0 else [pack]
    if person.bag == "satchel":
        bag = (view.depth(0, -0.14), lambda: _satchel(canvas, person, view))
        return [bag, (0.01, lambda: _sling(canvas, person, view))]
    return []


def _pack(canvas: Canvas, person: Person, view: View) -> None:
    (x, _), half = view.point(-0.115, 0, 0), view.across(0.095, 0.055)
    right = [(half * 0.6, 0.83), (half, 0.80), (half, 0.565)]
    canvas.polygon([(x + u, v) for u, v in [*right, *((-u, v) for u, v in reversed(right))]], person.bag_colour)
    canvas.polygon(rectangle(x, 0.63, half * 0.7, 0.04), shade(person.bag_colour, 0.6), outlined=False)


def _straps(canvas: Canvas, person: Person, view: View) -> None:
    for left in (-0.07, 0.07):
        points = [view.point(0.055, left * person.build, up) for up in (0.83, 0.64)]
        canvas.limb(points, [0.014, 0.014], shade(person.bag_colour, 0.6))


def _satchel(canvas: Canvas, person: Person, view: View) -> None:
    (x, y), half = view.point(0.0, -0.13 * person.build, person.leg), view.across(0.04, 0.09)
    canvas.polygon(rectangle(x, y + 0.01, half, 0.06), person.bag_colour)
    canvas.polygon(rectangle(x, y + 0.04, half, 0.03), shade(person.bag_colour, 0.6), outlined=False)


def _sling(canvas: Canvas, person: Person, view: View) -> None:
    ends = ((0.08, 0.835), (-0.1, person.leg + 0.07))
    points = [view.point(0.0, left * person.build, up) for left, up in ends]
    canvas.limb(points, [0.014, 0.014], shade(person.bag_colour, 0.6))


def _head(canvas: Canvas, person: Person, view: View, pose: Pose) -> list[Part]:
    radius, x = person.head, pose.lean
    ahead = view.turned * radius
    crown = HEAD + radius * 0.35

    def hanging() -> None:
        if person.hair == "long":
            half, back = radius * 1.12, x - ahead * 0.35
            low = SHOULDER - 0.03
            points = [(-half, HEAD), (half, HEAD), (half * 1.1, low), (-half * 1.1, low)]
            canvas.polygon([(back + u, v) for u, v in points], person.hair_colour)

    def head() -> None:
        bald = person.hair == "bald"
        canvas.ellipse((x, HEAD), radius * 0.95, radius * 1.12, person.skin if bald else person.hair_colour)
        if person.hair == "bun":
            canvas.ellipse((x - ahead * 1.05, HEAD + radius * 0.8), radius * 0.48, radius * 0.48, person.hair_colour)
        seen = radius * 0.8 * max(0.0, view.facing + 0.6) / 1.6
        if seen > 0.1 * radius:
            face = (x + ahead * 0.42, HEAD - radius * 0.22)
            canvas.ellipse(face, max(seen, radius * 0.5), radius * 0.82, person.skin, outlined=False)
            eyes = HEAD + radius * 0.05
            dark = (24, 24, 28) if person.glasses else shade(person.skin, 0.7)
            canvas.limb([(face[0] - seen * 0.7, eyes), (face[0] + seen * 0.7, eyes)],
                        [radius * (0.2 if person.glasses else 0.1)] * 2, dark)  # fmt: skip
        _headwear(canvas, person, (x, crown), ahead, view)
        if person.scarf:
            half = view.across(0.066, 0.06)
            canvas.limb([(-half * 0.6, NECK - 0.005), (half * 0.6, NECK - 0.005)], [0.034, 0.034], person.scarf)
            _plate(canvas, view, (0.08, 0.024, NECK, NECK - 0.14), shade(person.scarf, 0.9))

    return [(view.depth(-0.2), hanging), (2.0, head)]


def _headwear(canvas: Canvas, person: Person, crown: Point, ahead: float, view: View) -> None:
    (x, y), radius, colour = crown, person.head, person.headwear_colour
    half = radius * 1.02
    right = [(half * 0.4, radius * 0.95), (half * 0.9, radius * 0.55), (half, -radius * 0.1)]
    dome = [(x + u, y + v) for u, v in [*right, *((-u, v) for u, v in reversed(right))]]
    if person.headwear == "cap":
        canvas.polygon(dome, colour)
        if view.facing > -0.7:
            canvas.ellipse((x + ahead * 1.05, y - radius * 0.05), radius * 0.75, radius * 0.2, shade(colour, 0.7))
    elif person.headwear == "hat":
        canvas.polygon([(u, v + radius * 0.15) for u, v in dome], colour)
        canvas.ellipse((x, y), radius * 1.7, radius * 0.26, shade(colour, 0.85))
    elif person.headwear == "beanie":
        canvas.polygon(dome, colour)
        canvas.limb([(x - half * 0.85, y - radius * 0.1), (x + half * 0.85, y - radius * 0.1)],
                    [radius * 0.2] * 2, shade(colour, 0.7))  # fmt: skip
        canvas.ellipse((x, y + radius * 1.05), radius * 0.3, radius * 0.3, colour)
