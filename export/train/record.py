"""The record of an epoch: one line of `log.jsonl`."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """What an epoch came to; epoch 0 is the network before training.

    Attributes:
        epoch: counted from 1, through all stages.
        stage: its number, from 1.
        loss: mean over the batches; None for epoch 0.
        accuracy: share of training images whose class has the highest score.
        val_loss: of held-out images of the training identities; None where none were held out.
        val_accuracy: likewise.
        images_per_second: in training, augmentation and optimiser included.
        lr: the learning rate of the last batch.
        rank1: Rank-1 on query and gallery; None where not evaluated.
        rank5: likewise.
        rank10: likewise.
        mAP: likewise.
        step_losses: the loss of each batch.
    """

    epoch: int
    stage: int = 1
    loss: float | None = None
    accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    images_per_second: float | None = None
    lr: float | None = None
    rank1: float | None = None
    rank5: float | None = None
    rank10: float | None = None
    mAP: float | None = None  # noqa: N815  # the field's name
    step_losses: tuple[float, ...] = ()


def best(records: Sequence[Record]) -> Record:
    """The first of the highest mAP after training began; the last where none was evaluated."""
    scored = [(record.mAP, record) for record in records if record.epoch and record.mAP is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else records[-1]
