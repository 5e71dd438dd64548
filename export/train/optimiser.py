"""The optimiser: which parameters move by which multiple of the learning rate."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from reidserve.export.train.settings import OptimSettings
from reidserve.export.train.stages import part_of


def make_optimiser(
    network: Mapping[str, nn.Parameter], loss: Mapping[str, nn.Parameter], settings: OptimSettings
) -> Optimizer:
    """An optimiser without memory, in groups: backbone, head, and what the loss itself learns, which never decays.

    AdamW decays each weight apart from its gradient (Loshchilov and Hutter, ICLR 2019), Adam and SGD with it.
    """
    backbone = [parameter for name, parameter in network.items() if part_of(name) != "head"]
    head = [parameter for name, parameter in network.items() if part_of(name) == "head"]
    groups = [
        {"params": backbone, "scale": 1.0},
        {"params": head, "scale": settings.head_lr},
        {"params": [*loss.values()], "scale": 1.0, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def set_rate(optimiser: Optimizer, lr: float) -> None:
    """Let the next step be taken at this learning rate, each group at its own multiple of it."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]
