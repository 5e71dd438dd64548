"""Bodies: vehicles as a camera sees them, solid by solid from far to near."""

import math

from reidserve.datasets.synth.canvas import Canvas, Colour, Point, rectangle, shade
from reidserve.datasets.synth.patterns import marks
from reidserve.datasets.synth.solids import Solid, box, paint_solid
from reidserve.datasets.synth.vehicles import SHAPES, Shape, Vehicle
from reidserve.datasets.synth.views import Point3, View

Decal = tuple[list[Point3], Colour]
Decals = dict[str | int, list[Decal]]

CLEARANCE = 0.22
TYRE: Colour = (30, 30, 33)
PLATE: Colour = (236, 232, 210)
REAR_LAMP: Colour = (214, 36, 34)


def shape_of(vehicle: Vehicle) -> Shape:
    """Give the vehicle's own proportions."""
    shape = SHAPES[vehicle.model]
    return Shape(
        shape.length * vehicle.stretch, shape.width, shape.height * vehicle.rise, shape.belt * vehicle.rise,
        shape.nose, shape.tail * vehicle.stretch, shape.rake, shape.slope, shape.wheel,
    )  # fmt: skip


def extent(vehicle: Vehicle, view: View) -> tuple[Point, Point]:
    """Give the left lower and right upper corner of where the vehicle appears, road included."""
    shape = shape_of(vehicle)
    top = max(shape.height, 2.9 if vehicle.model == "truck" else 0.0) + 0.05
    corners = [
        view.point(x, y, z)
        for x in (-shape.length / 2, shape.length / 2)
        for y in (-shape.width / 2, shape.width / 2)
        for z in (0.0, top)
    ]
    across, upward = zip(*corners, strict=True)
    return (min(across), min(upward)), (max(across), max(upward))


def footprint(vehicle: Vehicle, view: View) -> list[Point]:
    """Give the outline of the road a vehicle keeps the light from."""
    shape = shape_of(vehicle)
    ahead, aside = shape.length / 2 + 0.1, shape.width / 2 + 0.25
    return [view.point(x, y, 0) for x, y in ((-ahead, -aside), (-ahead, aside), (ahead, aside), (ahead, -aside))]


def paint_vehicle(canvas: Canvas, vehicle: Vehicle, view: View) -> None:
    """Paint a vehicle standing with its middle at (0, 0) of the canvas, a unit a metre."""
    shape = shape_of(vehicle)
    _wheels(canvas, vehicle, shape, view, near=False)
    _lower(canvas, vehicle, shape, view)
    _wheels(canvas, vehicle, shape, view, near=True)
    front = view.depth(1.0) > 0
    if vehicle.model == "truck" and front:
        _cargo(canvas, vehicle, shape, view)
    if vehicle.model == "pickup":
        _bed(canvas, vehicle, shape, view)
    _cabin(canvas, vehicle, shape, view)
    _roof(canvas, vehicle, shape, view)
    if vehicle.model == "truck" and not front:
        _cargo(canvas, vehicle, shape, view)


def _lower(canvas: Canvas, vehicle: Vehicle, shape: Shape, view: View) -> None:
    half, front, low = shape.width / 2, shape.length / 2, CLEARANCE
    bonnet = shape.belt - (0.16 if shape.nose > 0.3 else 0.0)
    profile = ((front, low), (front, bonnet - 0.12), (front - 0.12, bonnet), (front - shape.nose, shape.belt),
               (-front + shape.tail, shape.belt), (-front + 0.03, shape.belt), (-front, low))  # fmt: skip
    solid = Solid(profile, (half, half, half * 0.94, half, half, half, half))
    colours: dict[str | int, Colour] = dict.fromkeys(("left", "right", 0, 1, 2, 3, 4, 5), vehicle.base)
    decals: Decals = {"left": [], "right": []}
    bottom = 0.34
    middle, upward = (bottom + shape.belt) / 2, (shape.belt - bottom) / 2
    for mark, colour in marks(
        vehicle.pattern, vehicle.base, vehicle.accent,
        centre=(-0.1, middle), half=(front - 0.28, upward - 0.03), period=vehicle.period,
    ):  # fmt: skip
        _both(decals, half, mark, colour)
    _both(decals, half, rectangle(0, low + 0.07, front, 0.07), shade(vehicle.bumpers, 0.8))
    decals[0] = _face(vehicle, front, half, bonnet - 0.12, vehicle.lamps)
    decals[5] = _face(vehicle, -front, half, shape.belt, REAR_LAMP)
    if vehicle.sticker:
        decals[5].append((_upright(-front, -half * 0.15, shape.belt - 0.19, half * 0.25, 0.13), vehicle.sticker))
    decals[2] = _lanes(vehicle, (front - 0.12, bonnet), (front - shape.nose, shape.belt), half)
    decals[4] = _lanes(vehicle, (-front + shape.tail, shape.belt), (-front + 0.03, shape.belt), half)
    paint_solid(canvas, view, solid, colours, decals)


