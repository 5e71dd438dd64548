"""How a checkpoint's network was fed in training, which no tensor shows."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from reidserve.embed import ResizeFilter
from reidserve.embed.contract import MAX_SIDE
from reidserve.embed.images import FILTERS
from reidserve.errors import CheckpointError

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What came before the network in training.

    Attributes:
        mean: per channel of the colour order, in units of pixel / 255.
        std: per channel of the colour order, in units of pixel / 255.
        colour: the channel order.
        resize: the Pillow filter that resized the crops.
        height: input height, pixels; None where the project fixes none.
        width: input width, pixels; None where the project fixes none.

    Raises:
        CheckpointError: a value out of range.
    """

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    colour: Literal["rgb", "bgr"] = "rgb"
    resize: ResizeFilter = "bilinear"
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and not 1 <= side <= MAX_SIDE:
                raise CheckpointError(f"{name} must be 1 to {MAX_SIDE} pixels, got {side}")
        if self.resize not in FILTERS:
            raise CheckpointError(f"resize must be one of {', '.join(FILTERS)}, got {self.resize!r}")
        if self.colour not in ("rgb", "bgr"):
            raise CheckpointError(f"colour must be rgb or bgr, got {self.colour!r}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not min(self.std) > 0:
            raise CheckpointError(f"mean must be finite and std above 0, got {self.mean} and {self.std}")

    def to_metadata(self) -> dict[str, str]:
        """The same as metadata for `write_checkpoint`, one JSON value for each attribute."""
        return {name: json.dumps(getattr(self, name)) for name in _NAMES}


_NAMES = tuple(Feed.__slots__)


def parse_feed(metadata: Mapping[str, str]) -> Feed | None:
    """The feed that `Feed.to_metadata` put into a checkpoint's metadata; None if none of it is there.

    Raises:
        CheckpointError: some of it is missing or does not read.
    """
    if not any(name in metadata for name in _NAMES):
        return None
    values: dict[str, Any] = {}
    for name in _NAMES:
        if name not in metadata:
            raise CheckpointError(f"the metadata say how the network was fed, but not its {name}")
        try:
            values[name] = json.loads(metadata[name])
        except ValueError as error:
            raise CheckpointError(f"{name} in the metadata is no JSON: {metadata[name]!r}") from error
    try:
        return msgspec.convert(values, Feed)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"the metadata do not say how the network was fed: {error}") from error
