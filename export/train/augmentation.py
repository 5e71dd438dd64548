"""Augmentation of crops on their pixels: mirrored, moved, partly erased."""

import math

import numpy as np

from reidserve.embed import Batch, Image
from reidserve.export.train.settings import Settings

ERASED_AREA = (0.02, 0.4)
"""Least and most of an image that is erased, as a share (Zhong et al., 2020)."""
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Least and most height / width of what is erased."""

_AUGMENTATION = 2
_ATTEMPTS = 100


def augment(batch: Batch, settings: Settings, *, epoch: int, step: int) -> Batch:
    """A copy of a batch, each image mirrored, moved and erased by chance; seed, epoch and step decide how."""
    rng = np.random.default_rng((_AUGMENTATION, settings.seed, epoch, step))
    pad = round(settings.pad * batch.shape[1])
    fill = np.round(np.array(settings.mean) * 255).astype(np.uint8)
    mirrored = rng.random(len(batch)) < settings.flip
    shifts = rng.integers(-pad, pad + 1, (len(batch), 2))
    erased = rng.random(len(batch)) < settings.erase
    changed = np.empty_like(batch)
    for image, before, flip, (down, right) in zip(changed, batch, mirrored, shifts, strict=True):
        move(before[:, ::-1] if flip else before, image, down=int(down), right=int(right))
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
