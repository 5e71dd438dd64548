"""The projects whose checkpoints are read: how each names its tensors, and what its names do not show."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reidserve.export.checkpoints.feed import Feed
from reidserve.export.model.architecture import IBNS, Architecture, Backbone, Ibn

_CLASSIFIES = "tells training identities apart, which the feature does not read"
_IMAGENET = "the ImageNet classifier, which the network never reads"
_PARTS = "reduces and classifies the parts in training; the project's feature is the pooled parts"
_PIXELS = "the normalisation inside, which is taken into the artifact"

_BICUBIC = Feed(resize="bicubic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A project's way of writing a checkpoint.

    Attributes:
        name: of the project, and of the kind of network where its kinds differ.
        signs: what some of its names start with, each of these.
        norms: the IBNs that its networks have.
        starts: what its tensors' names start with, by what ours start with, for each part of the network that is read.
        dead: patterns of the names of tensors that its feature does not read, with the reason.
        always: the choices of an architecture that all its networks share.
        usual: the choices that are usual there and that the names do not tell.
        usual_plain: the same, of ResNets without IBN.
        unsure: values that a choice may have within the project, with what has them.
        feed: how the project feeds its networks.
        size: what it usually brings crops to, for people.
        reads_exponent: whether GeM's exponent is read where it is in the file; elsewhere it may be dead.
        conv_embedding: whether the embedding layer is a 1x1 convolution without bias.
        part_names: the pattern of the names that count a network's parts, and how many there may be.
    """

    name: str
    signs: tuple[str, ...]
    starts: Mapping[str, str]
    norms: tuple[Ibn, ...] = IBNS
    dead: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    usual: Mapping[str, Any] = field(default_factory=dict)
    usual_plain: Mapping[str, Any] = field(default_factory=dict)
    unsure: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    feed: Feed = field(default_factory=Feed)
    size: str = "256x128"
    reads_exponent: bool = False
    conv_embedding: bool = False
    part_names: tuple[str, tuple[int, ...]] | None = None

    def foreign(self, own: str) -> str:
        """The project's name for one of our tensors."""
        start = next((start for start in self.starts if own.startswith(start)), "")
        return self.starts.get(start, start) + own.removeprefix(start)

    def why_dead(self, name: str) -> str | None:
        """Why the feature does not read a tensor of this name; None if it does, or if the name is nobody's."""
        return next((reason for pattern, reason in self.dead.items() if re.fullmatch(pattern, name)), None)

    def usually(self, architecture: Architecture) -> dict[str, Any]:
        """The choices that are usual for an architecture of these norms."""
        return {**self.usual, **(self.usual_plain if architecture.ibn == "none" else {})}


NON_LOCAL: Mapping[Backbone, tuple[int, int, int, int]] = {"resnet50": (0, 2, 3, 0), "resnet101": (0, 2, 9, 0)}
"""Where fast-reid puts non-local blocks, if at all."""

_BARE_NORMS: tuple[tuple[str, tuple[Ibn, ...]], ...] = (("torchvision", ("none",)), ("ibn-net", ("a", "b")))
_STRONG_STARTS = {"backbone.": "base.", "pooling.": "gap.", "neck.": "bottleneck.", "classifier.": "classifier."}
_STRONG_DEAD = {r"base\.fc\.(weight|bias)": _IMAGENET}


def _strong(name: str, *, stem_pool: str = "padded", feed: Feed | None = None, size: str = "256x128") -> Dialect:
    """A project that grew from strong-baseline: the same names, another stem in plain ResNets."""
    return Dialect(
        name=name,
        signs=("base.layer1.",),
        starts=_STRONG_STARTS,
        dead=_STRONG_DEAD,
        usual={"last_stride": 1, "pooling": "average"},
        usual_plain={"stem_relu": False, "stem_pool": stem_pool},
        feed=feed or Feed(),
        size=size,
    )


def _fast_reid(name: str, *signs: str, classifier: str, embedding: bool) -> Dialect:
    """fast-reid from 1.0 on, with an embedding layer before the neck or without."""
    before = {"embedding.": "heads.bottleneck.0."} if embedding else {}
    return Dialect(
        name=name,
        signs=("backbone.layer1.", "heads.bottleneck.", *signs, *(("heads.bottleneck.1.",) if embedding else ())),
        starts={
            "pooling.": "heads.pool_layer.",
            **before,
            "neck.": f"heads.bottleneck.{len(before)}.",
            "classifier.": classifier,
        },
        dead={"pixel_(mean|std)": _PIXELS},
        always={"neck": "bnneck", "stem_pool": "ceil"},
        usual={"last_stride": 1},
        feed=_BICUBIC,
        reads_exponent=True,
        conv_embedding=embedding,
    )


