"""The material of a run: a dataset checked, decoded and labelled before any time is spent on it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reidserve.datasets import JUNK, Crop, path_to_text, read_dataset, read_training
from reidserve.errors import DatasetError, EvaluationError
from reidserve.evaluate import MARKET, check_labels, labels_of
from reidserve.export.train.pictures import Pictures, read_pictures
from reidserve.export.train.sampler import Labels
from reidserve.export.train.settings import Settings


@dataclass(frozen=True, slots=True)
class Trial:
    """What a network is scored on.

    Attributes:
        query: pictures to search with.
        gallery: pictures to search in.
    """

    query: Pictures
    gallery: Pictures


@dataclass(frozen=True, slots=True)
class Material:
    """What a run learns from, and is scored on.

    Attributes:
        name: of the dataset.
        train: N pictures.
        labels: (N,) int64, the class of each: its pid's place among the sorted pids.
        trial: query and gallery; None where nothing is evaluated.
        notes: what is odd about the data, a line each.
    """

    name: str
    train: Pictures
    labels: Labels
    trial: Trial | None
    notes: Sequence[str]

    @property
    def classes(self) -> int:
        """Identities to tell apart."""
        return int(self.labels.max()) + 1

    @property
    def failures(self) -> list[tuple[str, str]]:
        """The images left out, and why."""
        parts = [self.train] if self.trial is None else [self.train, self.trial.query, self.trial.gallery]
        return [failure for part in parts for failure in part.failures]

    @property
    def fingerprint(self) -> str:
        """The sha256 of what is learnt from, pixels and labels."""
        digest = hashlib.sha256(self.train.pixels.data)
        digest.update("\n".join(str(crop.pid) for crop in self.train.crops).encode())
        return digest.hexdigest()


def read_material(
    data: Path, settings: Settings, *, scratch: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Material:
    """Read a dataset's training part and, if it will be evaluated, query and gallery; check, decode and resize them.

    Raises:
        DatasetError: no known layout, or images that cannot be learnt from or read.
        EvaluationError: no query has a right image in the gallery.
    """
    train, junk = _drop_junk(read_training(data))
    notes = [*([f"{junk} training images of junk (pid {JUNK}) are left out"] if junk else []), *check(train, settings)]
    parts: dict[str, Sequence[Crop]] = {"training": train}
    if settings.eval_every:
        parts |= _evaluation_parts(data)
    done, total = 0, sum(map(len, parts.values()))

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    pictures = {
        part: read_pictures(
            *(part, crops),
            height=settings.height,
            width=settings.width,
            resize_filter=settings.resize,
            scratch=scratch,
            progress=advance,
        )
        for part, crops in parts.items()
    }
    # An identity may have been lost with files that cannot be read.
    check(pictures["training"].crops, settings)
    trial = Trial(pictures["query"], pictures["gallery"]) if settings.eval_every else None
    name = path_to_text(Path(data.absolute().name))
    return Material(name, pictures["training"], number(pictures["training"].crops), trial, notes)


def number(crops: Sequence[Crop]) -> Labels:
    """The class of each crop: its pid's place among the sorted pids."""
    _, labels = np.unique([str(crop.pid) for crop in crops], return_inverse=True)
    return labels.astype(np.int64)


def check(crops: Sequence[Crop], settings: Settings) -> list[str]:
    """What is odd about a training set, a line each.

    Raises:
        DatasetError: nothing can be learnt from it.
    """
    unlabelled = sum(crop.pid is None for crop in crops)
    if unlabelled:
        raise DatasetError(f"{unlabelled} of {len(crops)} training images have no pid")
    counts = Counter(crop.pid for crop in crops)
    if len(counts) < 2:
        raise DatasetError(f"training needs at least two identities to tell apart, got {len(counts)}")
    if max(counts.values()) < 2:
        raise DatasetError(
            f"each of {len(counts)} training identities has one image: the batch-hard triplet loss compares two of one "
            "identity; are the pids right?"
        )
    if len(counts) < settings.batch_identities:
        raise DatasetError(
            f"a batch is to hold {settings.batch_identities} identities, the training set has {len(counts)}: "
            f"give --batch-identities {len(counts)} or less"
        )
    notes = []
    lone = sum(count == 1 for count in counts.values())
    if lone:
        notes.append(f"{lone} of {len(counts)} training identities have one image, which is compared with itself")
    camids = {crop.camid for crop in crops}
    if len(camids) == 1 and None not in camids:
        notes.append(
            f"all {len(crops)} training images are from one camera, {camids.pop()}: expect little on other cameras"
        )
    return notes


def _drop_junk(crops: Sequence[Crop]) -> tuple[list[Crop], int]:
    kept = [crop for crop in crops if crop.pid != JUNK]
    return kept, len(crops) - len(kept)


def _evaluation_parts(data: Path) -> dict[str, Sequence[Crop]]:
    try:
        dataset = read_dataset(data)
    except DatasetError as error:
        raise DatasetError(f"{error} (to train without evaluation, give --eval-every 0)") from error
    parts = {"query": dataset.query, "gallery": dataset.gallery}
    # Whether it can be scored shows before the training, not after.
    found = check_labels(labels_of(dataset.query), labels_of(dataset.gallery), MARKET)
    if sum(map(len, found.unmatchable.values())) == found.queries:
        raise EvaluationError(
            f"none of {found.queries} queries has a right entry in the gallery of {len(dataset.gallery)}: "
            f"{'; '.join(found.lines())} (to train without evaluation, give --eval-every 0)"
        )
    return parts
