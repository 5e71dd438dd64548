"""Stages: where an epoch stands in its run, and which parts of a network learn meanwhile."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from reidserve.export.model import Network
from reidserve.export.train.settings import LEARNING, Settings, Stage


@dataclass(frozen=True, slots=True)
class Place:
    """Where an epoch stands in its run.

    Attributes:
        number: of its stage, from 1.
        stage: its stage.
        epoch: counted from 1 in the stage.
    """

    number: int
    stage: Stage
    epoch: int

    @property
    def is_last(self) -> bool:
        """Whether the stage ends with it."""
        return self.epoch == self.stage.epochs


def place_of(settings: Settings, epoch: int) -> Place:
    """The place of an epoch, counted from 1 through all stages."""
    for number, stage in enumerate(settings.stages, 1):
        if epoch <= stage.epochs:
            return Place(number, stage, epoch)
        epoch -= stage.epochs
    raise ValueError(f"the stages have {settings.epochs} epochs")


def let_learn(network: Network, learnable: Mapping[str, Tensor], learns: Collection[str]) -> None:
    """Training mode for the parts that learn; the others take no gradient, and their norms keep their statistics."""
    network.train()
    for name, module in network.named_modules():
        if name:
            module.training = is_among(name, learns)
    for name, parameter in learnable.items():
        parameter.requires_grad_(is_among(name, learns))


def is_among(name: str, learns: Collection[str]) -> bool:
    """Whether a module or tensor of a network belongs to parts that learn."""
    return "all" in learns or part_of(name) in learns


def part_of(name: str) -> str:
    """The part of LEARNING that a module or tensor of a network belongs to."""
    room, _, rest = name.partition(".")
    if room != "backbone":
        return "head"
    part = rest.partition(".")[0]
    return part if part in LEARNING else "stem"


def count_frozen(network: Network, learns: Collection[str]) -> tuple[int, int]:
    """Parameters that are frozen while these parts learn, and all parameters."""
    counts = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return sum(count for name, count in counts.items() if not is_among(name, learns)), sum(counts.values())
