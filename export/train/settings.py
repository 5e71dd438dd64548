"""The settings of a run: frozen values that check themselves and travel with the run's state.

A recipe is a TOML file of these sections (`recipes.py`); every value has a dotted name, such as `optim.lr`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from reidserve.errors import UsageError
from reidserve.export.train.sections import (
    AugmentSettings,
    BatchSettings,
    EvaluationSettings,
    HeadSettings,
    InitSettings,
    InputSettings,
    LossSettings,
    NetworkSettings,
    OptimSettings,
    ScheduleSettings,
    Triple,
    check,
)

__all__ = [
    "LEARNING",
    "AugmentSettings",
    "BatchSettings",
    "Device",
    "EvaluationSettings",
    "HeadSettings",
    "InitSettings",
    "InputSettings",
    "LossSettings",
    "NetworkSettings",
    "OptimSettings",
    "Precision",
    "ScheduleSettings",
    "Settings",
    "Stage",
    "Triple",
]

Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]
Start = Literal["previous", "best"] | int

LEARNING = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
"""The parts that a stage may let learn, from the pixels on; "head" is all that follows the backbone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a run with its own length, learning rate and frozen layers.

    Attributes:
        epochs: passes over the training set.
        learns: "all", or some of "stem", "layer1" to "layer4" and "head", which is all that follows the backbone; the
            rest is frozen, its BatchNorms in evaluation mode.
        lr: what the run's learning rate is multiplied by.
        start: the weights it begins with: the "previous" stage's last, the run's "best" so far, or the last of stage
            number 1, 2, ...; the first stage begins with the run's.
    """

    epochs: int = 120
    learns: tuple[str, ...] = ("all",)
    lr: float = 1.0
    start: Start = "previous"

    def __post_init__(self) -> None:
        check("stages.N.", self, {"epochs": (1, 100_000), "lr": (1e-9, 1e6)})
        unknown = [name for name in self.learns if name != "all" and name not in LEARNING]
        if unknown or not self.learns:
            raise UsageError(f"stages.N.learns must be all, or some of {', '.join(LEARNING)}, got {list(self.learns)}")
        if isinstance(self.start, str) and self.start not in ("previous", "best"):
            raise UsageError(f"stages.N.start must be previous, best or a stage's number, got {self.start!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that decides what a run computes, beside the data; the defaults are the bag of tricks' (Luo et al., 2019).

    Attributes:
        stages: one after the other.
        seed: of weights, batches and augmentation.
        precision: "bf16" computes the forward pass in mixed precision.
        device: where the network runs.

    Raises:
        UsageError: a value is out of its range, or a stage begins with one that is not before it.
        ExportError: there is no such network.
    """

    network: NetworkSettings = field(default_factory=NetworkSettings)
    input: InputSettings = field(default_factory=InputSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    init: InitSettings = field(default_factory=InitSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    stages: tuple[Stage, ...] = (Stage(),)
    seed: int = 0
    precision: Precision = "fp32"
    device: Device = "cpu"

    def __post_init__(self) -> None:
        check("", self, {"seed": (0, 2**32 - 1)}, {"precision": Precision, "device": Device})
        self._check_loss()
        if not self.stages:
            raise UsageError("a run needs at least one stage")
        for number, stage in enumerate(self.stages, 1):
            if isinstance(stage.start, int) and not 1 <= stage.start < number:
                raise UsageError(f"stage {number} can begin with a stage before it, got {stage.start}")

    def _check_loss(self) -> None:
        """Raise UsageError where the loss cannot be computed of what the head and the batch give it."""
        if self.loss.metric != "none" and self.batch.images < 2:
            raise UsageError(
                f"loss.metric = {self.loss.metric} compares images of one identity: batch.images must be 2 or more (or "
                f"loss.metric none), got {self.batch.images}"
            )
        if self.loss.classification == "softmax":
            return
        needed: dict[str, object] = {"head.unit_features": True, "head.unit_rows": True, "head.temperature": 1.0}
        needed |= {"head.temperature_schedule": "fixed", "network.neck": "bnneck"}
        values = self.values()
        wrong = [f"{name} must be {value}" for name, value in needed.items() if values[name] != value]
        if wrong:
            raise UsageError(
                f"loss.classification = {self.loss.classification} takes cosines: {', '.join(wrong).lower()}"
            )

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def values(self) -> dict[str, Any]:
        """Every value by its dotted name, stages counted from 1: {"optim.lr": 0.00035, "stages.1.epochs": 120, ...}."""
        return dict(_flat("", self))

    def differences(self, before: "Settings") -> list[str]:
        """What differs from the settings that a run began with, in words."""
        ours, theirs = self.values(), before.values()
        names = [*ours, *(name for name in theirs if name not in ours)]
        return [
            f"{name} was {_shown(theirs.get(name))}, is {_shown(ours.get(name))}"
            for name in names
            if ours.get(name) != theirs.get(name)
        ]


def _shown(value: object) -> str:
    return "nothing" if value in (None, "") else str(value)


def _flat(prefix: str, value: object) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        for one in fields(value):
            yield from _flat(f"{prefix}.{one.name}" if prefix else one.name, getattr(value, one.name))
    elif isinstance(value, tuple) and value and all(map(is_dataclass, value)):
        for number, inner in enumerate(value, 1):
            yield from _flat(f"{prefix}.{number}", inner)
    else:
        yield prefix, value
