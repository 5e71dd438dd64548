"""The sections of a run's settings: frozen values that check themselves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from reidserve.embed import ResizeFilter
from reidserve.errors import UsageError
from reidserve.export.model import parse_architecture
from reidserve.export.model.architecture import Neck, Pooling

Statistics = Literal["given", "dataset"]
Optimiser = Literal["adamw", "adam", "sgd"]
Schedule = Literal["steps", "cosine", "plateau"]
Metric = Literal["none", "triplet", "soft-triplet", "circle"]
Classification = Literal["softmax", "arcface", "cosface", "circle"]
TemperatureSchedule = Literal["fixed", "growing", "shrinking"]
HeadStart = Literal["normal", "default"]
Triple = tuple[float, float, float]

_Ranges = Mapping[str, tuple[float, float]]


def check(section: str, values: object, ranges: _Ranges, choices: Mapping[str, object] | None = None) -> None:
    """Raise UsageError where a value is out of its range or none of its choices; both are named, `section` before."""
    for name, (low, high) in ranges.items():
        value = getattr(values, name)
        if not low <= value <= high:
            raise UsageError(f"{section}{name} must be {low:.10g} to {high:.10g}, got {value:.10g}")
    for name, kind in (choices or {}).items():
        value, known = getattr(values, name), get_args(kind)
        if value not in known:
            raise UsageError(f"{section}{name} must be {', '.join(map(str, known))}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """The network.

    Attributes:
        arch: resnet18, resnet34, resnet50 or resnet101, alone or with _ibn_a or _ibn_b.
        last_stride: of the last stage, 1 or 2.
        neck: "bnneck" or "no".
        pooling: "average" or "gem".
        embedding_dim: outputs of a linear layer before the neck; 0 for no such layer.
        parts: horizontal stripes, each with a neck and a classifier of its own (PCB); 0 for the whole image.
    """

    arch: str = "resnet50_ibn_a"
    last_stride: Literal[1, 2] = 1
    neck: Neck = "bnneck"
    pooling: Pooling = "average"
    embedding_dim: int = 0
    parts: int = 0

    def __post_init__(self) -> None:
        parse_architecture(self.arch)
        ranges = {"last_stride": (1, 2), "embedding_dim": (0, 65536), "parts": (0, 64)}
        check("network.", self, ranges, {"neck": Neck, "pooling": Pooling})


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSettings:
    """What the network is fed with.

    Attributes:
        height: pixels.
        width: pixels.
        resize: the Pillow filter that brings a crop to size, as serving does.
        statistics: whether mean and std are as given here, or computed from the training images ("dataset").
        mean: subtracted from pixels in 0..1, RGB.
        std: what they are divided by then, RGB.
    """

    height: int = 256
    width: int = 128
    resize: ResizeFilter = "bilinear"
    statistics: Statistics = "given"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        choices = {"resize": ResizeFilter, "statistics": Statistics}
        check("input.", self, {"height": (32, 2048), "width": (32, 2048)}, choices)
        if not all(map(math.isfinite, self.mean)):
            raise UsageError(f"input.mean must be finite, got {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise UsageError(f"input.std must be finite and above 0, got {self.std}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """What is learnt from at once.

    Attributes:
        identities: in a batch, P.
        images: of each, K.
        accumulate: batches whose gradients are averaged for a step of the optimiser.
    """

    identities: int = 16
    images: int = 4
    accumulate: int = 1

    def __post_init__(self) -> None:
        check("batch.", self, {"identities": (2, 4096), "images": (1, 4096), "accumulate": (1, 1024)})

    @property
    def size(self) -> int:
        """Images in a batch, P x K."""
        return self.identities * self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """How weights move.

    Attributes:
        name: "adamw", "adam" or "sgd".
        lr: the learning rate after warm-up.
        head_lr: by how much it is multiplied for what follows the backbone.
        weight_decay: on every parameter of the network.
        momentum: of SGD.
        ema: share of the averaged weights that is kept at each step (exponential moving average); 0 for none. The
            averaged network is what is evaluated and written.
        clip: the largest norm of a step's gradient; 0 for none.
    """

    name: Optimiser = "adamw"
    lr: float = 3.5e-4
    head_lr: float = 1.0
    weight_decay: float = 5e-4
    momentum: float = 0.9
    ema: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "lr": (1e-9, 10),
            "head_lr": (0, 1000),
            "weight_decay": (0, 1),
            "momentum": (0, 1),
            "ema": (0, 0.999999),
            "clip": (0, 1e6),
        }
        check("optim.", self, ranges, {"name": Optimiser})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """How the learning rate goes through a stage.

    Attributes:
        name: "steps" down at milestones, "cosine" down to `floor`, or "plateau": down when the validation loss, or
            without one the training loss, has not fallen for `patience` epochs.
        warm_up: share of the stage in which it grows linearly.
        milestones: shares of the stage after which it falls.
        decay: what it is multiplied by then.
        patience: epochs without a lower loss.
        floor: share of the learning rate that is left at the end of a cosine.
    """

    name: Schedule = "steps"
    warm_up: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.8)
    decay: float = 0.1
    patience: int = 2
    floor: float = 0.01

    def __post_init__(self) -> None:
        ranges = {"warm_up": (0, 1), "decay": (0, 1), "patience": (0, 10_000), "floor": (0, 1)}
        check("schedule.", self, ranges, {"name": Schedule})
        if not all(0 <= share <= 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise UsageError(f"schedule.milestones must be shares from 0 to 1 that grow, got {self.milestones}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What is made smaller: a sum of weighted terms.

    Attributes:
        classification: of the scores: "softmax" cross-entropy, or that of cosines with a margin: "arcface", "cosface"
            or "circle".
        smoothing: share of a target that is spread over all classes.
        classification_margin: of arcface (degrees), cosface or circle (cosine).
        classification_scale: of arcface, cosface or circle.
        metric: of the features before the neck: batch-hard "triplet" with a margin, "soft-triplet" (soft margin),
            "circle", or "none".
        metric_weight: of that term.
        margin: of triplet (distance) or circle (cosine).
        circle_scale: of circle.
        centre_weight: of half the squared distance of features to the learned centre of their class; 0 for none.
    """

    classification: Classification = "softmax"
    smoothing: float = 0.1
    classification_margin: float = 28.6
    classification_scale: float = 64.0
    metric: Metric = "triplet"
    metric_weight: float = 1.0
    margin: float = 0.3
    circle_scale: float = 64.0
    centre_weight: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "smoothing": (0, 0.99),
            "classification_margin": (0, 1 if self.classification in ("cosface", "circle") else 180),
            "classification_scale": (1e-3, 1e4),
            "metric_weight": (0, 1000),
            "margin": (0, 1 if self.metric == "circle" else 100),
            "circle_scale": (1e-3, 1e4),
            "centre_weight": (0, 1000),
        }
        check("loss.", self, ranges, {"classification": Classification, "metric": Metric})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """How scores come of the feature after the neck.

    Attributes:
        unit_features: whether the feature is brought to unit length before the classifier.
        unit_rows: whether the classifier's rows are, before each forward pass, their weights overwritten.
        temperature: what the scores are divided by.
        temperature_schedule: "fixed"; "growing", T (1 + ln epoch); or "shrinking", T / (1 + ln epoch).
    """

    unit_features: bool = False
    unit_rows: bool = False
    temperature: float = 1.0
    temperature_schedule: TemperatureSchedule = "fixed"

    def __post_init__(self) -> None:
        check("head.", self, {"temperature": (1e-6, 1e6)}, {"temperature_schedule": TemperatureSchedule})


