"""An epoch: every batch of it, forward and back."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reidserve.datasets import path_to_text
from reidserve.embed import map_ahead
from reidserve.errors import ExportError
from reidserve.export.checkpoints.files import name_some
from reidserve.export.model import Network
from reidserve.export.train.learner import Learner, memory_format
from reidserve.export.train.material import Material
from reidserve.export.train.optimiser import set_rate
from reidserve.export.train.record import Record
from reidserve.export.train.sampler import draw_batches
from reidserve.export.train.schedule import rate_factor, temperature
from reidserve.export.train.settings import HeadSettings, Settings
from reidserve.export.train.stages import let_learn, place_of
from reidserve.export.train.validation import classify, normalise

_AHEAD = 2
_NAMED = 4

Step = tuple[Tensor, Tensor]
"""The loss of a batch, and how many of its images were classified rightly: numbers that may still be computed."""


def learn_epoch(
    learner: Learner,
    material: Material,
    epoch: int,
    *,
    before: Sequence[Record] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[float, float], None] = lambda loss, accuracy: None,
) -> Record:
    """Learn from every batch of an epoch, counted from 1; seed and epoch decide everything random in it.

    `before` holds the records so far, for a schedule that looks at them. `progress` hears of the batches of all
    epochs, `on_step` each batch's loss and accuracy.

    Raises:
        ExportError: the loss, or afterwards a weight, is no finite number.
    """
    settings, start = learner.settings, monotonic()
    batches = draw_batches(
        material.labels,
        batch_identities=settings.batch.identities,
        batch_images=settings.batch.images,
        seed=settings.seed,
        epoch=epoch,
    )
    prepare(learner, epoch)
    rates = learning_rates(settings, epoch, batches=len(batches), before=before)
    losses, right = [], 0
    with closing(_learn(learner, material, batches, rates, epoch)) as steps:
        for number, (loss, hits) in enumerate(_one_behind(steps)):
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                named = name_some(
                    [path_to_text(material.train.crops[row].path) for row in batches[number]], most=_NAMED
                )
                raise ExportError(diverged(f"the loss is {losses[-1]:g}", epoch, f"step {number + 1} ({named})"))
            right += int(hits)
            on_step(losses[-1], int(hits) / settings.batch.size)
            progress((epoch - 1) * len(batches) + number + 1, settings.epochs * len(batches))
    learner.team.align(learner.network)
    check_finite(learner.result, epoch)
    images = len(batches) * settings.batch.size
    return Record(
        epoch=epoch,
        stage=place_of(settings, epoch).number,
        loss=float(np.mean(losses)),
        accuracy=right / images,
        images_per_second=images / (monotonic() - start),
        lr=rates[-1],
        step_losses=tuple(losses),
    )


def prepare(learner: Learner, epoch: int) -> None:
    """Bring the network into the state of an epoch, counted from 1: what learns, and how its head scores."""
    settings = learner.settings
    let_learn(learner.network, learner.learnable, place_of(settings, epoch).stage.learns)
    for network in (learner.network, learner.result):
        set_head(network, settings.head, epoch)


def set_head(network: Network, settings: HeadSettings, epoch: int) -> None:
    """Let a network score as it does in an epoch, counted from 1."""
    assert network.classifier is not None, "a network that learns has classes"
    network.classifier.unit_features = settings.unit_features
    network.classifier.unit_rows = settings.unit_rows
    network.classifier.temperature = temperature(settings, epoch)


def learning_rates(settings: Settings, epoch: int, *, batches: int, before: Sequence[Record] = ()) -> list[float]:
    """The learning rate of each step of an epoch, counted from 1, of so many batches; `before` as in `learn_epoch`."""
    place = place_of(settings, epoch)
    steps = math.ceil(batches / settings.batch.accumulate)
    losses = [record.loss if record.val_loss is None else record.val_loss for record in before if record.epoch]
    own = [loss for loss in losses[epoch - place.epoch :] if loss is not None]
    return [
        settings.optim.lr
        * place.stage.lr
        * rate_factor(
            (place.epoch - 1) * steps + step, steps=place.stage.epochs * steps, settings=settings.schedule, losses=own
        )
        for step in range(steps)
    ]


def learn_step(learner: Learner, batches: Sequence[tuple[Tensor, Tensor]], lr: float) -> list[Step]:
    """One step of the optimiser on the mean loss of batches: this process's pixels, and the labels of all."""
    set_rate(learner.optimiser, lr)
    learner.optimiser.zero_grad()
    steps = [_backward(learner, pixels, labels, share=1 / len(batches)) for pixels, labels in batches]
    learner.team.add_gradients(learner.learnable.values())
    if learner.settings.optim.clip:
        moving = [parameter for group in learner.optimiser.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(moving, learner.settings.optim.clip)
    learner.optimiser.step()
    if learner.average is not None:
        learner.average.update_parameters(learner.network)
    return steps


def _learn(
    learner: Learner, material: Material, batches: Sequence[NDArray[np.int64]], rates: Sequence[float], epoch: int
) -> Generator[Step, None, None]:
    with closing(_load(learner, material, batches, epoch)) as loading:
        for rate in rates:
            yield from learn_step(learner, list(islice(loading, learner.settings.batch.accumulate)), rate)


def _one_behind(steps: Iterable[Step]) -> Iterator[Step]:
    # To read a number off a GPU is to wait for all that was asked of it: the next step is asked for before.
    waiting: Step | None = None
    for step in steps:
        if waiting is not None:
            yield waiting
        waiting = step
    if waiting is not None:
        yield waiting


def _load(
    learner: Learner, material: Material, batches: Sequence[NDArray[np.int64]], epoch: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    settings, own = learner.settings, learner.team.share(learner.settings.batch.size)

    def load(item: tuple[int, NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        step, rows = item
        pixels = torch.from_numpy(material.batch(rows, settings, epoch=epoch, step=step)[own])
        labels = torch.from_numpy(material.labels[rows])
        # Only pinned memory is copied while the GPU computes.
        return (pixels.pin_memory(), labels.pin_memory()) if settings.device == "cuda" else (pixels, labels)

    return map_ahead(load, enumerate(batches), ahead=_AHEAD)


def _backward(learner: Learner, pixels: Tensor, labels: Tensor, *, share: float) -> Step:
    settings = learner.settings
    pixels, labels = (tensor.to(settings.device, non_blocking=True) for tensor in (pixels, labels))
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
        seen = normalise(pixels, mean=settings.input.mean, std=settings.input.std)
        outputs = learner.network(seen.contiguous(memory_format=memory_format(settings)))
    # In full precision: distances of vectors that are near each other are small differences of large numbers.
    scores, features = (learner.team.gather(output.float()) for output in outputs)
    loss = learner.loss(scores, features, labels)
    (loss * share).backward()
    return loss.detach(), (classify(scores) == labels).sum()


def diverged(what: str, epoch: int, where: str) -> str:
    """Say that a run cannot go on."""
    return (
        f"{what} at epoch {epoch}, {where}: the state after epoch {epoch - 1} is kept, but going on from it comes here "
        "again; start over with --force and a lower optim.lr"
    )


def check_finite(network: Network, epoch: int) -> None:
    """Refuse a network that an epoch broke.

    Raises:
        ExportError: a weight is no finite number.
    """
    # The last step's loss was that of the weights before it.
    for name, tensor in network.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ExportError(diverged(f"{name} is not finite", epoch, "after its last step"))
