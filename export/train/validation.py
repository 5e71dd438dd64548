"""Validation: a network's embeddings, scored as a deployed artifact is scored."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reidserve.embed import Batch, Embeddings
from reidserve.evaluate import Labelled, Metrics, evaluate, labels_of
from reidserve.export.model import Network
from reidserve.export.train.material import Trial

_BATCH = 64


def normalise(pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels uint8 (N, H, W, 3) as the network takes them: float32 (N, 3, H, W)."""
    scale = torch.tensor(std, device=pixels.device) * 255
    shift = torch.tensor(mean, device=pixels.device) * 255
    return ((pixels.float() - shift) / scale).permute(0, 3, 1, 2)


def embed(network: Network, pixels: Batch, *, mean: Sequence[float], std: Sequence[float]) -> Embeddings:
    """The evaluation features of pixels, of unit length; the network's mode is left as it was."""
    device = next(network.parameters()).device
    was_training = {module: module.training for module in network.modules()}
    rows = []
    network.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(pixels), _BATCH):
                batch = torch.from_numpy(np.array(pixels[start : start + _BATCH])).to(device)
                features = functional.normalize(network(normalise(batch, mean=mean, std=std).contiguous()))
                rows.append(features.float().cpu().numpy())
    finally:
        for module, mode in was_training.items():
            module.training = mode
    return np.concatenate(rows)


def validate(network: Network, trial: Trial, *, mean: Sequence[float], std: Sequence[float]) -> Metrics:
    """Rank-k and mAP of a network on query and gallery, by the rule of Market-1501."""
    query, gallery = (
        Labelled(embed(network, part.pixels, mean=mean, std=std), labels_of(part.crops))
        for part in (trial.query, trial.gallery)
    )
    return evaluate(query, gallery).metrics
