"""The material of a run: datasets checked, decoded and labelled before any time is spent on them."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import Crop
from reidserve.embed import Batch
from reidserve.errors import DatasetError
from reidserve.export.train.augmentation import augment
from reidserve.export.train.pictures import Pictures, read_pictures
from reidserve.export.train.preflight import check_copies, check_masks, check_training, check_trial
from reidserve.export.train.sampler import Labels
from reidserve.export.train.settings import Settings
from reidserve.export.train.sources import Parts, read_parts
from reidserve.export.train.swap import draw_lenders, swap

_AUGMENTATION = 2
_HOLDING_OUT = 3
"""Tell these random numbers from those of other rooms with the same seed."""


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
        name: of the dataset, or of several with "+" between them.
        train: N pictures.
        labels: (N,) int64, the class of each: its pid's place among the sorted pids.
        trial: query and gallery; None where nothing is evaluated.
        notes: what is odd about the data, a line each.
        held_out: M pictures of the same identities that are not learnt from; None where none are held out.
        held_out_labels: (M,) int64, their classes.
    """

    name: str
    train: Pictures
    labels: Labels
    trial: Trial | None
    notes: Sequence[str]
    held_out: Pictures | None = None
    held_out_labels: Labels | None = None

    @property
    def classes(self) -> int:
        """Identities to tell apart."""
        return int(self.labels.max()) + 1

    @property
    def failures(self) -> list[tuple[str, str]]:
        """The images left out, and why."""
        trial = [] if self.trial is None else [self.trial.query, self.trial.gallery]
        parts = [self.train, *([] if self.held_out is None else [self.held_out]), *trial]
        return [failure for part in parts for failure in part.failures]

    @property
    def fingerprint(self) -> str:
        """The sha256 of what is learnt from: pixels, pids, and masks where they were read."""
        digest = hashlib.sha256(self.train.pixels.data)
        digest.update("\n".join(str(crop.pid) for crop in self.train.crops).encode())
        if self.train.coverage is not None:
            digest.update(self.train.coverage.data)
        return digest.hexdigest()

    def batch(self, rows: NDArray[np.int64], settings: Settings, *, epoch: int, step: int) -> Batch:
        """Training images at these rows as they are learnt from: augmented; seed, epoch and step decide all chance."""
        rng = np.random.default_rng((_AUGMENTATION, settings.seed, epoch, step))
        (swaps,) = rng.spawn(1)
        pixels = self.train.pixels[rows]
        if settings.augment.swap:
            self._swap_some(pixels, rows, settings.augment.swap, swaps)
        return augment(pixels, settings, rng)

    def _swap_some(self, pixels: Batch, rows: NDArray[np.int64], share: float, rng: np.random.Generator) -> None:
        """Put some of a batch's images, in place, before the backgrounds of other identities."""
        coverage = self.train.coverage
        assert coverage is not None, "masks are read where augment.swap asks for them"
        chosen = np.flatnonzero(rng.random(len(rows)) < share)
        lenders = draw_lenders(self.labels[rows[chosen]], self.labels, self.train.backgrounds, rng)
        pixels[chosen] = swap(pixels[chosen], coverage[rows[chosen]], self.train.pixels[lenders], coverage[lenders])


def read_material(
    data: Path | Sequence[Path],
    settings: Settings,
    *,
    scratch: Path,
    pattern: str | None = None,
    masks: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Material:
    """Read what is learnt from and, if it will be evaluated, query and gallery; check, decode and resize them.

    A `pattern` says what file names mean that are of no known layout. Masks are read where `augment.swap` needs them,
    and with `masks` of all parts.

    Raises:
        DatasetError: no known layout, or images that cannot be learnt from or read.
        EvaluationError: no query has a right image in the gallery.
    """
    scored = settings.evaluation.every > 0
    parts = read_parts([data] if isinstance(data, Path) else data, pattern=pattern, scored=scored)
    learnt, held_out = hold_out(parts.train, settings)
    notes = [*parts.notes, *_check(parts, learnt, settings)]
    read = partial(
        read_pictures,
        height=settings.input.height,
        width=settings.input.width,
        resize_filter=settings.input.resize,
        scratch=scratch,
        progress=_count(sum(map(len, (parts.train, parts.query, parts.gallery))), progress),
    )
    train = read("training", learnt, masks=masks or settings.augment.swap > 0)
    # An identity may have been lost with files that cannot be read.
    check_training(train.crops, settings)
    if settings.augment.swap:
        notes += check_masks(train)
    pids = sorted({str(crop.pid) for crop in train.crops})
    known = set(pids)
    kept = [crop for crop in held_out if crop.pid in known]
    rest = read("held-out", kept, masks=masks) if kept else None
    return Material(
        *(parts.name, train, number(train.crops, pids)),
        Trial(read("query", parts.query, masks=masks), read("gallery", parts.gallery, masks=masks)) if scored else None,
        notes,
        held_out=rest,
        held_out_labels=None if rest is None else number(rest.crops, pids),
    )


def number(crops: Sequence[Crop], pids: Sequence[str]) -> Labels:
    """The class of each crop: its pid's place among the sorted pids."""
    return np.searchsorted(pids, [str(crop.pid) for crop in crops]).astype(np.int64)


def hold_out(crops: Sequence[Crop], settings: Settings) -> tuple[list[Crop], list[Crop]]:
    """What is learnt from and what is held out of it: `evaluation.held_out` of each identity's images, drawn by seed.

    At least one of each stays. A share of an image is held out as often as it is large.

    Raises:
        DatasetError: none would be held out.
    """
    share = settings.evaluation.held_out
    rng = np.random.default_rng((_HOLDING_OUT, settings.seed))
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, crop in enumerate(crops):
        rows[str(crop.pid)].append(row)
    held = set[int]()
    for own in rows.values():
        count = min(len(own) - 1, int(share * len(own) + rng.random()))
        held.update(rng.permutation(own)[:count].tolist())
    if share and not held:
        raise DatasetError(f"evaluation.held_out of {share:g} holds out none of {len(crops)} training images")
    return (
        [crop for row, crop in enumerate(crops) if row not in held],
        [crop for row, crop in enumerate(crops) if row in held],
    )


def _check(parts: Parts, learnt: Sequence[Crop], settings: Settings) -> list[str]:
    notes = check_training(learnt, settings)
    if parts.query:
        # Whether it can be scored shows before the training, not after.
        notes += check_trial(parts.query, parts.gallery)
    return [*notes, *check_copies({"training": parts.train, "query": parts.query, "gallery": parts.gallery})]


def _count(total: int, progress: Callable[[int, int], None]) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return advance