def _both(decals: Decals, half: float, outline: list[Point], colour: Colour) -> None:
    for side, left in (("left", half), ("right", -half)):
        decals[side].append(([(x, left, z) for x, z in outline], colour))


def _face(vehicle: Vehicle, forward: float, half: float, high: float, lamp: Colour) -> list[Decal]:
    """Give bumper, grille or boot lid, number plate and lamps of the front or the rear."""
    height = high - CLEARANCE
    patches = [
        (0.0, 0.16, 1.0, 0.16, vehicle.bumpers),
        (0.0, 0.68, 0.45, 0.18, shade(vehicle.base, 0.45)),
        (0.0, 0.2, 0.26, 0.1, PLATE),
        (-0.75, 0.72, 0.2, 0.18, lamp),
        (0.75, 0.72, 0.2, 0.18, lamp),
    ]
    return [
        (_upright(forward, half * left, CLEARANCE + height * up, half * across, height * upward), colour)
        for left, up, across, upward, colour in patches
    ]


def _upright(forward: float, left: float, up: float, across: float, upward: float) -> list[Point3]:
    return [(forward, y, z) for y, z in rectangle(left, up, across, upward)]


def _lanes(vehicle: Vehicle, start: Point, end: Point, half: float) -> list[Decal]:
    """Give the stripes along bonnet, roof or boot."""
    lanes = {"none": (), "one": ((-0.3, 0.3),), "two": ((-0.42, -0.14), (0.14, 0.42))}[vehicle.bonnet]
    (x0, z0), (x1, z1) = start, end
    return [
        ([(x0, a * half, z0), (x1, a * half, z1), (x1, b * half, z1), (x0, b * half, z0)], vehicle.accent)
        for a, b in lanes
    ]


def _cabin(canvas: Canvas, vehicle: Vehicle, shape: Shape, view: View) -> None:
    front, belt, roof = shape.length / 2 - shape.nose, shape.belt, shape.height
    rear = -shape.length / 2 + shape.tail
    foot, top = shape.width / 2 * 0.97, shape.width / 2 * (0.9 if shape.height > 2 else 0.8)
    profile = ((front, belt), (front - shape.rake, roof), (rear + shape.slope, roof), (rear, belt))
    solid = Solid(profile, (foot, top, top, foot))
    colours: dict[str | int, Colour] = dict.fromkeys(("left", "right", 0, 1, 2), vehicle.upper)
    decals: Decals = {"left": [], "right": []}
    for key, x0, x1 in ((0, front, front - shape.rake), (2, rear, rear + shape.slope)):
        decals[key] = [(_pane((x0, belt, foot), (x1, roof, top)), vehicle.tint)]
    decals[1] = _lanes(vehicle, profile[1], profile[2], top)
    panes = {"bus": 6, "van": 1, "truck": 1, "pickup": 2, "wagon": 3}.get(vehicle.model, 2)
    end = rear if vehicle.model != "van" else front - (front - rear) * 0.4
    lean = shape.slope if vehicle.model != "van" else 0.0
    for low_ends, high_ends in _windows((front, front - shape.rake), (end, end + lean), panes):
        for side, sign in (("left", 1), ("right", -1)):
            corners = [(low_ends[0], 0.12), (high_ends[0], 0.86), (high_ends[1], 0.86), (low_ends[1], 0.12)]
            points = [(x, sign * (foot + (top - foot) * share), belt + (roof - belt) * share) for x, share in corners]
            decals[side].append((points, vehicle.tint))
    paint_solid(canvas, view, solid, colours, decals)


def _pane(foot: Point3, top: Point3) -> list[Point3]:
    """Give the glass of a windscreen from (forward, up, half width) of its foot to that of its top."""

    def at(share: float, inset: float) -> tuple[Point3, Point3]:
        forward, up, half = (a + (b - a) * share for a, b in zip(foot, top, strict=True))
        return (forward, half * inset, up), (forward, -half * inset, up)

    (left, right), (high_left, high_right) = at(0.1, 0.88), at(0.88, 0.88)
    return [left, high_left, high_right, right]


def _windows(start: Point, end: Point, panes: int) -> list[tuple[Point, Point]]:
    """Split the side glass: for each pane its lower and its upper (front, rear)."""
    gap = 0.1

    def along(share: float) -> tuple[float, float]:
        return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share

    windows = []
    for pane in range(panes):
        ahead, behind = along(pane / panes), along((pane + 1) / panes)
        windows.append(((ahead[0] - gap * 1.6, behind[0] + gap), (ahead[1] - gap / 2, behind[1] + gap / 2)))
    return windows


