"""Augmentation of crops on their pixels: mirrored, moved, recoloured, turned, partly erased."""

import math

import numpy as np
from PIL import Image as Pillow

from reidserve.embed import Batch, Image
from reidserve.export.train.colours import jitter
from reidserve.export.train.settings import Settings

ERASED_AREA = (0.02, 0.4)
"""Least and most of an image that is erased, as a share (Zhong et al., 2020)."""
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Least and most height / width of what is erased."""

_ATTEMPTS = 100


def augment(batch: Batch, settings: Settings, rng: np.random.Generator) -> Batch:
    """A copy of a batch, each image by chance mirrored, moved, recoloured, turned and erased, in this order.

    Colours and turns are drawn from generators of their own: asking for them leaves the rest as it was.
    """
    colours, turns = rng.spawn(2)
    pad = round(settings.augment.pad * batch.shape[1])
    fill = np.round(np.array(settings.input.mean) * 255).astype(np.uint8)
    mirrored = rng.random(len(batch)) < settings.augment.flip
    shifts = rng.integers(-pad, pad + 1, (len(batch), 2))
    erased = rng.random(len(batch)) < settings.augment.erase
    changed = np.empty_like(batch)
    for image, before, flip, (down, right) in zip(changed, batch, mirrored, shifts, strict=True):
        move(before[:, ::-1] if flip else before, image, down=int(down), right=int(right))
    jitter(changed, settings.augment, colours)
    if settings.augment.rotate:
        for image, degrees in zip(changed, turns.uniform(-1, 1, len(batch)), strict=True):
            image[:] = turn(image, fill, degrees=degrees * settings.augment.rotate)
    for row in np.flatnonzero(erased):
        erase(changed[row], fill, rng)
    return changed


def move(image: Image, into: Image, *, down: int, right: int) -> None:
    """Write an image, moved, with black where it left: a random crop of the image with a black border."""
    height, width = image.shape[:2]
    into[:] = 0
    into[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]


def turn(image: Image, fill: Image, *, degrees: float) -> Image:
    """An image turned about its centre, to the left, with `fill` (3,) where it left."""
    red, green, blue = fill.tolist()
    turned = Pillow.fromarray(image).rotate(degrees, Pillow.Resampling.BILINEAR, fillcolor=(red, green, blue))
    return np.asarray(turned)


def erase(image: Image, fill: Image, rng: np.random.Generator) -> None:
    """Fill a rectangle of a random area and aspect in place, as in random erasing (Zhong et al., 2020)."""
    height, width = image.shape[:2]
    for _ in range(_ATTEMPTS):
        area, aspect = rng.uniform(*ERASED_AREA) * height * width, rng.uniform(*ERASED_ASPECT)
        high, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < high < height and 0 < wide < width:
            top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
            image[top : top + high, left : left + wide] = fill
            return
