"""Statistics of a training set's pixels, to feed a network with."""

from dataclasses import replace

import numpy as np

from reidserve.embed import Batch
from reidserve.errors import DatasetError
from reidserve.export.train.material import Material
from reidserve.export.train.sections import Triple
from reidserve.export.train.settings import Settings

_CHUNK = 256


def pixel_statistics(pixels: Batch) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel of (N, H, W, 3), of pixels in 0..1, from exact integer sums.

    Raises:
        DatasetError: there is no image, or a channel is one value throughout.
    """
    total, squares = np.zeros(3, np.uint64), np.zeros(3, np.uint64)
    for start in range(0, len(pixels), _CHUNK):
        chunk = pixels[start : start + _CHUNK].reshape(-1, 3)
        total += chunk.sum(axis=0, dtype=np.uint64)
        squares += np.square(chunk, dtype=np.uint16).sum(axis=0, dtype=np.uint64)
    count = pixels.size // 3
    # Integers of any size: n * sum(v * v) - sum(v)**2 loses no digit.
    spreads = [count * int(square) - int(one) ** 2 for one, square in zip(total, squares, strict=True)]
    if not all(spreads):
        raise DatasetError(f"a channel of {len(pixels)} images is one value throughout: there is nothing to learn from")
    red, green, blue = (int(one) / (255 * count) for one in total)
    deviations = [spread**0.5 / (255 * count) for spread in spreads]
    return (red, green, blue), (deviations[0], deviations[1], deviations[2])


def resolve(settings: Settings, material: Material) -> Settings:
    """Settings with the training set's own statistics in place of the word "dataset".

    Raises:
        DatasetError: as `pixel_statistics`.
    """
    if settings.input.statistics == "given":
        return settings
    mean, std = pixel_statistics(material.train.pixels)
    return replace(settings, input=replace(settings.input, statistics="given", mean=mean, std=std))
