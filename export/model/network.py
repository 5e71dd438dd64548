"""The whole network: backbone, pooling, embedding layer, neck and classifier."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidserve.export.model.architecture import Architecture
from reidserve.export.model.resnet import ResNet

_GEM_SMALLEST = 1e-6


class GlobalAverage(nn.Module):
    """The mean of each channel's map."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return functional.adaptive_avg_pool2d(x, 1).flatten(1)


class GeneralisedMean(nn.Module):
    """GeM pooling, mean(max(x, 1e-6)^p)^(1/p) with p learned, from 3 on.

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        powers = x.clamp(min=_GEM_SMALLEST).pow(self.p)
        return functional.adaptive_avg_pool2d(powers, 1).pow(1.0 / self.p).flatten(1)


class Network(nn.Module):
    """An architecture with weights: float32 (N, 3, H, W), normalised, in.

    In training it gives the scores (N, classes) and the feature (N, dim) before the neck, which metric losses take;
    in evaluation the feature (N, dim) at `architecture.feature`. The neck is BNNeck of Luo et al., "Bag of Tricks
    and a Strong Baseline for Deep Person Re-Identification", CVPRW 2019: a BatchNorm whose bias stays 0, before a
    classifier without bias. The feature is not of unit length.

    Attributes:
        architecture: which variant this is.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, classes = architecture.dim, architecture.classes
        self.architecture = architecture
        self.backbone = ResNet(architecture)
        self.pooling = GeneralisedMean() if architecture.pooling == "gem" else GlobalAverage()
        self.embedding: nn.Linear | None = None
        if architecture.embedding_dim is not None:
            self.embedding = nn.Linear(architecture.channels, dim)
            nn.init.kaiming_normal_(self.embedding.weight, mode="fan_out")
            nn.init.zeros_(self.embedding.bias)
        self.neck: nn.BatchNorm1d | None = None
        if architecture.neck == "bnneck":
            self.neck = nn.BatchNorm1d(dim)
            self.neck.bias.requires_grad_(False)
        self.classifier: nn.Linear | None = None
        if classes:
            self.classifier = nn.Linear(dim, classes, bias=self.neck is None)
            if self.neck is not None:
                nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images to scores and feature in training, to the feature in evaluation.

        Raises:
            RuntimeError: training without classes.
        """
        before: Tensor = self.pooling(self.backbone(x))
        if self.embedding is not None:
            before = self.embedding(before)
        after: Tensor = before if self.neck is None else self.neck(before)
        if not self.training:
            return before if self.architecture.feature == "before_neck" else after
        if self.classifier is None:
            raise RuntimeError("a network without classes has no classifier to train")
        return self.classifier(after), before


def build_network(architecture: Architecture, *, seed: int | None = None) -> Network:
    """A network in training mode with fresh weights, the same ones for the same seed."""
    if seed is None:
        return Network(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture)
