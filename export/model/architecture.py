"""What a network is, as data: every choice that its weights alone do not show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from reidserve.errors import ExportError

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Ibn = Literal["none", "a", "b"]
LastStride = Literal[1, 2]
Neck = Literal["bnneck", "no"]
Pooling = Literal["average", "gem"]
Feature = Literal["pooled", "before_neck", "after_neck"]
StemPool = Literal["padded", "halving", "ceil"]

BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
IBNS: tuple[Ibn, ...] = get_args(Ibn)
BLOCKS: Mapping[Backbone, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""How many blocks each of the four stages has."""

_MOST = 2**20
"""More classes, parts or dimensions than any network has; a product of such counts still is a size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One variant of the network.

    Attributes:
        backbone: a ResNet's depth (He et al. 2016).
        ibn: where InstanceNorm stands in it (Pan et al. 2018): nowhere, in half of the channels inside the blocks of
            the first three stages ("a"), or after the stem and the last block of the first two stages ("b").
        last_stride: of the last stage; 1 doubles the map's sides (Luo et al. 2019).
        neck: BatchNorm between feature and classifier ("bnneck", Luo et al. 2019), or nothing ("no").
        pooling: of the last map, the mean or the generalised mean (Radenović et al. 2018).
        embedding_dim: outputs of a linear layer between pooling and neck; None for no such layer.
        parts: horizontal stripes that the last map is pooled by, each with an embedding layer, a neck and a
            classifier of its own (PCB, Sun et al. 2018); 0 for the whole map.
        classes: identities that the classifier tells apart; 0 for a network without a classifier.
        feature: what evaluation gives, the vector after the pooling, before the neck or after the neck; PCB's is the
            pooled one. With parts each part's vector is brought to unit length, and they are interleaved: the number
            of a dimension is channel * parts + part, as in every PCB that is known.
        stem_relu: whether a ReLU follows the stem's norm; strong-baseline's plain ResNets have none.
        stem_pool: the stem's max-pool: 3x3 stride 2 with padding 1 ("padded"), 2x2 stride 2 ("halving"), or 3x3
            stride 2 without padding, rounding the map's sides up ("ceil").
        neck_relu: whether a ReLU follows the neck, as in torchreid's fc512.
        non_local: how many of the last blocks of each stage are followed by a non-local block (Wang et al. 2018).

    Raises:
        ExportError: a value that is none of these.
    """

    backbone: Backbone
    ibn: Ibn = "none"
    last_stride: LastStride = 1
    neck: Neck = "bnneck"
    pooling: Pooling = "average"
    embedding_dim: int | None = None
    parts: int = 0
    classes: int = 0
    feature: Feature = "after_neck"
    stem_relu: bool = True
    stem_pool: StemPool = "padded"
    neck_relu: bool = False
    non_local: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        choices = {
            "backbone": BACKBONES,
            "ibn": IBNS,
            "last_stride": get_args(LastStride),
            "neck": get_args(Neck),
            "pooling": get_args(Pooling),
            "feature": get_args(Feature),
            "stem_relu": (False, True),
            "stem_pool": get_args(StemPool),
            "neck_relu": (False, True),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            # True equals 1: the type must agree as well.
            if not any(value == choice and type(value) is type(choice) for choice in known):
                raise ExportError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
        for name in ("classes", "parts"):
            count = getattr(self, name)
            if type(count) is not int or not 0 <= count <= _MOST:
                raise ExportError(f"{name} must be 0 to {_MOST}, got {count!r}")
        dim = self.embedding_dim
        if dim is not None and (type(dim) is not int or not 1 <= dim <= _MOST):
            raise ExportError(f"embedding_dim must be 1 to {_MOST}, or None, got {dim!r}")
        blocks = BLOCKS[self.backbone]
        if not all(0 <= count <= most for count, most in zip(self.non_local, blocks, strict=True)):
            raise ExportError(f"non_local must be at most as many as the blocks, {blocks}, got {self.non_local!r}")

    @property
    def name(self) -> str:
        """The backbone and its norms, such as "resnet50_ibn_a"."""
        return self.backbone if self.ibn == "none" else f"{self.backbone}_ibn_{self.ibn}"

    @property
    def channels(self) -> int:
        """Channels of the last map."""
        return 512 if self.backbone in ("resnet18", "resnet34") else 2048

    @property
    def dim(self) -> int:
        """Dimensions before and after the neck, of each part where there are parts."""
        return self.channels if self.embedding_dim is None else self.embedding_dim

    @property
    def feature_dim(self) -> int:
        """Dimensions of what evaluation gives, of all parts together."""
        return (self.channels if self.feature == "pooled" else self.dim) * (self.parts or 1)


def parse_architecture(name: str, *, classes: int = 0) -> Architecture:
    """The architecture of a name such as "resnet50_ibn_a", everything else as is usual in ReID.

    Raises:
        ExportError: no such name.
    """
    for backbone in BACKBONES:
        for ibn in IBNS:
            architecture = Architecture(backbone=backbone, ibn=ibn, classes=classes)
            if architecture.name == name:
                return architecture
    raise ExportError(f"an architecture is {', '.join(BACKBONES)}, alone or with _ibn_a or _ibn_b, got {name!r}")
