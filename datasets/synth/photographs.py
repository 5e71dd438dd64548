"""Photographs: one target before one camera, in a box that a detector might have drawn."""

from io import BytesIO

import numpy as np
from numpy.random import Generator
from PIL import Image

from reidserve.datasets.synth.bodies import extent, footprint, paint_vehicle
from reidserve.datasets.synth.cameras import Camera, draw_view, find_camera, see
from reidserve.datasets.synth.canvas import Canvas, Layers, rectangle, shade
from reidserve.datasets.synth.draws import between, chance, generator, pick
from reidserve.datasets.synth.figures import draw_pose, paint_person
from reidserve.datasets.synth.persons import draw_person
from reidserve.datasets.synth.shots import Shot
from reidserve.datasets.synth.spec import SynthSpec
from reidserve.datasets.synth.vehicles import draw_vehicle
from reidserve.datasets.synth.views import View
from reidserve.datasets.synth.worlds import WORLDS, World

GROUPS = 16
"""Teams and fleets of a world: targets of one differ in all but colours."""
PERSON_SIZE = (64, 128)
VEHICLE_WIDTH = 128


def take(spec: SynthSpec, shot: Shot) -> tuple[bytes, bytes]:
    """Take a picture: a JPEG, and the PNG of its mask (255 where the target is seen)."""
    world = WORLDS[spec.domain]
    camera = find_camera(spec.kind, spec.domain, spec.seed, shot.camera)
    target = generator(spec.seed, spec.domain, spec.kind, shot.role, shot.target)
    rng = generator(spec.seed, spec.domain, spec.kind, shot.role, shot.target, shot.camera, shot.index)
    portray = _person if spec.kind == "person" else _vehicle
    group = generator(spec.seed, spec.domain, spec.kind, "group", int(target.integers(GROUPS)))
    drawn = portray(target, group, rng, world, camera, lost=shot.role == "junk")
    height, width, _ = drawn.cover.shape
    before = _obstacle(rng, spec, world, camera, (width, height)) if chance(rng, 0.3) else None
    picture, seen = see(rng, camera, drawn, before)
    mask = BytesIO()
    Image.fromarray(seen.astype(np.uint8) * np.uint8(255)).save(mask, "PNG", compress_level=1)
    return picture, mask.getvalue()


def _person(target: Generator, group: Generator, rng: Generator, world: World, camera: Camera, *, lost: bool) -> Layers:
    person, view, pose = draw_person(target, world, group), draw_view(rng, camera, "person"), draw_pose(rng)
    width, height = PERSON_SIZE
    x, y, scale = _box_error(rng, lost=lost)
    unit = height * 0.96 * scale
    origin = (width * (0.5 + x), height / 2 + unit * 0.5 + height * y)
    canvas = Canvas(width, height, scale=unit, origin=origin, outline=world.outline)
    canvas.shadow([(-0.15, -0.005), (-0.06, 0.03), (0.06, 0.03), (0.15, -0.005), (0.06, -0.03), (-0.06, -0.03)])
    paint_person(canvas, person, view, pose)
    return canvas.layers()


def _vehicle(
    target: Generator, group: Generator, rng: Generator, world: World, camera: Camera, *, lost: bool
) -> Layers:
    vehicle, view = draw_vehicle(target, world, group), draw_view(rng, camera, "vehicle")
    (left, low), (right, high) = extent(vehicle, view)
    width = VEHICLE_WIDTH
    height = round(min(112.0, max(80.0, width * (high - low) / (right - left) + between(rng, 0, 10))))
    x, y, scale = _box_error(rng, lost=lost)
    unit = min(width * 0.92 / (right - left), height * 0.9 / (high - low)) * scale
    origin = (width * (0.5 + x) - (left + right) / 2 * unit, height * (0.5 + y) + (low + high) / 2 * unit)
    canvas = Canvas(width, height, scale=unit, origin=origin, outline=world.outline * 3)
    canvas.shadow(footprint(vehicle, view))
    paint_vehicle(canvas, vehicle, view)
    return canvas.layers()


def _box_error(rng: Generator, *, lost: bool) -> tuple[float, float, float]:
    """Draw how far the target is from the middle of its box, shares of the box right and down, and its scale."""
    if lost:
        side = pick(rng, (-1, 1))
        return side * between(rng, 0.5, 0.7), between(rng, -0.3, 0.3), between(rng, 1.0, 1.6)
    if chance(rng, 0.15):
        return between(rng, -0.1, 0.1), between(rng, -0.1, 0.16), between(rng, 0.85, 1.25)
    return between(rng, -0.04, 0.04), between(rng, -0.025, 0.025), between(rng, 0.93, 1.06)


def _obstacle(rng: Generator, spec: SynthSpec, world: World, camera: Camera, size: tuple[int, int]) -> Layers:
    """Draw what stands in front: a pole, a railing, a bush, or half a stranger."""
    width, height = size
    canvas = Canvas(width, height, scale=height, origin=(width / 2, height), outline=world.outline)
    edge = width / height / 2
    side = pick(rng, (-1, 1))
    colour = shade(pick(rng, world.walls), between(rng, 0.5, 0.9))
    match pick(rng, ("pole", "railing", "bush", "stranger")):
        case "pole":
            x, half = between(rng, -edge * 0.7, edge * 0.7), between(rng, 0.015, 0.03)
            canvas.polygon(rectangle(x, 0.5, half, 0.5), colour)
        case "railing":
            for up in (0.07, 0.18):
                canvas.polygon(rectangle(0.0, up, edge, 0.012), colour)
        case "bush":
            leaf = shade((84, 112, 62), between(rng, 0.6, 1.1))
            for _ in range(5):
                centre = side * edge * between(rng, 0.45, 1.1), between(rng, 0.0, 0.14)
                canvas.ellipse(centre, 0.09, 0.08, shade(leaf, between(rng, 0.85, 1.15)))
        case _:
            return _stranger(rng, spec, world, camera, size, side)
    return canvas.layers()


def _stranger(
    rng: Generator, spec: SynthSpec, world: World, camera: Camera, size: tuple[int, int], side: int
) -> Layers:
    width, height = size
    person_height = height * (0.95 if spec.kind == "person" else 0.6)
    x = width / 2 + side * (width / 2 + person_height * between(rng, -0.04, 0.06))
    canvas = Canvas(width, height, scale=person_height, origin=(x, height * 1.02), outline=world.outline)
    paint_person(canvas, draw_person(rng, world, rng), View(camera.yaw), draw_pose(rng))
    return canvas.layers()
