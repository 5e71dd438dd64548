"""Masks of crops: which pixels show the target, in files beside the images."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from reidserve.datasets.crop import Crop

MASKS = "masks"


def with_masks(crops: Iterable[Crop], root: Path) -> list[Crop]:
    """Crops that know their masks: root/masks/ mirrors the paths below root, in PNG, as reid-synth writes them.

    A crop that knows its mask keeps it, and one that has none there stays as it is.
    """
    if not (root / MASKS).is_dir():
        return list(crops)
    return [crop if crop.mask else replace(crop, mask=_find(crop.path, root)) for crop in crops]


def _find(path: Path, root: Path) -> Path | None:
    if not path.is_relative_to(root):
        return None
    mask = (root / MASKS / path.relative_to(root)).with_suffix(".png")
    return mask if mask.is_file() else None
