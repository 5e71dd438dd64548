"""Batches of P identities with K images each, drawn anew for every epoch (Hermans et al., 2017)."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""(N,), classes from 0 upwards without a gap."""

_SAMPLING = 1
"""Tells the sampler's random numbers from those of other rooms with the same seed."""


def count_batches(images: int, *, batch_size: int) -> int:
    """Batches in an epoch: as many as see each image about once."""
    return max(1, images // batch_size)


def draw_batches(
    labels: Labels, *, batch_identities: int, batch_images: int, seed: int, epoch: int
) -> Sequence[NDArray[np.int64]]:
    """The rows of each batch of an epoch, (P * K,), images of an identity side by side; seed and epoch decide them.

    Identities come up equally often, and so do the images of each. One of fewer than K images repeats them
    within a batch.
    """
    rng = np.random.default_rng((_SAMPLING, seed, epoch))
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(labels))[:-1])
    hands = [_hands(rows, batch_images, rng) for rows in members]
    steps = count_batches(len(labels), batch_size=batch_identities * batch_images)
    return [
        np.concatenate([next(hands[identity]) for identity in table])
        for table in itertools.islice(_tables(len(members), batch_identities, rng), steps)
    ]


def _tables(identities: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    while True:
        order = rng.permutation(identities)
        # What is left over of a round is another set of identities in each.
        for start in range(0, identities - size + 1, size):
            yield order[start : start + size]


def _hands(rows: NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    while True:
        order = rng.permutation(rows)
        if len(order) < size:
            yield np.resize(order, size)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]
