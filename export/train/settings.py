"""The settings of a run: a frozen value that checks itself and travels with the run's state."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from reidserve.embed import ResizeFilter
from reidserve.errors import UsageError
from reidserve.export.model import parse_architecture

Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]
Triple = tuple[float, float, float]

_RANGES: Mapping[str, tuple[float, float]] = {
    "height": (32, 2048),
    "width": (32, 2048),
    "epochs": (1, 100_000),
    "batch_identities": (2, 4096),
    "batch_images": (2, 4096),
    "lr": (1e-9, 10),
    "seed": (0, 2**32 - 1),
    "eval_every": (0, 100_000),
    "label_smoothing": (0, 0.99),
    "margin": (0, 100),
    "weight_decay": (0, 1),
    "warm_up": (0, 1),
    "decay": (0, 1),
    "flip": (0, 1),
    "pad": (0, 1),
    "erase": (0, 1),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """All that decides what a run computes, beside the data; the defaults are the bag of tricks' (Luo et al., 2019).

    Attributes:
        arch: the network, as `parse_architecture` reads it.
        height: input height, pixels.
        width: input width, pixels.
        epochs: passes over the training set.
        batch_identities: P, identities in a batch.
        batch_images: K, images of each.
        lr: the learning rate between warm-up and the first milestone.
        seed: of the initial weights, the sampling and the augmentation.
        pretrained: a checkpoint to start from, all but its classifier; None for random weights.
        freeze_backbone: epochs during which the backbone does not move, less than `epochs`.
        eval_every: epochs between two evaluations; the last epoch is always evaluated. 0 for none at all.
        precision: "bf16" computes the forward pass in mixed precision.
        device: where the network runs.
        resize: the Pillow filter that brings a crop to size, as serving does.
        mean: subtracted from pixels in 0..1, RGB.
        std: what they are divided by then, RGB.
        label_smoothing: share of a target that is spread over all classes.
        margin: by how much the hardest negative should be farther than the hardest positive.
        weight_decay: of AdamW, on every parameter.
        warm_up: share of the epochs in which the learning rate grows linearly.
        milestones: shares of the epochs after which the learning rate falls.
        decay: what it is multiplied by then.
        flip: share of images that are mirrored.
        pad: border that a crop may move in, share of the height.
        erase: share of images of which a rectangle is erased.

    Raises:
        UsageError: one is out of its range.
        ExportError: there is no such network.
    """

    arch: str = "resnet50_ibn_a"
    height: int = 256
    width: int = 128
    epochs: int = 120
    batch_identities: int = 16
    batch_images: int = 4
    lr: float = 3.5e-4
    seed: int = 0
    pretrained: str | None = None
    freeze_backbone: int = 0
    eval_every: int = 10
    precision: Precision = "fp32"
    device: Device = "cpu"
    resize: ResizeFilter = "bilinear"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    label_smoothing: float = 0.1
    margin: float = 0.3
    weight_decay: float = 5e-4
    warm_up: float = 0.1
    milestones: tuple[float, float] = (0.5, 0.8)
    decay: float = 0.1
    flip: float = 0.5
    pad: float = 10 / 256
    erase: float = 0.5

    def __post_init__(self) -> None:
        parse_architecture(self.arch)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name.replace('_', ' ')} must be {low:g} to {high:g}, got {value:g}")
        for name, known in (("precision", get_args(Precision)), ("device", get_args(Device))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.freeze_backbone < self.epochs:
            raise UsageError(
                f"the backbone can be frozen for 0 to {self.epochs - 1} of {self.epochs} epochs, "
                f"got {self.freeze_backbone}"
            )

    @property
    def batch_size(self) -> int:
        """Images in a batch, P x K."""
        return self.batch_identities * self.batch_images

    def differences(self, before: "Settings") -> list[str]:
        """What differs from the settings that a run began with, in words."""
        return [
            f"{field.name.replace('_', ' ')} was {getattr(before, field.name)}, is {getattr(self, field.name)}"
            for field in fields(self)
            if getattr(before, field.name) != getattr(self, field.name)
        ]
