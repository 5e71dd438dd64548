"""Dialects: how each project names its tensors, and what its networks are that their names do not show."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch

from reidserve.errors import CheckpointError
from reidserve.export.checkpoints.feed import Feed
from reidserve.export.checkpoints.files import AVERAGED, Contents, name_some
from reidserve.export.checkpoints.own import OWN, read_own
from reidserve.export.model.architecture import (
    BACKBONES,
    IBNS,
    Architecture,
    LastStride,
    Neck,
    StemPool,
)
from reidserve.export.model.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A project's way of writing a checkpoint.

    Attributes:
        name: of the project.
        parts: what its tensors' names start with, by what ours start with.
        dead: tensors that its network carries and never reads, with the reason.
        last_stride: the project's usual one.
        feed: how the project feeds its networks.
        plain_stems: the stem pools of the projects whose plain ResNets have these names, with their projects; where
            there is more than one, the names do not tell which.
        plain_stem_relu: whether a plain ResNet has the ReLU after the stem's norm.
    """

    name: str
    parts: Mapping[str, str]
    dead: Mapping[str, str] = field(default_factory=dict)
    last_stride: LastStride
    feed: Feed = field(default_factory=Feed)
    plain_stems: Mapping[StemPool, str]
    plain_stem_relu: bool = True

    def foreign(self, own: str) -> str:
        """The project's name for one of our tensors."""
        start = next((part for part in self.parts if own.startswith(part)), "")
        return self.parts.get(start, start) + own.removeprefix(start)


_BARE = {"backbone.": "", "classifier.": "fc."}

_FOREIGN = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="strong-baseline",
            parts={"backbone.": "base.", "pooling.": "gap.", "neck.": "bottleneck."},
            dead={
                "base.fc.weight": "the ImageNet classifier, which the network never reads",
                "base.fc.bias": "the ImageNet classifier, which the network never reads",
            },
            last_stride=1,
            plain_stems={"padded": "strong-baseline", "halving": "AICity DMT and TransReID's ResNet"},
            plain_stem_relu=False,
        ),
        Dialect(name="torchvision", parts=_BARE, last_stride=2, plain_stems={"padded": "torchvision"}),
        Dialect(name="ibn-net", parts=_BARE, last_stride=2, plain_stems={"padded": "IBN-Net"}),
    )
}
_OWN_DIALECT = Dialect(name=OWN, parts={}, last_stride=1, plain_stems={})

DIALECTS = (OWN, *_FOREIGN)
"""The names of the dialects that are read."""

