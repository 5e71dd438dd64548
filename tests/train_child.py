"""A process that trains: DATA OUT RECIPE. FIXED_NORMS in the environment keeps every BatchNorm as it began."""

import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from reidserve.export.train import check_start, claim_folder, read_material, train
from reidserve.export.train.recipes import read_recipe


def normalise_as_begun(norm: nn.modules.batchnorm._BatchNorm, x: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


if __name__ == "__main__":
    if "FIXED_NORMS" in os.environ:
        nn.modules.batchnorm._BatchNorm.forward = normalise_as_begun  # type: ignore[method-assign, assignment]
    torch.set_num_threads(1)
    data, out, recipe = map(Path, sys.argv[1:])
    settings = read_recipe(recipe)
    with claim_folder(out, settings) as folder:
        check_start(settings, folder)
        material = read_material(data, settings, scratch=folder.path)
        outcome = train(material, folder, settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(outcome.resumed_after, outcome.best.epoch)
