"""What learns: a network, its optimiser, its loss, and the average of its weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reidserve.export.model import Architecture, Network, build_network, parse_architecture
from reidserve.export.train.losses import make_loss
from reidserve.export.train.optimiser import make_optimiser
from reidserve.export.train.parallel import ALONE, Team
from reidserve.export.train.settings import NetworkSettings, Settings

_NETWORK, _LOSS, _AVERAGE, _OPTIMISER = "network/", "loss/", "average/", "optimiser/"


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns.

    Attributes:
        network: in which mode does not matter.
        loss: of scores, features before the neck and labels; what it learns itself moves with the network.
        settings: how.
        learnable: the network's parameters that may move, by name; what a stage freezes is among them.
        team: the processes that learn together.
        optimiser: of `learnable`, and of what the loss learns.
        average: the moving average of the network's weights; None without `optim.ema`.
    """

    network: Network
    loss: nn.Module
    settings: Settings
    learnable: Mapping[str, nn.Parameter]
    team: Team
    optimiser: Optimizer
    average: AveragedModel | None

    @property
    def result(self) -> Network:
        """What is scored and written: the average where there is one, with the network's own statistics."""
        if self.average is None:
            return self.network
        averaged = self.average.module
        assert isinstance(averaged, Network)
        return averaged


def make_learner(settings: Settings, classes: int, *, team: Team = ALONE) -> Learner:
    """A network with the weights of the seed, and a fresh optimiser."""
    architecture = architecture_of(settings.network, classes=classes)
    network = build_network(architecture, seed=settings.seed, head=settings.init.head)
    if team.size > 1 and settings.device == "cuda":
        # torch has it for CUDA alone: elsewhere each process normalises by its own share.
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    network = network.to(settings.device, memory_format=memory_format(settings))  # type: ignore[call-overload]
    loss = make_loss(settings, classes=classes, dim=architecture.dim).to(settings.device)
    learnable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    return _with_memory(network, loss, settings, learnable, team)


def begin_afresh(learner: Learner) -> Learner:
    """The same network and loss with an optimiser and an average that remember nothing."""
    return _with_memory(learner.network, learner.loss, learner.settings, learner.learnable, learner.team)


def _with_memory(
    network: Network, loss: nn.Module, settings: Settings, learnable: Mapping[str, nn.Parameter], team: Team
) -> Learner:
    optimiser = make_optimiser(learnable, dict(loss.named_parameters()), settings.optim)
    average = None
    if settings.optim.ema:
        blend = get_ema_multi_avg_fn(settings.optim.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=blend)
    return Learner(network, loss, settings, learnable, team, optimiser, average)


def architecture_of(settings: NetworkSettings, *, classes: int) -> Architecture:
    """The architecture that a run's settings ask for."""
    return replace(
        parse_architecture(settings.arch, classes=classes),
        last_stride=settings.last_stride,
        neck=settings.neck,
        pooling=settings.pooling,
        embedding_dim=settings.embedding_dim or None,
        parts=settings.parts,
        feature="pooled" if settings.parts else "after_neck",
    )


def memory_format(settings: Settings) -> torch.memory_format:
    """The order of a map's numbers in which convolutions are fastest (measured: docs/training.md)."""
    fastest_last = settings.precision == "bf16" or settings.device == "cuda"
    return torch.channels_last if fastest_last else torch.contiguous_format


def tensors_of(learner: Learner) -> dict[str, Tensor]:
    """Everything that decides how a learner goes on, by name."""
    tensors = {_NETWORK + name: tensor for name, tensor in learner.network.state_dict().items()}
    tensors |= {_LOSS + name: tensor for name, tensor in learner.loss.state_dict().items()}
    if learner.average is not None:
        tensors |= {_AVERAGE + name: tensor for name, tensor in learner.average.state_dict().items()}
    for name, parameter in _moving(learner):
        moments = learner.optimiser.state.get(parameter, {})
        tensors |= {f"{_OPTIMISER}{name}/{key}": tensor for key, tensor in moments.items() if tensor is not None}
    return tensors


def restore(learner: Learner, tensors: Mapping[str, Tensor]) -> None:
    """Put everything back, bit by bit."""
    learner.network.load_state_dict(_below(_NETWORK, tensors))
    learner.loss.load_state_dict(_below(_LOSS, tensors))
    if learner.average is not None:
        learner.average.load_state_dict(_below(_AVERAGE, tensors))
    for name, parameter in _moving(learner):
        moments = _below(f"{_OPTIMISER}{name}/", tensors)
        if moments:
            learner.optimiser.state[parameter] = {key: _like(moment, parameter) for key, moment in moments.items()}


def _moving(learner: Learner) -> Iterator[tuple[str, nn.Parameter]]:
    yield from ((_NETWORK + name, parameter) for name, parameter in learner.learnable.items())
    yield from ((_LOSS + name, parameter) for name, parameter in learner.loss.named_parameters())


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _like(moment: Tensor, parameter: Tensor) -> Tensor:
    # In the memory format of its parameter: another one would be summed in another order.
    return moment.to(parameter.device) if moment.ndim == 0 else torch.empty_like(parameter).copy_(moment)
