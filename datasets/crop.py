"""A crop: one photograph of one target, as it lies on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reidserve.datasets.attributes import NO_ATTRIBUTES, Attributes

JUNK = "-1"
"""The pid of junk, detections that are neither right nor wrong (Market-1501): dropped from every ranking."""


@dataclass(frozen=True, slots=True)
class Crop:
    """One photograph of one target, with what its dataset says of it.

    Attributes:
        path: the image file.
        pid: the identity (a person or a vehicle) as text; None where unknown, "-1" for junk.
        camid: the camera as text; None where unknown.
        timestamp: when it was taken, microseconds since 1970 UTC; None where unknown.
        attributes: what else is known of it, by name.
    """

    path: Path
    pid: str | None = None
    camid: str | None = None
    timestamp: int | None = None
    attributes: Attributes = field(default_factory=lambda: NO_ATTRIBUTES, hash=False)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The parts of a ReID dataset that scoring needs, each in a fixed order.

    Attributes:
        layout: the name of the layout it was read as.
        query: crops to search with.
        gallery: crops to search in.
    """

    layout: str
    query: Sequence[Crop]
    gallery: Sequence[Crop]