def _cargo(canvas: Canvas, vehicle: Vehicle, shape: Shape, view: View) -> None:
    back, front = -shape.length / 2, -shape.length / 2 + shape.tail - 0.1
    low, high, half = shape.belt - 0.45, 2.9, shape.width / 2
    decals: Decals = {"left": [], "right": []}
    for mark, colour in marks(
        vehicle.pattern, vehicle.cargo, vehicle.accent,
        centre=((back + front) / 2, (low + high) / 2), half=((front - back) / 2 - 0.15, (high - low) / 2 - 0.15),
        period=vehicle.period * 1.4,
    ):  # fmt: skip
        _both(decals, half, mark, colour)
    doors = _upright(back, 0.0, (low + high) / 2, 0.03, (high - low) / 2)
    decals[2] = [(doors, shade(vehicle.cargo, 0.5))]
    colours: dict[str | int, Colour] = dict.fromkeys(("left", "right", 0, 1, 2), vehicle.cargo)
    paint_solid(canvas, view, box(back, front, low, high, half), colours, decals)


def _bed(canvas: Canvas, vehicle: Vehicle, shape: Shape, view: View) -> None:
    back, front, half = (
        -shape.length / 2 + 0.15,
        -shape.length / 2 + shape.tail - 0.15,
        shape.width / 2 * 0.84,
    )
    floor = [view.point(x, y, shape.belt) for x, y in ((back, -half), (back, half), (front, half), (front, -half))]
    canvas.polygon(floor, shade(vehicle.cargo, 0.7))


def _roof(canvas: Canvas, vehicle: Vehicle, shape: Shape, view: View) -> None:
    front, rear = shape.length / 2 - shape.nose - shape.rake, -shape.length / 2 + shape.tail + shape.slope
    roof, half, middle = shape.height, shape.width / 2 * 0.62, (front + rear) / 2
    things: list[tuple[Solid, Colour]] = []
    if vehicle.rack:
        for x in (front - 0.25, rear + 0.25):
            things.append((box(x - 0.06, x + 0.06, roof, roof + 0.1, half), (34, 34, 38)))
    if vehicle.load:
        length = min(1.3, (front - rear) * 0.7) / 2
        things.append((box(middle - length, middle + length, roof + 0.02, roof + 0.32, half * 0.75), vehicle.load))
    if vehicle.bar:
        x = front - 0.3
        things.append((box(x - 0.12, x + 0.12, roof, roof + 0.17, half), vehicle.bar))
    if vehicle.spoiler:
        tail = -shape.length / 2
        high = (shape.belt + 0.2) if shape.tail > 0.5 else roof
        things.append((box(tail, tail + 0.3, high, high + 0.08, shape.width / 2 * 0.85), shade(vehicle.base, 0.6)))
    for solid, colour in sorted(things, key=lambda thing: view.depth(thing[0].profile[0][0])):
        paint_solid(canvas, view, solid, dict.fromkeys(("left", "right", 0, 1, 2), colour), {})


def _wheels(canvas: Canvas, vehicle: Vehicle, shape: Shape, view: View, *, near: bool) -> None:
    side = 1 if view.depth(0, 1.0) > 0 else -1
    left = shape.width / 2 * (1.005 if near else 0.8) * (side if near else -side)
    axles = [shape.length / 2 - max(0.8, shape.nose * 0.65), -shape.length / 2 + 0.85]
    for forward in axles:
        _disc(canvas, view, (forward, left, shape.wheel), shape.wheel, TYRE)
        if near:
            _rim(canvas, vehicle, view, (forward, left, shape.wheel), shape.wheel * 0.68)


def _rim(canvas: Canvas, vehicle: Vehicle, view: View, centre: Point3, radius: float) -> None:
    _disc(canvas, view, centre, radius, vehicle.rim)
    if vehicle.wheel == "ring":
        _disc(canvas, view, centre, radius * 0.62, TYRE)
    elif vehicle.wheel == "steel":
        _disc(canvas, view, centre, radius * 0.4, TYRE)
    elif vehicle.wheel == "spokes":
        forward, left, up = centre
        for turn in (0.0, 2.1, 4.2):
            tips = [
                (forward + radius * math.cos(turn + by), left, up + radius * math.sin(turn + by)) for by in (-0.4, 0.4)
            ]
            canvas.polygon([view.point(*point) for point in (centre, *tips)], TYRE, outlined=False)


def _disc(canvas: Canvas, view: View, centre: Point3, radius: float, colour: Colour) -> None:
    forward, left, up = centre
    turns = [2 * math.pi * corner / 14 for corner in range(14)]
    rim = [view.point(forward + radius * math.cos(t), left, up + radius * math.sin(t)) for t in turns]
    canvas.polygon(rim, colour, outlined=False)
