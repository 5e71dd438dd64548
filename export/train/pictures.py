"""Crops as pixels: decoded and resized once, then read from a file without a name."""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reidserve.datasets import Crop, path_to_text
from reidserve.embed import Batch, Image, ResizeFilter, decode, map_ahead, read_image, resize
from reidserve.errors import DatasetError, ReidError

MOST_UNREADABLE = 0.05
"""Share of a part's files that may be unreadable; more of them are no accident."""
NAMED = 3

_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Pictures:
    """N crops that could be read, at the network's input size.

    Attributes:
        crops: N.
        pixels: (N, height, width, 3) uint8 RGB, on disk and in the page cache while there is room.
        failures: the crops left out, and why.
    """

    crops: Sequence[Crop]
    pixels: Batch
    failures: Sequence[tuple[str, str]]

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
    progress: Callable[[int], None] = lambda count: None,
) -> Pictures:
    """Decode and resize crops as serving does; `progress` hears of each that is done.

    The pixels lie in `scratch`, in a file that has no name and goes with the process.

    Raises:
        DatasetError: too many of them cannot be read.
        OSError: there is no room in `scratch`.
    """

    def load(crop: Crop) -> Image | Exception:
        try:
            return resize(decode(read_image(crop.path)), height=height, width=width, resize_filter=resize_filter)
        except (ReidError, OSError) as error:
            return error

    pixels = _reserve((len(crops), height, width, 3), scratch)
    readable: list[Crop] = []
    failures: list[tuple[str, str]] = []
    with closing(map_ahead(load, crops, ahead=_AHEAD)) as loading:
        for crop, loaded in zip(crops, loading, strict=True):
            if isinstance(loaded, Exception):
                failures.append((path_to_text(crop.path), str(loaded)))
            else:
                pixels[len(readable)] = loaded
                readable.append(crop)
            progress(1)
    _check_failures(part, failures, len(crops))
    return Pictures(readable, pixels[: len(readable)], failures)


def _reserve(shape: tuple[int, int, int, int], scratch: Path) -> Batch:
    with tempfile.TemporaryFile(dir=scratch) as file:
        # Reserved before it is written: a full disk is an error here, and would end the process later.
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        return np.memmap(file, np.uint8, mode="r+", shape=shape)


def _check_failures(part: str, failures: Sequence[tuple[str, str]], total: int) -> None:
    if len(failures) > MOST_UNREADABLE * total:
        named = "; ".join(f"{name}: {reason}" for name, reason in itertools.islice(failures, NAMED))
        raise DatasetError(
            f"{len(failures)} of {total} {part} images cannot be read, more than {MOST_UNREADABLE:.0%}: {named}"
            + ("; ..." if len(failures) > NAMED else "")
        )
