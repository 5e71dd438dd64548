"""The whole network: backbone, pooling, embedding layer, neck and classifier."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidserve.errors import ExportError
from reidserve.export.model.architecture import Architecture
from reidserve.export.model.classifier import Classifier, PartedLinear
from reidserve.export.model.resnet import ResNet

HeadStart = Literal["normal", "default"]

_GEM_SMALLEST = 1e-6


class Average(nn.Module):
    """The mean of each channel's map, or of each of its horizontal stripes."""

    def __init__(self, parts: int = 0) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C), or with parts to (N, parts, C)."""
        means = functional.adaptive_avg_pool2d(x, (self.parts or 1, 1)).flatten(2)
        return means.transpose(1, 2) if self.parts else means.flatten(1)


class GeneralisedMean(Average):
    """GeM pooling, mean(max(x, 1e-6)^p)^(1/p) with p learned, from 3 on.

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.
    """

    def __init__(self, parts: int = 0) -> None:
        super().__init__(parts)
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C), or with parts to (N, parts, C)."""
        return super().forward(x.clamp(min=_GEM_SMALLEST).pow(self.p)).pow(1.0 / self.p)


class Network(nn.Module):
    """An architecture with weights: float32 (N, 3, H, W), normalised, in.

    In training it gives the scores (N, classes) and the feature (N, dim) before the neck, which metric losses take;
    with parts, the scores (N, parts, classes) and the features (N, parts, dim). In evaluation it gives the feature
    (N, feature_dim) at `architecture.feature`, which is not of unit length; with parts, each part's is. The neck is
    BNNeck of Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-Identification", CVPRW 2019: a
    BatchNorm whose bias stays 0, before a classifier without bias. The parts are those of Sun et al., "Beyond Part
    Models: Person Retrieval with Refined Part Pooling", ECCV 2018.

    Attributes:
        architecture: which variant this is.
    """

    def __init__(self, architecture: Architecture, *, head: HeadStart = "normal") -> None:
        super().__init__()
        dim, classes, parts = architecture.dim, architecture.classes, architecture.parts
        self.architecture = architecture
        self.backbone = ResNet(architecture)
        self.pooling = GeneralisedMean(parts) if architecture.pooling == "gem" else Average(parts)
        self.embedding: PartedLinear | None = None
        if architecture.embedding_dim is not None:
            self.embedding = PartedLinear(architecture.channels, dim, parts=parts)
            if head == "normal":
                # He et al. 2015, on the outputs.
                nn.init.normal_(self.embedding.weight, std=(2 / dim) ** 0.5)
                nn.init.zeros_(self.embedding.bias)  # type: ignore[arg-type]  # it has one
        self.neck: nn.BatchNorm1d | None = None
        if architecture.neck == "bnneck":
            self.neck = nn.BatchNorm1d(dim * (parts or 1))
            self.neck.bias.requires_grad_(False)
        self.classifier: Classifier | None = None
        if classes:
            self.classifier = Classifier(dim, classes, parts=parts, bias=self.neck is None)
            if self.neck is not None and head == "normal":
                nn.init.normal_(self.classifier.weight, std=0.001)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images to the vectors before and after the neck, (N, dim) each, or with parts (N, parts, dim)."""
        return self._around_neck(self.pooling(self.backbone(x)))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images to scores and feature in training, to the feature in evaluation.

        Raises:
            RuntimeError: training without classes.
        """
        pooled: Tensor = self.pooling(self.backbone(x))
        if not self.training:
            return self._interleaved(pooled if self.architecture.feature == "pooled" else self._feature(pooled))
        if self.classifier is None:
            raise RuntimeError("a network without classes has no classifier to train")
        before, after = self._around_neck(pooled)
        return self.classifier(after), before

    def _around_neck(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        before = pooled if self.embedding is None else self.embedding(pooled)
        after = before
        if self.neck is not None:
            after = self.neck(before.flatten(1))
            if self.architecture.parts:
                after = after.view(-1, self.architecture.parts, self.architecture.dim)
        return before, functional.relu(after) if self.architecture.neck_relu else after

    def _feature(self, pooled: Tensor) -> Tensor:
        before, after = self._around_neck(pooled)
        return before if self.architecture.feature == "before_neck" else after

    def _interleaved(self, feature: Tensor) -> Tensor:
        """(N, parts, D) to (N, D * parts), each part of unit length; (N, D) as it is."""
        if not self.architecture.parts:
            return feature
        return functional.normalize(feature, dim=2).transpose(1, 2).flatten(1)


def check_stripes(architecture: Architecture, *, height: int, width: int) -> None:
    """See that the last map of an image of this size, in pixels, divides evenly among the parts, if there are any.

    Raises:
        ExportError: stripes would overlap, which no graph of plain operators computes; heights that do are said.
        RuntimeError: nothing is left of so small an image.
    """
    if not architecture.parts:
        return
    with torch.device("meta"):
        rows = ResNet(architecture).eval()(torch.empty(1, 3, height, width)).shape[2]
    if rows % architecture.parts:
        step = architecture.parts * (16 if architecture.last_stride == 1 else 32)
        raise ExportError(
            f"the network's last map has {rows} rows at {height}x{width}, a multiple of its {architecture.parts} parts "
            f"was expected: a height of {step}, {2 * step} and so on gives one"
        )


def build_network(architecture: Architecture, *, seed: int | None = None, head: HeadStart = "normal") -> Network:
    """A network in training mode with fresh weights, the same ones for the same seed.

    `head` says what follows the backbone begins as: "normal", as ReID projects do, or "default", as torch does.
    """
    if seed is None:
        return Network(architecture, head=head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture, head=head)
