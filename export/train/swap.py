"""Swapping backgrounds: the target of one image before the background of another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Batch
from reidserve.errors import DatasetError
from reidserve.export.train.pictures import Coverage, Pictures, reserve

_CHUNK = 64


def swap(pixels: Batch, coverage: Coverage, donors: Batch, donors_coverage: Coverage) -> Batch:
    """N targets before the backgrounds of N donors, blended by coverage.

    Where any of a donor's own target stood, its row's mean background stands: what is ground or wall there goes on,
    and neither a second target nor anything of the first image's background is seen.
    """
    share = coverage[..., None].astype(np.uint16)
    backgrounds = _backgrounds(donors, donors_coverage[..., None] == 0)
    # 255 * 255 and the half that rounds are below 2**16.
    return ((pixels * share + backgrounds * (255 - share) + 127) // 255).astype(np.uint8)


def _backgrounds(pixels: Batch, free: NDArray[np.bool_]) -> Batch:
    """Images without their targets; `free` (N, H, W, 1) says where only background is seen."""
    seen, count = (pixels * free).sum(axis=2, keepdims=True), free.sum(axis=2, keepdims=True)
    whole = seen.sum(axis=1, keepdims=True) / np.maximum(count.sum(axis=1, keepdims=True), 1)
    # A row in which no background is seen takes the image's.
    rows = np.where(count, seen / np.maximum(count, 1), whole)
    return np.where(free, pixels, np.rint(rows).astype(np.uint8))


def swapped(pictures: Pictures, donors: Pictures, seed: int, *, scratch: Path) -> Pictures:
    """A copy of pictures, each before the background of a donor of another pid; one without a mask stays as it is.

    Both were read with masks; donors may be the pictures themselves, or another dataset's. Pixels lie in `scratch`.

    Raises:
        DatasetError: masks were not read, or an image finds no donor.
        OSError: there is no room in `scratch`.
    """
    if pictures.coverage is None or donors.coverage is None:
        raise DatasetError("backgrounds can be swapped only of pictures that were read with their masks")
    rng = np.random.default_rng(seed)
    pids, others = (np.array([str(crop.pid) for crop in part.crops]) for part in (pictures, donors))
    pixels = reserve(pictures.pixels.shape, scratch)
    for start in range(0, len(pictures), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(pictures)))
        lenders = draw_lenders(pids[rows], others, donors.backgrounds, rng)
        pixels[rows] = swap(
            *(pictures.pixels[rows], pictures.coverage[rows]), *(donors.pixels[lenders], donors.coverage[lenders])
        )
    return replace(pictures, pixels=pixels)


def draw_lenders(
    identities: NDArray[np.generic], others: NDArray[np.generic], rows: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each identity (N,) one of the rows (B,), drawn from those of other identities; `others` (M,) is of all rows.

    Raises:
        DatasetError: one has none.
    """
    drawn = np.empty(len(identities), np.int64)
    for place, identity in enumerate(identities):
        candidates = rows[others[rows] != identity]
        if not len(candidates):
            raise DatasetError(
                f"no image of another identity than {identity} has a mask: backgrounds are swapped between two"
            )
        drawn[place] = rng.choice(candidates)
    return drawn
