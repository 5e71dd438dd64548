"""An epoch: every batch of it, forward and back."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from reidserve.embed import map_ahead
from reidserve.errors import ExportError
from reidserve.export.model import Network
from reidserve.export.train.augmentation import augment
from reidserve.export.train.losses import Loss
from reidserve.export.train.material import Material
from reidserve.export.train.record import Record
from reidserve.export.train.sampler import draw_batches
from reidserve.export.train.schedule import learning_rate
from reidserve.export.train.settings import Settings
from reidserve.export.train.validation import normalise

_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns.

    Attributes:
        network: in which mode does not matter.
        optimiser: of all its parameters.
        loss: what is made smaller.
        settings: how.
    """

    network: Network
    optimiser: Optimizer
    loss: Loss
    settings: Settings


def learn_epoch(
    learner: Learner, material: Material, epoch: int, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Record:
    """Learn from every batch of an epoch, counted from 1; seed and epoch decide everything random in it.

    `progress` hears of the batches of all epochs.

    Raises:
        ExportError: the loss, or afterwards a weight, is no finite number.
    """
    settings, start = learner.settings, monotonic()
    batches = draw_batches(
        material.labels,
        batch_identities=settings.batch_identities,
        batch_images=settings.batch_images,
        seed=settings.seed,
        epoch=epoch,
    )
    set_modes(learner.network, frozen=epoch <= settings.freeze_backbone)
    losses, right, lr = [], 0, settings.lr
    with closing(_load(batches, material, settings, epoch)) as loading:
        for step, (pixels, labels) in enumerate(loading):
            lr = learning_rate(
                (epoch - 1) * len(batches) + step, steps=settings.epochs * len(batches), settings=settings
            )
            loss, hits = _learn_batch(learner, pixels, labels, lr)
            if not math.isfinite(loss):
                raise ExportError(_diverged(f"the loss is {loss:g}", epoch, step + 1))
            losses.append(loss)
            right += hits
            progress((epoch - 1) * len(batches) + step + 1, settings.epochs * len(batches))
    _check_finite(learner.network, epoch, len(batches))
    images = len(batches) * settings.batch_size
    return Record(
        epoch=epoch,
        loss=float(np.mean(losses)),
        accuracy=right / images,
        images_per_second=images / (monotonic() - start),
        lr=lr,
    )


def set_modes(network: Network, *, frozen: bool) -> None:
    """Training mode, but for a frozen backbone: its weights take no gradient, its norms keep their statistics."""
    network.train()
    network.backbone.train(not frozen)
    network.backbone.requires_grad_(not frozen)


def memory_format(settings: Settings) -> torch.memory_format:
    """The order of a map's numbers in which convolutions are fastest (measured: docs/training.md)."""
    fastest_last = settings.precision == "bf16" or settings.device == "cuda"
    return torch.channels_last if fastest_last else torch.contiguous_format


def _diverged(what: str, epoch: int, step: int) -> str:
    """Say that a run cannot go on."""
    return (
        f"{what} at epoch {epoch}, step {step}: the state after epoch {epoch - 1} is kept, but going on from it comes "
        "here again; start over with --force and a lower --lr"
    )


def _load(
    batches: Sequence[NDArray[np.int64]], material: Material, settings: Settings, epoch: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    def load(item: tuple[int, NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        step, rows = item
        pixels = augment(material.train.pixels[rows], settings, epoch=epoch, step=step)
        return torch.from_numpy(pixels), torch.from_numpy(material.labels[rows])

    return map_ahead(load, enumerate(batches), ahead=_AHEAD)


def _learn_batch(learner: Learner, pixels: Tensor, labels: Tensor, lr: float) -> tuple[float, int]:
    settings = learner.settings
    pixels, labels = pixels.to(settings.device), labels.to(settings.device)
    for group in learner.optimiser.param_groups:
        group["lr"] = lr
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
        seen = normalise(pixels, mean=settings.mean, std=settings.std)
        scores, features = learner.network(seen.contiguous(memory_format=memory_format(settings)))
    # In full precision: distances of vectors that are near each other are small differences of large numbers.
    loss = learner.loss(scores.float(), features.float(), labels)
    value = loss.item()
    if math.isfinite(value):
        learner.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        learner.optimiser.step()
    return value, int((scores.argmax(1) == labels).sum())


def _check_finite(network: Network, epoch: int, step: int) -> None:
    # The last step's loss was that of the weights before it.
    for name, tensor in network.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ExportError(_diverged(f"{name} is not finite", epoch, step))
