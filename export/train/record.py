"""The record of an epoch: one line of `log.jsonl`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """What an epoch came to; epoch 0 is the network before training.

    Attributes:
        epoch: counted from 1.
        loss: mean over the batches; None for epoch 0.
        accuracy: share of training images whose class has the highest score.
        images_per_second: in training, augmentation and optimiser included.
        lr: the learning rate of the last batch.
        rank1: Rank-1 on query and gallery; None where not evaluated.
        mAP: likewise.
    """

    epoch: int
    loss: float | None = None
    accuracy: float | None = None
    images_per_second: float | None = None
    lr: float | None = None
    rank1: float | None = None
    mAP: float | None = None  # noqa: N815  # the field's name
