"""The target of an adaptation: images without labels to learn from, and where these are known, labels to score with."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import JUNK, Crop, path_to_text, read_crops, read_dataset, read_training
from reidserve.embed import Batch
from reidserve.errors import DatasetError
from reidserve.export.train import Settings
from reidserve.export.train.augmentation import augment
from reidserve.export.train.material import Trial
from reidserve.export.train.pictures import Pictures, read_pictures
from reidserve.export.train.sampler import Labels

_AUGMENTATION = 4
"""Tells these random numbers from those of other rooms with the same seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What a network is adapted to.

    Attributes:
        name: of the dataset.
        pictures: N, whose pids nothing is learnt from.
        identities: (N,) int64, what clusters are scored against; None where not all are known.
        trial: query and gallery to score on; None where there are none.
        notes: what is odd about the data, a line each.
    """

    name: str
    pictures: Pictures
    identities: Labels | None
    trial: Trial | None
    notes: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """The sha256 of what is learnt from: pixels alone."""
        return hashlib.sha256(self.pictures.pixels.data).hexdigest()

    @property
    def failures(self) -> list[tuple[str, str]]:
        """The images left out, and why."""
        parts = [self.pictures] if self.trial is None else [self.pictures, self.trial.query, self.trial.gallery]
        return [failure for part in parts for failure in part.failures]

    def batch(self, rows: NDArray[np.int64], settings: Settings, *, epoch: int, step: int) -> Batch:
        """Images at these rows as they are learnt from: augmented; seed, epoch and step decide all chance."""
        rng = np.random.default_rng((_AUGMENTATION, settings.seed, epoch, step))
        return augment(self.pictures.pixels[rows], settings, rng)


def read_target(
    data: Path,
    settings: Settings,
    *,
    scratch: Path,
    pattern: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Target:
    """Read the training part of a dataset without looking at its labels, and query and gallery if it has them.

    A `pattern` says what file names mean that are of no known layout. A folder of images that is no dataset is the
    target as it is.

    Raises:
        DatasetError: there are too few images, or images that cannot be read.
    """
    parts, notes = _read_parts(data, pattern, scored=settings.evaluation.every > 0)
    done, total = 0, sum(map(len, parts.values()))

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    pictures = {
        part: read_pictures(
            *(part, crops),
            height=settings.input.height,
            width=settings.input.width,
            resize_filter=settings.input.resize,
            scratch=scratch,
            progress=advance,
        )
        for part, crops in parts.items()
    }
    trial = Trial(pictures["query"], pictures["gallery"]) if "query" in pictures else None
    name = path_to_text(Path(data.absolute().name))
    return Target(name, pictures["target"], _identities(pictures["target"].crops), trial, notes)


def _read_parts(data: Path, pattern: str | None, *, scored: bool) -> tuple[dict[str, Sequence[Crop]], list[str]]:
    notes = []
    try:
        crops = [crop for crop in read_training(data, pattern=pattern) if crop.pid != JUNK]
    except DatasetError as error:
        if not data.is_dir():
            raise
        crops = read_crops(data)
        notes.append(f"the target is all {len(crops)} images below {path_to_text(data)}: {error}")
    parts: dict[str, Sequence[Crop]] = {"target": crops}
    if scored:
        try:
            dataset = read_dataset(data, pattern=pattern)
            parts |= {"query": dataset.query, "gallery": dataset.gallery}
        except DatasetError as error:
            notes.append(f"the target is not scored: {error}")
    if len(crops) < 2:
        raise DatasetError(f"{path_to_text(data)} holds {len(crops)} target images, of which no clusters can be made")
    return parts, notes


def _identities(crops: Sequence[Crop]) -> Labels | None:
    if any(crop.pid is None for crop in crops):
        return None
    _, labels = np.unique([str(crop.pid) for crop in crops], return_inverse=True)
    return labels.astype(np.int64)
