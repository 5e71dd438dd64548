"""Validation: a network scored as a deployed artifact is, and its classifier on images of identities it knows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reidserve.embed import Batch, Embeddings
from reidserve.evaluate import Labelled, Metrics, evaluate, labels_of
from reidserve.export.model import Network
from reidserve.export.train.material import Trial
from reidserve.export.train.sampler import Labels

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """How well a classifier knows images.

    Attributes:
        loss: the mean cross-entropy, without smoothing or margins; of several parts the sum.
        accuracy: share of images whose class has the highest score.
    """

    loss: float
    accuracy: float


def normalise(pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels uint8 (N, H, W, 3) as the network takes them: float32 (N, 3, H, W)."""
    scale = torch.tensor(std, device=pixels.device) * 255
    shift = torch.tensor(mean, device=pixels.device) * 255
    return ((pixels.float() - shift) / scale).permute(0, 3, 1, 2)


def classify(scores: Tensor) -> Tensor:
    """The class (N,) of the highest score (N, classes); of several parts (N, parts, classes) by their mean score."""
    return (scores if scores.ndim == 2 else scores.mean(1)).argmax(1)


def embed(network: Network, pixels: Batch, *, mean: Sequence[float], std: Sequence[float]) -> Embeddings:
    """The evaluation features of pixels, of unit length; the network's mode is left as it was."""
    with evaluating(network):
        rows = [functional.normalize(network(batch)) for batch in batches_of(network, pixels, mean, std)]
        return np.concatenate([row.float().cpu().numpy() for row in rows])


def validate(network: Network, trial: Trial, *, mean: Sequence[float], std: Sequence[float]) -> Metrics:
    """Rank-k and mAP of a network on query and gallery, by the rule of Market-1501."""
    query, gallery = (
        Labelled(embed(network, part.pixels, mean=mean, std=std), labels_of(part.crops))
        for part in (trial.query, trial.gallery)
    )
    return evaluate(query, gallery).metrics


def judge(network: Network, pixels: Batch, labels: Labels, *, mean: Sequence[float], std: Sequence[float]) -> Verdict:
    """How well the network's classifier knows images (N, H, W, 3) of its classes (N,); its mode is left as it was.

    Raises:
        RuntimeError: the network has no classifier.
    """
    if network.classifier is None:
        raise RuntimeError("a network without classes has no classifier to judge")
    loss, right = 0.0, 0
    with evaluating(network):
        for start, batch in zip(range(0, len(labels), _BATCH), batches_of(network, pixels, mean, std), strict=True):
            expected = torch.from_numpy(labels[start : start + _BATCH]).to(batch.device)
            scores = network.classifier(network.features(batch)[1])
            parts = scores[:, None] if scores.ndim == 2 else scores
            loss += sum(functional.cross_entropy(part, expected, reduction="sum").item() for part in parts.unbind(1))
            right += int((classify(scores) == expected).sum())
    return Verdict(loss / len(labels), right / len(labels))


def batches_of(network: Network, pixels: Batch, mean: Sequence[float], std: Sequence[float]) -> Iterator[Tensor]:
    """Pixels uint8 (N, H, W, 3), some at a time, as the network takes them and where it is."""
    device = next(network.parameters()).device
    for start in range(0, len(pixels), _BATCH):
        batch = torch.from_numpy(np.array(pixels[start : start + _BATCH])).to(device)
        yield normalise(batch, mean=mean, std=std).contiguous()


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """A network in evaluation mode, without gradients; afterwards its modules' modes are as they were."""
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in was_training.items():
            module.training = mode
