"""Cameras: a place, a direction, a light and a sensor; none of them knows who walks by."""

import math
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from reidserve.datasets.synth.canvas import Layer, Layers
from reidserve.datasets.synth.draws import between, chance, generator
from reidserve.datasets.synth.scenes import HEIGHT, WIDTH, draw_scene
from reidserve.datasets.synth.spec import Domain, Kind
from reidserve.datasets.synth.views import View
from reidserve.datasets.synth.worlds import WORLDS

YAWS: dict[Kind, tuple[int, ...]] = {
    "person": (0, 180, 75, 315, 250, 145, 35, 215, 105),
    "vehicle": (40, 140, 300, 235, 75, 320, 110, 215, 60),
}
"""How most targets are turned, degrees, camera by camera."""


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A camera of a world.

    Attributes:
        scene: what it looks at, RGB.
        yaw: how most of what goes by is turned, degrees.
        elevation: degrees over the horizon.
        tone: 3 x 256 grey levels, what red, green and blue of the world become.
        light: direction on the picture that light comes from, right and down.
        roundness: how strongly bodies are shaded away from the light.
        blur: radius of the lens's blur, pixels.
        noise: sensor noise, grey levels.
        quality: of its JPEG files.
    """

    scene: Image.Image
    yaw: float
    elevation: float
    tone: tuple[int, ...]
    light: tuple[float, float]
    roundness: float
    blur: float
    noise: float
    quality: int


@lru_cache(maxsize=32)
def find_camera(kind: Kind, domain: Domain, seed: int, number: int) -> Camera:
    """Give a camera, number 1 the first."""
    rng, world = generator(seed, domain, kind, "camera", number), WORLDS[domain]
    gain, gamma = between(rng, *world.gain), between(rng, *world.gamma)
    casts = [share * (1 + between(rng, -world.cast, world.cast)) for share in world.lamp]
    levels = np.arange(256) / 255
    tone = [round(min(1.0, (level * gain * cast) ** gamma) * 255) for cast in casts for level in levels.tolist()]
    turn = between(rng, math.pi, 2 * math.pi)
    return Camera(
        scene=draw_scene(rng, world, kind, number),
        yaw=YAWS[kind][number - 1] + between(rng, -8, 8),
        elevation=between(rng, 12, 26),
        tone=tuple(tone),
        light=(math.cos(turn), math.sin(turn)),
        roundness=world.roundness,
        blur=between(rng, *world.blur),
        noise=between(rng, *world.noise),
        quality=int(rng.integers(world.quality[0], world.quality[1] + 1)),
    )


def draw_view(rng: Generator, camera: Camera, kind: Kind) -> View:
    """Draw how a target that goes by is turned; one in five goes the other way."""
    yaw = camera.yaw + float(rng.normal(0, 20 if kind == "person" else 12))
    if chance(rng, 0.2):
        yaw += 180
    if kind == "person":
        return View(yaw)
    return View(yaw, camera.elevation + between(rng, -2, 2), 0.03)


def see(rng: Generator, camera: Camera, target: Layers, before: Layers | None) -> tuple[bytes, NDArray[np.bool_]]:
    """Take the picture of a target: JPEG bytes, and (H, W) where the target is seen.

    `before` is what stands in front of the target, if anything.
    """
    height, width, _ = target.cover.shape
    cover = target.cover
    picture = _window(rng, camera, width, height) * (1 - cover) * (1 - np.float32(0.4) * target.shadow)
    picture += target.colours * _modelled(camera, cover)
    if before:
        picture = picture * (1 - before.cover) + before.colours
        cover = cover * (1 - before.cover)
    picture *= np.float32(between(rng, 0.88, 1.1))
    return _developed(rng, camera, picture), cover[..., 0] > 0.5


def _window(rng: Generator, camera: Camera, width: int, height: int) -> Layer:
    left = int(rng.integers(0, WIDTH - width + 1))
    top = int(rng.integers((HEIGHT - height) // 4, (HEIGHT - height) // 2 + 1))
    window = camera.scene.crop((left, top, left + width, top + height))
    if chance(rng, 0.5):
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(window, np.float32)


def _modelled(camera: Camera, cover: Layer) -> Layer:
    """Give the light on a body: its edges taken for round, brighter towards the light."""
    soft = Image.fromarray((cover[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(3))
    height = np.asarray(soft, np.float32) / np.float32(255)
    down, right = np.gradient(height)
    slope = -(right * np.float32(camera.light[0]) + down * np.float32(camera.light[1]))
    light: Layer = np.clip(1 + np.float32(camera.roundness * 3) * slope, 0.55, 1.4)[..., None]
    return light


def _developed(rng: Generator, camera: Camera, picture: Layer) -> bytes:
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(camera.noise)
    blurred = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(camera.blur))
    toned = np.asarray(blurred.point(camera.tone), np.float32)
    encoded = BytesIO()
    Image.fromarray(np.clip(toned + noise, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=camera.quality)
    return encoded.getvalue()
