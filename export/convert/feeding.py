"""Feeding: what a backbone was shown in training, and the same by hand."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Batch, Preprocessing, ResizeFilter
from reidserve.embed.contract import MAX_SIDE
from reidserve.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """How a backbone wants to be fed, as whoever trained it knows.

    Attributes:
        height: input height, pixels.
        width: input width, pixels.
        resize: the Pillow filter its crops were resized with.
        preprocessing: what its training did to pixels in 0..1.

    Raises:
        ExportError: a side, mean or standard deviation that no model can have.
    """

    height: int
    width: int
    resize: ResizeFilter
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not 1 <= side <= MAX_SIDE:
                raise ExportError(f"the input's {name} must be 1 to {MAX_SIDE} pixels, got {side}")
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if not all(math.isfinite(number) for number in (*mean, *std)) or min(std) <= 0:
            raise ExportError(f"mean and std must be finite and std above 0, got mean {mean} and std {std}")


def feed_by_hand(batch: Batch, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """ToTensor and Normalize of torchvision on a Batch: float32 (N, 3, height, width)."""
    pixels = batch[..., ::-1] if preprocessing.colour == "bgr" else batch
    unit = pixels.astype(np.float32) / np.float32(255)
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(((unit - mean) / std).transpose(0, 3, 1, 2))