@dataclass(frozen=True, slots=True, kw_only=True)
class InitSettings:
    """What weights begin as.

    Attributes:
        pretrained: a checkpoint, a file or URL#sha256=..., of which every tensor but the classifier is taken; "" for
            drawn weights.
        head: what follows the backbone begins as ReID projects do ("normal") or as torch does ("default").
        class_centres: whether the classifier's rows begin as the unit mean feature of each class's training images.
    """

    pretrained: str = ""
    head: HeadStart = "normal"
    class_centres: bool = False

    def __post_init__(self) -> None:
        check("init.", self, {}, {"head": HeadStart})
        try:
            self.pretrained.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"init.pretrained must be a name in Unicode, got {self.pretrained!a}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentSettings:
    """What is done to training images by chance.

    Attributes:
        flip: share of images that are mirrored.
        pad: border that a crop may move in, share of the height.
        erase: share of images of which a rectangle is erased (Zhong et al., 2020).
        brightness: by up to what share it is changed, either way.
        contrast: likewise.
        saturation: likewise.
        hue: likewise, of the colour circle.
        rotate: by up to how many degrees an image is turned, either way.
        swap: share of images whose background is put in place by that of another image (masks are needed).
    """

    flip: float = 0.5
    pad: float = 10 / 256
    erase: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rotate: float = 0.0
    swap: float = 0.0

    def __post_init__(self) -> None:
        shares = ("flip", "pad", "erase", "brightness", "contrast", "saturation", "swap")
        check("augment.", self, {**dict.fromkeys(shares, (0.0, 1.0)), "hue": (0, 0.5), "rotate": (0, 180)})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """When and on what a run is scored.

    Attributes:
        every: epochs between two evaluations on query and gallery; the last epoch of a stage is always evaluated. 0
            for none at all.
        held_out: share of each training identity's images that are not learnt from, and give the validation loss and
            accuracy of each epoch; 0 for none.
    """

    every: int = 10
    held_out: float = 0.0

    def __post_init__(self) -> None:
        check("evaluation.", self, {"every": (0, 100_000), "held_out": (0, 0.9)})