_PCB: Mapping[str, Any] = {"neck": "no", "feature": "pooled", "last_stride": 1}
"""The choices of every PCB, whose feature is the pooled parts."""

FOREIGN = (
    Dialect(
        name="fast-reid-0.1",
        signs=("backbone.layer1.", "heads.bnneck."),
        starts={"pooling.": "heads.pool_layer.", "neck.": "heads.bnneck.", "classifier.": "heads.classifier."},
        dead={"pixel_(mean|std)": _PIXELS},
        always={"neck": "bnneck"},
        usual={"last_stride": 1, "stem_pool": "padded"},
        unsure={"stem_pool": {"padded": "0.1 and 0.1.1", "ceil": "later commits of 2020, before 1.0"}},
        feed=_BICUBIC,
        reads_exponent=True,
    ),
    _fast_reid("fast-reid-1.0", "heads.classifier.", classifier="heads.classifier.", embedding=True),
    _fast_reid("fast-reid-1.0", "heads.classifier.", classifier="heads.classifier.", embedding=False),
    _fast_reid("fast-reid-1.3", classifier="heads.", embedding=True),
    _fast_reid("fast-reid-1.3", classifier="heads.", embedding=False),
    Dialect(
        name="pcb",
        signs=("base.layer1.", "instance0."),
        always=_PCB,
        size="384x128",
        starts={"backbone.": "base."},
        dead={**_STRONG_DEAD, r"(local_conv|feat_bn2d|instance\d+)\..*": _PARTS},
        part_names=(r"instance(\d+)\..*", (6,)),
    ),
    _strong("strong-baseline"),
    _strong("dmt", stem_pool="halving", feed=_BICUBIC, size="384x384"),
    _strong("transreid-resnet", stem_pool="halving"),
    Dialect(
        name="layumi-pcb",
        signs=("model.layer1.", "classifier0."),
        always=_PCB,
        size="384x192",
        starts={"backbone.": "model."},
        dead={r"model\.fc\.(weight|bias)": _IMAGENET, r"classifier\d+\..*": _PARTS},
        part_names=(r"classifier(\d+)\..*", (6,)),
        feed=_BICUBIC,
    ),
    *(
        Dialect(
            name="layumi",
            signs=("model.layer1.", *signs),
            starts={"backbone.": "model.", **starts, "classifier.": "classifier.classifier.0."},
            dead={r"model\.fc\.(weight|bias)": _IMAGENET, r"classifier\.classifier\.0\.bias": _CLASSIFIES},
            always={"neck": "bnneck"},
            usual={"last_stride": 2},
            feed=_BICUBIC,
        )
        for signs, starts in (
            (
                ("classifier.add_block.1.",),
                {"embedding.": "classifier.add_block.0.", "neck.": "classifier.add_block.1."},
            ),
            (("classifier.add_block.",), {"neck.": "classifier.add_block.0."}),
        )
    ),
    Dialect(
        name="torchreid-pcb",
        signs=("layer1.", "conv5."),
        always=_PCB,
        size="384x128",
        starts={"backbone.": ""},
        dead={r"(conv5\.layers|classifier)\..*": _PARTS},
        part_names=(r"classifier\.(\d+)\..*", (4, 6)),
    ),
    Dialect(
        name="torchreid-fc512",
        signs=("layer1.", "fc.1."),
        starts={"backbone.": "", "embedding.": "fc.0.", "neck.": "fc.1.", "classifier.": "classifier."},
        dead={r"classifier\.bias": _CLASSIFIES},
        always={"neck": "bnneck", "neck_relu": True},
        usual={"last_stride": 1},
    ),
    Dialect(
        name="torchreid",
        signs=("layer1.", "classifier."),
        starts={"backbone.": "", "classifier.": "classifier."},
        always={"neck": "no"},
        usual={"last_stride": 2},
    ),
    *(
        Dialect(
            name=name,
            signs=("layer1.",),
            starts={"backbone.": "", "classifier.": "fc."},
            norms=norms,
            always={"neck": "no"},
            usual={"last_stride": 2},
            size="224x224",
        )
        for name, norms in _BARE_NORMS
    ),
)
"""Every foreign dialect, the ones with more signs before those whose signs they have too."""
