"""The backbone: ResNet (He et al., CVPR 2016) with the norms of IBN-Net (Pan et al., ECCV 2018).

Modules are named as in torchvision and the official IBN-Net, so that their tensors keep their names.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from reidserve.export.model.architecture import BLOCKS, Architecture, Ibn, StemPool

_IBN_STAGES = {"none": 0, "a": 3, "b": 2}
"""How many stages, from the first, have InstanceNorm."""


class InstanceBatchNorm(nn.Module):
    """IBN-a: InstanceNorm on the first half of the channels, BatchNorm on the rest; (N, C, H, W) in and out.

    InstanceNorm keeps no running statistics: it takes each image's own, in evaluation too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.halves = [channels // 2, channels - channels // 2]
        self.IN = nn.InstanceNorm2d(self.halves[0], affine=True)
        self.BN = nn.BatchNorm2d(self.halves[1])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, keeping the shape."""
        first, second = torch.split(x, self.halves, dim=1)
        return torch.cat((self.IN(first.contiguous()), self.BN(second.contiguous())), dim=1)


class Block(nn.Module, ABC):
    """What both kinds of block share: a residual branch, the shortcut, and IBN-b's InstanceNorm after their sum."""

    expansion: int

    def __init__(self, channels_in: int, planes: int, *, stride: int, ibn: Ibn) -> None:
        super().__init__()
        channels = planes * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.IN = nn.InstanceNorm2d(channels, affine=True) if ibn == "b" else None
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """The residual, before it is added to the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to (N, planes * expansion, H / stride, W / stride)."""
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        total = self.branch(x) + shortcut
        if self.IN is not None:
            total = self.IN(total)
        out: Tensor = self.relu(total)
        return out


class BasicBlock(Block):
    """Two 3x3 convolutions: ResNet-18 and -34."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, *, stride: int, ibn: Ibn) -> None:
        super().__init__(channels_in, planes, stride=stride, ibn=ibn)
        self.conv1 = nn.Conv2d(channels_in, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = InstanceBatchNorm(planes) if ibn == "a" else nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def branch(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to (N, planes * expansion, H / stride, W / stride)."""
        inner: Tensor = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(inner))
        return out


class Bottleneck(Block):
    """1x1, 3x3 with the stride, and 1x1 convolutions: ResNet-50 and -101."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, *, stride: int, ibn: Ibn) -> None:
        super().__init__(channels_in, planes, stride=stride, ibn=ibn)
        self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
        self.bn1 = InstanceBatchNorm(planes) if ibn == "a" else nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) to (N, planes * expansion, H / stride, W / stride)."""
        inner: Tensor = self.relu(self.bn1(self.conv1(x)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        out: Tensor = self.bn3(self.conv3(inner))
        return out


class NonLocal(nn.Module):
    """Every place of a map is given what it resembles elsewhere: (N, C, H, W) in and out.

    Wang et al., "Non-local Neural Networks", CVPR 2018, the dot product, as fast-reid has it: one inner channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        # The block begins as the identity.
        nn.init.zeros_(self.W[1].weight)  # type: ignore[arg-type]  # a tensor, in a Sequential's item

    def forward(self, x: Tensor) -> Tensor:
        """Add to each place the mean over all places of g, weighted by theta here times phi there."""
        # With one inner channel theta leaves the sum over places: no matrix of all pairs of them is needed.
        weighted = self.theta(x) * (self.phi(x) * self.g(x)).mean((2, 3), keepdim=True)
        out: Tensor = self.W(weighted) + x
        return out


class ResNet(nn.Module):
    """The backbone of an architecture: float32 (N, 3, H, W) to its last map, (N, channels, h, w)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.InstanceNorm2d(64, affine=True) if architecture.ibn == "b" else nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True) if architecture.stem_relu else nn.Identity()
        self.maxpool = _max_pool(architecture.stem_pool)
        stages = [_stage(architecture, number) for number in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.NL_1, self.NL_2, self.NL_3, self.NL_4 = (_non_local(architecture, number) for number in range(4))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Images to maps; at last stride 1 the map has a sixteenth of the image's sides, else a thirty-second."""
        out: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage, non_local in (
            (self.layer1, self.NL_1),
            (self.layer2, self.NL_2),
            (self.layer3, self.NL_3),
            (self.layer4, self.NL_4),
        ):
            first = len(stage) - len(non_local)
            for index, block in enumerate(stage):
                out = block(out)
                if index >= first:
                    out = non_local[index - first](out)
        return out


def _stage(architecture: Architecture, number: int) -> nn.Sequential:
    """Stage `number` of 0 to 3: its first block changes the channels and takes the stride."""
    block = BasicBlock if architecture.channels == 512 else Bottleneck
    count = BLOCKS[architecture.backbone][number]
    planes = 64 * 2**number
    channels_in = 64 if number == 0 else planes // 2 * block.expansion
    stride = (1, 2, 2, architecture.last_stride)[number]
    blocks = []
    for index in range(count):
        ibn = architecture.ibn if number < _IBN_STAGES[architecture.ibn] else "none"
        if ibn == "b" and index < count - 1:
            ibn = "none"
        blocks.append(block(channels_in, planes, stride=stride, ibn=ibn))
        channels_in, stride = planes * block.expansion, 1
    return nn.Sequential(*blocks)


def _non_local(architecture: Architecture, number: int) -> nn.ModuleList:
    channels = architecture.channels // 2 ** (3 - number)
    return nn.ModuleList(NonLocal(channels) for _ in range(architecture.non_local[number]))


def _max_pool(kind: StemPool) -> nn.MaxPool2d:
    if kind == "padded":
        return nn.MaxPool2d(3, stride=2, padding=1)
    if kind == "halving":
        return nn.MaxPool2d(2, stride=2)
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def _initialise(module: nn.Module) -> None:
    # He et al. 2015 on the outputs, as torchvision and IBN-Net do; norms start as 1 and 0 by themselves.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
