"""Crops as pixels: decoded and resized once with their masks, then read from a file without a name."""

import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import Crop, path_to_text
from reidserve.embed import Batch, Image, ResizeFilter, decode, map_ahead, read_image, resize
from reidserve.errors import DatasetError, ImageError, ReidError

MOST_UNREADABLE = 0.05
"""Share of a part's files that may be unreadable; more of them are no accident."""
NAMED = 3

_AHEAD = 64

Coverage = NDArray[np.uint8]
"""(N, height, width): how much of a pixel is the target's, 0 to 255; 255 throughout an image without a mask."""

_Loaded = tuple[Image, NDArray[np.uint8] | None]
"""An image and its coverage, at the network's input size."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """N crops that could be read, at the network's input size.

    Attributes:
        crops: N.
        pixels: (N, height, width, 3) uint8 RGB, on disk and in the page cache while there is room.
        failures: the crops left out, and why.
        coverage: what is target and what background, likewise; None where masks were not asked for.
        backgrounds: (B,) int64, the rows of images with a background; none where masks were not asked for.
    """

    crops: Sequence[Crop]
    pixels: Batch
    failures: Sequence[tuple[str, str]]
    coverage: Coverage | None = None
    backgrounds: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.crops)


def read_pictures(
    part: str,
    crops: Sequence[Crop],
    *,
    height: int,
    width: int,
    resize_filter: ResizeFilter,
    scratch: Path,
    masks: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Pictures:
    """Decode and resize crops as serving does, and their masks if asked; `progress` hears of each that is done.

    The pixels lie in `scratch`, in a file that has no name and goes with the process.

    Raises:
        DatasetError: too many of them cannot be read.
        OSError: there is no room in `scratch`.
    """
    fit = partial(resize, height=height, width=width, resize_filter=resize_filter)
    pixels = reserve((len(crops), height, width, 3), scratch)
    coverage = reserve((len(crops), height, width), scratch) if masks else None
    readable: list[Crop] = []
    failures: list[tuple[str, str]] = []
    covered: list[bool] = []
    with closing(map_ahead(partial(_load, fit=fit, masks=masks), crops, ahead=_AHEAD)) as loading:
        for crop, loaded in zip(crops, loading, strict=True):
            if isinstance(loaded, Exception):
                failures.append((path_to_text(crop.path), str(loaded)))
            else:
                pixels[len(readable)], mask = loaded
                if coverage is not None:
                    coverage[len(readable)] = 255 if mask is None else mask
                readable.append(crop)
                covered.append(mask is not None)
            progress(1)
    _check_failures(part, failures, len(crops))
    known = None if coverage is None else coverage[: len(readable)]
    return Pictures(readable, pixels[: len(readable)], failures, known, np.flatnonzero(covered))


def reserve(shape: tuple[int, ...], scratch: Path) -> NDArray[np.uint8]:
    """Room for uint8 values in a file of `scratch` without a name.

    Raises:
        OSError: there is no such room.
    """
    with tempfile.TemporaryFile(dir=scratch) as file:
        size = math.prod(shape)
        try:
            # Reserved before it is written: a full disk is an error here, and would end the process later.
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        except OSError as error:
            what = f"{error.strerror}: {size:,} bytes of pixels are to lie here"
            raise OSError(error.errno, what, str(scratch)) from error
        return np.memmap(file, np.uint8, mode="r+", shape=shape)


def _load(crop: Crop, *, fit: Callable[[Image], Image], masks: bool) -> _Loaded | Exception:
    try:
        image = decode(read_image(crop.path))
        mask = _read_mask(crop.mask, image.shape) if masks and crop.mask else None
        return fit(image), None if mask is None else fit(mask)[:, :, 0]
    except (ReidError, OSError) as error:
        return error


def _read_mask(path: Path, shape: tuple[int, ...]) -> Image | None:
    """A mask as an image of this shape; None where it shows no target."""
    try:
        mask = decode(read_image(path))
    except (ReidError, OSError) as error:
        raise ImageError(f"its mask {path_to_text(path)} cannot be read: {error}") from error
    if mask.shape != shape:
        raise ImageError(
            f"its mask {path_to_text(path)} is {mask.shape[1]}x{mask.shape[0]} pixels, it is {shape[1]}x{shape[0]}"
        )
    if 0 < mask.max() < 128:
        raise ImageError(
            f"its mask {path_to_text(path)} holds values up to {mask.max()}: expected 255 where the target is seen"
        )
    return mask if mask.any() else None


def _check_failures(part: str, failures: Sequence[tuple[str, str]], total: int) -> None:
    if len(failures) > MOST_UNREADABLE * total:
        named = "; ".join(f"{name}: {reason}" for name, reason in itertools.islice(failures, NAMED))
        raise DatasetError(
            f"{len(failures)} of {total} {part} images cannot be read, more than {MOST_UNREADABLE:.0%}: {named}"
            + ("; ..." if len(failures) > NAMED else "")
        )