_NOT_YET = {
    "heads.": "fast-reid",
    "model.layer1.": "layumi's Person_reID_baseline_pytorch",
    "base.blocks.": "TransReID, whose network may need the camera id for an image's feature",
    "local_conv.": "the official PCB",
    "instance0.": "the official PCB",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file's tensors tell by themselves.

    Attributes:
        contents: the file.
        dialect: whose names they are.
        architecture: what the tensors tell; of a foreign file, the rest is as the dialect's project has it.
        feed: how the network was fed, from the file itself.
    """

    contents: Contents
    dialect: Dialect
    architecture: Architecture
    feed: Feed | None


def recognise(contents: Contents) -> Reading:
    """Tell dialect and architecture from the names and shapes of a file's tensors.

    Raises:
        CheckpointError: they are of no dialect that is read, or of a neck that is missing.
    """
    if (own := read_own(contents)) is not None:
        architecture, feed = own
        return Reading(contents, _OWN_DIALECT, _with_classifier_of(contents, _OWN_DIALECT, architecture), feed)
    names = contents.tensors.keys()
    dialect = _detect(contents)
    fitting = _best_fit(names, dialect)
    if dialect.name == "torchvision" and fitting.ibn != "none":
        dialect = _FOREIGN["ibn-net"]
    neck: Neck = _strong_neck(contents) if dialect.name == "strong-baseline" else "no"
    architecture = replace(
        fitting,
        last_stride=dialect.last_stride,
        neck=neck,
        stem_relu=dialect.plain_stem_relu or fitting.ibn != "none",
        stem_pool=next(iter(dialect.plain_stems)),
    )
    return Reading(contents, dialect, _with_classifier_of(contents, dialect, architecture), None)


def _with_classifier_of(contents: Contents, dialect: Dialect, architecture: Architecture) -> Architecture:
    """The architecture with the file's number of classes, 0 if its classifier is not whole."""
    tensors = [contents.tensors.get(dialect.foreign(name)) for name in classifier_names(architecture)]
    if any(tensor is None for tensor in tensors):
        return replace(architecture, classes=0)
    weight = tensors[0]
    # A classifier of no sensible shape is refused by its shape.
    return replace(architecture, classes=len(weight) if weight is not None and weight.ndim else 1)


def classifier_names(architecture: Architecture) -> list[str]:
    """The classifier's tensors, by our names: the weight first."""
    return ["classifier.weight"] if architecture.neck == "bnneck" else ["classifier.weight", "classifier.bias"]


def _detect(contents: Contents) -> Dialect:
    names = contents.tensors.keys()

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in names)

    for start, project in _NOT_YET.items():
        if has(start):
            raise CheckpointError(f"{contents.path} looks like a checkpoint of {project}, which is not read yet")
    if has("base.layer1."):
        return _FOREIGN["strong-baseline"]
    if has("layer1.") and has("classifier."):
        raise CheckpointError(f"{contents.path} looks like a checkpoint of torchreid, which is not read yet")
    if has("layer1."):
        return _FOREIGN["torchvision"]
    if has("backbone.layer1."):
        raise CheckpointError(
            f"{contents.path} has reidserve's tensors without their metadata: use the file that reid-train wrote"
        )
    raise CheckpointError(
        f"{contents.path} is of no known dialect ({', '.join(DIALECTS)}): its tensors are {name_some(sorted(names))}"
    )


def _best_fit(names: Iterable[str], dialect: Dialect) -> Architecture:
    """The depth and norms whose tensors differ from these in the fewest names, so that one wrong name is an error."""
    found = set(names)
    return min(_backbones(dialect.name), key=lambda candidate: len(found ^ candidate[1]))[0]


@cache
def _backbones(dialect: str) -> list[tuple[Architecture, frozenset[str]]]:
    """Every backbone with the dialect's names of its tensors."""
    candidates = [Architecture(backbone=backbone, ibn=ibn) for backbone in BACKBONES for ibn in IBNS]
    return [
        (
            candidate,
            frozenset(_FOREIGN[dialect].foreign(name) for name in expected_shapes(candidate) if _in_backbone(name)),
        )
        for candidate in candidates
    ]


def _in_backbone(name: str) -> bool:
    return name.startswith("backbone.")


def _strong_neck(contents: Contents) -> Neck:
    names = contents.tensors.keys()
    if any(name.startswith("bottleneck.") for name in names):
        return "bnneck"
    if "classifier.bias" in names:
        return "no"
    raise CheckpointError(
        f"{contents.path} has no neck: bottleneck.weight, bottleneck.bias, bottleneck.running_mean and "
        "bottleneck.running_var are missing, and a network without neck would have a classifier.bias"
    )


@cache
def expected_shapes(architecture: Architecture) -> Mapping[str, torch.Size]:
    """The shape of every tensor of a network, by our names."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Network(architecture).state_dict().items()}


def dead_tensors(dialect: Dialect, architecture: Architecture) -> dict[str, str]:
    """Every tensor that a file of the dialect may hold in vain, with the reason."""
    dead = dict(dialect.dead) | {AVERAGED: "how many networks were averaged"}
    if not architecture.classes:
        dead |= {dialect.foreign(name): "a part of a classifier" for name in classifier_names(architecture)}
    if dialect.name == "strong-baseline" and architecture.pooling == "average":
        dead["gap.p"] = "GeM's exponent, which a network that pools by the mean never reads"
    return dead
