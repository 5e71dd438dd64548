"""A process that adapts: SOURCE TARGET OUT RECIPE HOW, the last a JSON file of an adaptation's own settings."""

import sys
from pathlib import Path

import msgspec
import torch

from reidserve.export.adapt import AdaptSettings, adapt, read_target
from reidserve.export.train import claim_folder, read_material
from reidserve.export.train.recipes import read_recipe

if __name__ == "__main__":
    torch.set_num_threads(1)
    source, target, out, recipe, how = map(Path, sys.argv[1:])
    settings = read_recipe(recipe)
    with claim_folder(out, settings) as folder:
        outcome = adapt(
            read_material(source, settings, scratch=folder.path),
            read_target(target, settings, scratch=folder.path),
            folder,
            settings,
            msgspec.json.decode(how.read_bytes(), type=AdaptSettings),
            on_epoch=lambda record: print(record.epoch, flush=True),
        )
    print(outcome.resumed_after, outcome.best.epoch)
