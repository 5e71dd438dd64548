"""The steps of an epoch of adaptation: a batch of the source and a batch of the clustered target side by side."""

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidserve.embed import map_ahead
from reidserve.export.adapt.clusters import Clusters
from reidserve.export.adapt.settings import Mode
from reidserve.export.adapt.target import Target
from reidserve.export.train import Material, Settings
from reidserve.export.train.sampler import Labels, draw_batches

Rows = NDArray[np.int64]

_AHEAD = 2


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What is learnt from at once.

    Attributes:
        source: rows of the source's images; none where the source is not learnt from.
        target: rows of the target's images.
    """

    source: Rows
    target: Rows

    def __len__(self) -> int:
        return len(self.source) + len(self.target)


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A step's images, those of the source first.

    Attributes:
        step: which they are.
        images: uint8 (N, height, width, 3) RGB, augmented.
        source: (S,) int64, the classes of the source's.
        target: (N - S,) int64, the clusters of the target's.
    """

    step: Step
    images: Tensor
    source: Tensor
    target: Tensor


def draw_steps(source: Labels, clusters: Clusters, mode: Mode, settings: Settings, *, epoch: int) -> Sequence[Step]:
    """The steps of an epoch: as many as see each image that is in a cluster about once.

    A batch of the target holds as many clusters as one of the source holds identities, or all where there are fewer.
    """
    members = clusters.members
    drawn = draw_batches(
        clusters.labels[members],
        batch_identities=min(settings.batch.identities, len(clusters)),
        batch_images=settings.batch.images,
        seed=settings.seed,
        epoch=epoch,
    )
    if mode == "target":
        return [Step(np.empty(0, np.int64), members[rows]) for rows in drawn]
    batches = draw_batches(
        source,
        batch_identities=settings.batch.identities,
        batch_images=settings.batch.images,
        seed=settings.seed,
        epoch=epoch,
    )
    return [Step(rows, members[theirs]) for rows, theirs in zip(itertools.cycle(batches), drawn, strict=False)]


def load(
    steps: Sequence[Step], source: Material, target: Target, clusters: Clusters, settings: Settings, *, epoch: int
) -> Generator[Pixels, None, None]:
    """The pixels of each step, made while others are learnt from; seed, epoch and step decide their augmentation."""

    def read(item: tuple[int, Step]) -> Pixels:
        number, step = item
        images = [target.batch(step.target, settings, epoch=epoch, step=number)]
        if len(step.source):
            images.insert(0, source.batch(step.source, settings, epoch=epoch, step=number))
        return Pixels(
            step,
            torch.from_numpy(np.concatenate(images)),
            torch.from_numpy(source.labels[step.source]),
            torch.from_numpy(clusters.labels[step.target]),
        )

    return map_ahead(read, enumerate(steps), ahead=_AHEAD)
