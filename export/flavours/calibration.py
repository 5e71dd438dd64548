"""The crops to calibrate with: a few of a training split that stand for all of it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from reidserve.datasets import JUNK, Crop
from reidserve.errors import ExportError


def pick_calibration(crops: Sequence[Crop], count: int, *, seed: int = 0) -> list[Crop]:
    """Draw `count` crops of a training split, or all there are, spread over identities and over cameras.

    Every identity gives one crop before any gives another, and every camera likewise within such a round. A crop
    without a pid stands for an identity of its own; junk is left out.

    Raises:
        ExportError: no crop can be drawn.
    """
    if count < 1:
        raise ExportError(f"at least one crop must be drawn to calibrate with, got {count}")
    useful = [crop for crop in crops if crop.pid != JUNK]
    if not useful:
        raise ExportError(f"there is no crop to calibrate with among {len(crops)}: name a training split")
    drawn = [useful[place] for place in np.random.default_rng(seed).permutation(len(useful))]
    seen: Counter[object] = Counter()

    def nth(*key: object) -> int:
        seen[key] += 1
        return seen[key]

    # Sorting is stable: within an identity its cameras take turns, then the identities, and the cameras in each round.
    turns = sorted(drawn, key=lambda crop: nth("own", _identity(crop), crop.camid))
    rounds = sorted(((nth("round", _identity(crop)), crop) for crop in turns), key=lambda entry: entry[0])
    spread = sorted(rounds, key=lambda entry: (entry[0], nth("camera", entry[0], entry[1].camid)))
    return [crop for _, crop in spread[:count]]


def _identity(crop: Crop) -> object:
    return crop.path if crop.pid is None else crop.pid
