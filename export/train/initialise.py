"""What a network begins with, beyond the weights that are drawn."""

import numpy as np
import torch
from torch.nn import functional

from reidserve.export.checkpoints import load_pretrained
from reidserve.export.model import Network
from reidserve.export.train.material import Material
from reidserve.export.train.settings import Settings
from reidserve.export.train.validation import batches_of, evaluating


def begin(network: Network, material: Material, settings: Settings) -> list[str]:
    """Do what `settings.init` says to a drawn network; returns what people should know of it, a line each.

    Raises:
        CheckpointError: the pretrained file is not what the network needs.
    """
    source, lines = settings.init.pretrained, []
    if source:
        lines += [f"not taken from {source}: {line}" for line in load_pretrained(network, source)]
    if settings.init.class_centres:
        class_centres(network, material, settings)
        lines.append(f"the classifier begins with the centres of {material.classes} classes")
    return lines


def class_centres(network: Network, material: Material, settings: Settings) -> None:
    """Make each row of the classifier the unit mean feature, after the neck, of its class's training images.

    With parts, each part's rows are of that part's features. The images are seen as in evaluation.
    """
    assert network.classifier is not None, "a network that learns to tell classes apart"
    weight = network.classifier.weight
    sums = torch.zeros_like(weight)
    classes = len(sums) if sums.ndim == 2 else sums.shape[1]
    labels = torch.from_numpy(np.array(material.labels)).to(weight.device)
    done = 0
    with evaluating(network):
        for batch in batches_of(network, material.train.pixels, settings.input.mean, settings.input.std):
            after = network.features(batch)[1]
            of_class = functional.one_hot(labels[done : done + len(batch)], classes).to(after.dtype)
            # One product for each part: classes x images times images x dim.
            sums += of_class.T @ (after if after.ndim == 2 else after.transpose(0, 1))
            done += len(batch)
    with torch.no_grad():
        weight.copy_(functional.normalize(sums, dim=-1))
