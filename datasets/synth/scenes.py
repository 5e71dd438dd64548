"""Scenes: the place a camera looks at, wider than its pictures, with no target in it."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from reidserve.datasets.synth.canvas import Colour, mix, shade
from reidserve.datasets.synth.draws import between, chance, pick
from reidserve.datasets.synth.spec import Kind
from reidserve.datasets.synth.worlds import World

BAYS, BAY, HEIGHT = 16, 100, 160
"""A scene is a row of bays, each so many pixels wide and high."""
MUTED = 0.5
"""How far places are drawn towards grey: what is worth seeing stands out."""
WIDTH = BAYS * BAY
"""Pixels of a scene."""
HORIZON: dict[Kind, float] = {"person": 0.5, "vehicle": 0.24}
"""Share of a scene above its horizon; vehicles are seen from higher up."""


def draw_scene(rng: Generator, world: World, kind: Kind, number: int) -> Image.Image:
    """Draw the scene of a camera, RGB; the number says which kind of place most of it is."""
    horizon = round(HEIGHT * HORIZON[kind] * between(rng, 0.9, 1.1))
    scene = _paved(rng, _ground(rng, world, horizon), horizon)
    if kind == "vehicle":
        _lanes(ImageDraw.Draw(scene), rng, horizon)
    places = _INDOORS if world.indoors else _OUTDOORS
    for left in range(0, WIDTH, BAY):
        bay = scene.crop((left, 0, left + BAY, HEIGHT))
        place = places[number % len(places)] if chance(rng, 0.4) else pick(rng, places)
        place(ImageDraw.Draw(bay), rng, _tint(rng, world.walls), horizon)
        scene.paste(bay, (left, 0))
    grain = rng.normal(0, 5, (HEIGHT, WIDTH, 1)).repeat(3, axis=2)
    grained = np.clip(np.asarray(scene, np.float32) + grain, 0, 255).astype(np.uint8)
    return Image.fromarray(grained).filter(ImageFilter.GaussianBlur(0.8))


def _tint(rng: Generator, colours: tuple[Colour, ...]) -> Colour:
    """Draw a muted colour.

    Colours change along a scene as much as between scenes: else the place would give a camera's pictures away, and
    whatever looks at colours alone would find the camera again in place of the target.
    """
    tint = mix(pick(rng, colours), pick(rng, colours), float(rng.random()))
    grey = sum(tint) // 3
    return shade(mix(tint, (grey, grey, grey), MUTED), between(rng, 0.75, 1.2))


def _ground(rng: Generator, world: World, horizon: int) -> Image.Image:
    """Draw the ground, its colour changing from bay to bay, lighter where it is near."""
    tints = np.array([_tint(rng, world.ground) for _ in range(BAYS + 1)])
    along = np.arange(WIDTH) / BAY
    row = np.stack([np.interp(along, np.arange(BAYS + 1), tints[:, channel]) for channel in range(3)], axis=-1)
    light = np.interp(np.arange(HEIGHT), [0, horizon, HEIGHT], [0.8, 0.8, 1.08])
    return Image.fromarray(np.clip(light[:, None, None] * row, 0, 255).astype(np.uint8))


def _paved(rng: Generator, ground: Image.Image, horizon: int) -> Image.Image:
    """Darken the joints of a paving that goes back to the horizon."""
    joints = Image.new("RGB", ground.size, (255, 255, 255))
    draw, dark = ImageDraw.Draw(joints), (214, 214, 214)
    spread, step, row = between(rng, 14, 24), between(rng, 2.5, 5), float(horizon)
    for line in range(round(WIDTH / spread) + 1):
        draw.line([(line * spread, horizon), ((line * spread - WIDTH / 2) * 1.25 + WIDTH / 2, HEIGHT)], dark)
    while row < HEIGHT:
        draw.line([(0, row), (WIDTH, row)], dark)
        row, step = row + step, step * 1.35
    return ImageChops.multiply(ground, joints)


def _lanes(draw: ImageDraw.ImageDraw, rng: Generator, horizon: int) -> None:
    """Paint the markings of a road: along it, or bays to park in."""
    paint = pick(rng, ((206, 204, 196), (196, 168, 70)))
    if chance(rng, 0.5):
        for share in (0.25, 0.72):
            row = horizon + (HEIGHT - horizon) * share
            for left in range(0, WIDTH, 56):
                draw.polygon([(left, row), (left + 30, row), (left + 32, row + 4), (left + 1, row + 4)], paint)
        return
    lean = between(rng, -40, 40)
    for left in range(-60, WIDTH + 60, 74):
        draw.line([(left, horizon + 12), (left + lean, HEIGHT)], paint, 3)


def _sky(draw: ImageDraw.ImageDraw, horizon: int) -> None:
    for row in range(horizon):
        draw.line([(0, row), (BAY, row)], mix((138, 170, 208), (214, 220, 222), row / horizon))


def _street(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """Houses with rows of windows, down to a kerb."""
    left = -20.0
    while left < BAY:
        width, colour = between(rng, 50, 100), shade(wall, between(rng, 0.75, 1.2))
        draw.rectangle([left, 0, left + width, horizon], colour)
        glass = mix(colour, (60, 76, 92), between(rng, 0.5, 0.9))
        for x in np.arange(left + 6, left + width - 12, between(rng, 16, 26)):
            for y in range(6, horizon - 18, 24):
                draw.rectangle([x, y, x + 9, y + 14], glass, shade(colour, 1.15))
        left += width
    draw.rectangle([0, horizon, BAY, horizon + 5], shade(wall, 0.6))


def _park(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """Grass, trees and a hedge under the sky."""
    _sky(draw, horizon)
    draw.rectangle([0, horizon - 4, BAY, horizon + 22], (92, 124, 66))
    for left in rng.integers(-20, BAY, 11):
        x, radius = int(left), between(rng, 14, 30)
        leaf = mix((58, 96, 48), (124, 140, 62), float(rng.random()))
        draw.rectangle([x - 3, horizon - 30, x + 3, horizon + 6], (84, 64, 46))
        for dx, dy in rng.uniform(-12, 12, (5, 2)):
            y = horizon - 34 + dy
            draw.ellipse(
                [x + dx - radius, y - radius, x + dx + radius, y + radius * 0.7],
                shade(leaf, between(rng, 0.8, 1.2)),
            )
    draw.rectangle([0, horizon - 2, BAY, horizon + 8], (66, 92, 50))


def _plaza(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """Towers far away, under the sky."""
    _sky(draw, horizon)
    for left in range(-10, BAY, 34):
        height, colour = between(rng, 0.2, 0.9) * horizon, mix(wall, (190, 200, 210), between(rng, 0.2, 0.6))
        draw.rectangle([left, horizon - height, left + 28, horizon], colour)
        for y in range(round(horizon - height) + 4, horizon - 4, 6):
            draw.line([(left + 3, y), (left + 25, y)], shade(colour, 0.8), 2)


def _fence(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """A wall of bricks with posters and a railing."""
    draw.rectangle([0, 0, BAY, horizon], wall)
    for y in range(0, horizon, 7):
        draw.line([(0, y), (BAY, y)], shade(wall, 0.82))
        for x in range((y // 7 % 2) * 8, BAY, 16):
            draw.line([(x, y), (x, y + 7)], shade(wall, 0.82))
    for left in range(20, BAY, 90):
        _poster(draw, rng, left, max(4, horizon - 60), 30, 40)
    for left in range(0, BAY, 12):
        draw.line([(left, horizon - 18), (left, horizon + 4)], (70, 74, 78), 2)
    draw.line([(0, horizon - 18), (BAY, horizon - 18)], (70, 74, 78), 3)


def _poster(draw: ImageDraw.ImageDraw, rng: Generator, left: int, top: int, width: int, height: int) -> None:
    paper, ink = ((int(c[0]), int(c[1]), int(c[2])) for c in rng.integers(50, 230, (2, 3)))
    draw.rectangle([left, top, left + width, top + height], paper)
    draw.rectangle([left + 4, top + 5, left + width - 4, top + height // 2], ink)
    for y in range(top + height // 2 + 5, top + height - 3, 5):
        draw.line([(left + 4, y), (left + width - 6, y)], ink)


def _lamps(draw: ImageDraw.ImageDraw, colour: Colour, bottom: int, lamp: Colour) -> None:
    draw.rectangle([0, 0, BAY, bottom], colour)
    for left in range(12, BAY, 64):
        draw.rectangle([left, bottom - 6, left + 36, bottom - 2], lamp)


def _corridor(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """Panels and doors under lamps."""
    draw.rectangle([0, 0, BAY, horizon], wall)
    for left in range(0, BAY, 42):
        draw.line([(left, 0), (left, horizon)], shade(wall, 0.75), 2)
        if chance(rng, 0.5):
            draw.rectangle([left + 8, horizon - 52, left + 34, horizon], shade(wall, between(rng, 0.5, 0.8)))
    _lamps(draw, shade(wall, 0.6), 14, (255, 236, 190))


def _shops(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """Lit shop windows full of goods."""
    draw.rectangle([0, 0, BAY, horizon], shade(wall, 0.6))
    for left in range(4, BAY, 84):
        draw.rectangle([left, 16, left + 72, horizon - 6], mix(wall, (255, 226, 170), 0.55))
        for y in range(30, horizon - 10, 16):
            draw.line([(left, y + 9), (left + 72, y + 9)], shade(wall, 0.7), 2)
            for x in range(left + 4, left + 66, 9):
                red, green, blue = (int(c) for c in rng.integers(60, 220, 3))
                draw.rectangle([x, y + int(rng.integers(0, 5)), x + 6, y + 8], (red, green, blue))
        draw.rectangle([left, 4, left + 72, 13], (int(rng.integers(90, 230)), 90, int(rng.integers(60, 200))))


def _platform(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """Pale tiles, pillars and the yellow line of a platform."""
    tile = mix(wall, (210, 214, 206), 0.5)
    draw.rectangle([0, 0, BAY, horizon], tile)
    for step in range(0, BAY, 9):
        draw.line([(step, 0), (step, horizon)], shade(tile, 0.88))
    for y in range(0, horizon, 9):
        draw.line([(0, y), (BAY, y)], shade(tile, 0.88))
    draw.rectangle([0, horizon - 30, BAY, horizon - 22], shade(wall, 0.7))
    draw.rectangle([0, horizon + 14, BAY, horizon + 20], (206, 172, 52))
    for left in range(30, BAY, 110):
        draw.rectangle([left, 0, left + 18, horizon + 10], shade(wall, 0.8), shade(wall, 0.5))
    _lamps(draw, shade(tile, 0.5), 10, (224, 240, 255))


def _garage(draw: ImageDraw.ImageDraw, rng: Generator, wall: Colour, horizon: int) -> None:
    """Bare walls with a painted band, and beams in the dark."""
    dark = shade(wall, 0.55)
    draw.rectangle([0, 0, BAY, horizon], dark)
    draw.rectangle([0, horizon - 24, BAY, horizon - 12], mix(dark, (200, 90, 40), between(rng, 0.4, 0.8)))
    for left in range(10, BAY, 76):
        draw.rectangle([left, 0, left + 14, horizon + 6], shade(dark, 1.3))
        draw.rectangle([left, horizon - 24, left + 14, horizon - 12], (210, 190, 60))
    _lamps(draw, shade(dark, 0.6), 8, (255, 214, 140))


Place = Callable[[ImageDraw.ImageDraw, Generator, Colour, int], None]
_OUTDOORS: tuple[Place, ...] = (_street, _park, _plaza, _fence)
_INDOORS: tuple[Place, ...] = (_corridor, _shops, _platform, _garage)
