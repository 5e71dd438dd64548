"""A crop: one photograph of one target, as it lies on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reidserve.datasets.attributes import NO_ATTRIBUTES, Attributes

JUNK = "-1"
"""The pid of junk, detections that are neither right nor wrong (Market-1501): dropped from every ranking."""

DISTRACTOR = "0000"
"""The pid of Market-1501's distractors, background that a detector took for a person: always wrong, for any query."""

ProtocolName = Literal["market1501", "cuhk03-single-shot", "vehicleid", "image-to-track"]
"""A way of scoring query against gallery, called after where it comes from."""


def is_distractor(pid: str | None) -> bool:
    """Whether a gallery image of this pid is a distractor.

    In other datasets 0000 may be an identity like any other (MSMT17 under Market's names): queries of that pid tell.
    """
    return pid == DISTRACTOR


@dataclass(frozen=True, slots=True)
class Crop:
    """One photograph of one target, with what its dataset says of it.

    Attributes:
        path: the image file.
        pid: the identity (a person or a vehicle) as text; None where unknown, "-1" for junk.
        camid: the camera as text; None where unknown.
        timestamp: when it was taken, microseconds since 1970 UTC; None where unknown.
        attributes: what else is known of it, by name.
        track: the track it is of, images of one identity that one camera took in one go; None where unknown.
        mask: an image file of the same size, 255 where the target is seen and 0 elsewhere; None where there is none.
    """

    path: Path
    pid: str | None = None
    camid: str | None = None
    timestamp: int | None = None
    attributes: Attributes = field(default_factory=lambda: NO_ATTRIBUTES, hash=False)
    track: str | None = None
    mask: Path | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """The parts of a ReID dataset that scoring needs, each in a fixed order.

    Attributes:
        layout: the name of the layout it was read as.
        query: crops to search with.
        gallery: crops to search in.
        protocol: how it is scored where nothing else is asked for. Under "vehicleid", query and gallery are both all
            test images, of which trials draw theirs.
    """

    layout: str
    query: Sequence[Crop]
    gallery: Sequence[Crop]
    protocol: ProtocolName = "market1501"
