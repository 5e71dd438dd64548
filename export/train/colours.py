"""Colour jitter: brightness, contrast, saturation and hue changed by chance, as torchvision does to PIL images."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import ImageEnhance

from reidserve.embed import Batch, Image
from reidserve.export.train.settings import AugmentSettings


def jitter(batch: Batch, settings: AugmentSettings, rng: np.random.Generator) -> None:
    """Change the colours of each image in place, in random order: by factors from [1 - x, 1 + x], the hue by a turn."""
    limits = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    changes = np.flatnonzero(limits)
    if not len(changes):
        return
    amounts = rng.uniform(-limits, limits, (len(batch), len(limits)))
    orders = rng.permuted(np.tile(changes, (len(batch), 1)), axis=1)
    for row, (amount, order) in enumerate(zip(amounts, orders, strict=True)):
        batch[row] = recolour(batch[row], amount, order)


def recolour(image: Image, amounts: Sequence[float], order: Sequence[int]) -> Image:
    """An image after the changes of `order` by their `amounts`: brightness 0, contrast 1, saturation 2, hue 3."""
    picture = Pillow.fromarray(image)
    for change in order:
        picture = CHANGES[change](picture, amounts[change])
    return np.asarray(picture)


def _turn_hue(picture: Pillow.Image, amount: float) -> Pillow.Image:
    hue, saturation, value = picture.convert("HSV").split()
    # 256 steps are the whole circle.
    turned = hue.point([(step + round(amount * 256)) % 256 for step in range(256)])
    return Pillow.merge("HSV", (turned, saturation, value)).convert("RGB")


CHANGES: Sequence[Callable[[Pillow.Image, float], Pillow.Image]] = (
    lambda picture, amount: ImageEnhance.Brightness(picture).enhance(1 + amount),
    lambda picture, amount: ImageEnhance.Contrast(picture).enhance(1 + amount),
    lambda picture, amount: ImageEnhance.Color(picture).enhance(1 + amount),
    _turn_hue,
)
"""Brightness, contrast, saturation, hue."""
