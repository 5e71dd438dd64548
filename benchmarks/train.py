"""Training, its loader and augmentation included, against the bare loop of the same network.

    python -P benchmarks/train.py [--quick] [--device cuda]

An epoch of `learn_epoch` on a synthetic set and as many bare steps - forward, cross-entropy, back, optimiser - of the
same network, batch size and precision, on a tensor that is ready in memory, are timed in turn, so that a slow moment
of the machine hits both. The figure is images/s over bare images/s, a median of ratios turn by turn; absolute rates are
only for orientation. Training again from the same seed must come to the same losses, and they must be finite.

How fast the loader alone is, by its threads, is a figure without a bound.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.embed import map_ahead
from reidserve.export.train import Material, Settings, read_material
from reidserve.export.train.epoch import learn_epoch
from reidserve.export.train.learner import Learner, make_learner, memory_format
from reidserve.export.train.sampler import draw_batches
from reidserve.export.train.settings import BatchSettings, EvaluationSettings, InputSettings, NetworkSettings, Stage

OVER_BARE = 0.9
"""Least images/s over those of the bare loop."""

Figures = dict[str, Any]

CPU = Settings(
    network=NetworkSettings(arch="resnet18_ibn_a"),
    input=InputSettings(height=128, width=64),
    evaluation=EvaluationSettings(every=0),
    stages=(Stage(epochs=1000),),
)
CUDA = Settings(
    network=NetworkSettings(arch="resnet50_ibn_a"),
    input=InputSettings(height=256, width=128),
    evaluation=EvaluationSettings(every=0),
    stages=(Stage(epochs=1000),),
    precision="bf16",
    device="cuda",
)
QUICK = Settings(
    network=NetworkSettings(arch="resnet18_ibn_a"),
    input=InputSettings(height=64, width=32),
    batch=BatchSettings(identities=4, images=4),
    evaluation=EvaluationSettings(every=0),
    stages=(Stage(epochs=1000),),
)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="under a minute: 64x32, batches of 16, no bound")
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked = arguments.parse_args()
    settings = QUICK if asked.quick else {"cpu": CPU, "cuda": CUDA}[asked.device]
    rounds = 3 if asked.quick else 9
    with tempfile.TemporaryDirectory() as scratch:
        material = draw(Path(scratch), settings)
        same = train_twice(material, settings)
        training = measure(material, settings, rounds)
        loading = measure_loading(material, settings)
    holds = same and (asked.quick or training["over_bare"] >= OVER_BARE)
    report = {
        "name": "train",
        "holds": holds,
        "quick": asked.quick,
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "network": settings.network.arch,
        "input": f"{settings.input.height}x{settings.input.width}",
        "batch": settings.batch.size,
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
        "same_seed_same_losses": same,
        **training,
        "loading_images_per_second": loading,
        "versions": {name: version(name) for name in ("reidserve", "numpy", "torch")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def draw(folder: Path, settings: Settings) -> Material:
    """Six batches of pictures, or for a GPU, which is soon done with them, 24."""
    images = settings.batch.size * (24 if settings.device == "cuda" else 6)
    spec = SynthSpec(
        train_identities=images // 8, test_identities=1, cameras=2, images_per_camera=4, junk=0, distractors=0
    )
    write_dataset(folder / "data", spec)
    return read_material(folder / "data", settings, scratch=folder)


def train_twice(material: Material, settings: Settings) -> bool:
    """Whether two epochs from the same seed come to the same losses; on a GPU, whose sums have no order, the first."""
    one, other = (learn_epoch(make_learner(settings, material.classes), material, 1).step_losses for _ in range(2))
    compared = 1 if settings.device == "cuda" else len(one)
    return all(map(math.isfinite, one)) and one[:compared] == other[:compared]


def measure(material: Material, settings: Settings, rounds: int) -> Figures:
    """Rates of training and of the bare loop, and their ratio; the first turn warms."""
    learner, bare = (make_learner(settings, material.classes) for _ in range(2))
    steps = len(batches_of(material, settings))
    console = Console(stderr=True)
    seconds: dict[str, list[float]] = {"training": [], "bare": []}
    for epoch in track(range(1, rounds + 2), "training", console=console, disable=not console.is_terminal):
        started = time.perf_counter()
        record = learn_epoch(learner, material, epoch)
        between = time.perf_counter()
        loss = learn_bare(bare, steps)
        ended = time.perf_counter()
        assert record.loss is not None, "an epoch that learns has a loss"
        assert math.isfinite(record.loss), f"the loss is {record.loss} after {epoch} epochs"
        assert math.isfinite(loss), f"the bare loop's loss is {loss} after {epoch} epochs"
        if epoch > 1:
            seconds["training"].append(between - started)
            seconds["bare"].append(ended - between)
    images = steps * settings.batch.size
    ratios = [bare / training for training, bare in zip(seconds["training"], seconds["bare"], strict=True)]
    return {
        "images_per_second": round(images / median(seconds["training"]), 1),
        "bare_images_per_second": round(images / median(seconds["bare"]), 1),
        "over_bare": round(median(ratios), 3),
        "rounds": rounds,
    }


def learn_bare(learner: Learner, steps: int) -> float:
    """As many steps on one batch, with nothing beside them; the last loss, when all is computed."""
    settings, network, optimiser = learner.settings, learner.network, learner.optimiser
    size = (settings.batch.size, 3, settings.input.height, settings.input.width)
    pixels = torch.randn(size, device=settings.device).contiguous(memory_format=memory_format(settings))
    labels = torch.arange(settings.batch.size, device=settings.device) // settings.batch.images
    loss = torch.zeros(())
    for _ in range(steps):
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
            scores, _ = network(pixels)
        loss = torch.nn.functional.cross_entropy(scores.float(), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return loss.item()


def batches_of(material: Material, settings: Settings) -> Sequence[NDArray[np.int64]]:
    batch = settings.batch
    return draw_batches(
        material.labels, batch_identities=batch.identities, batch_images=batch.images, seed=settings.seed, epoch=1
    )


def measure_loading(material: Material, settings: Settings) -> dict[str, int]:
    """Images/s of the loader alone, by its threads."""
    batches, rates = batches_of(material, settings), dict[str, int]()
    threads = 1
    while threads <= (os.cpu_count() or 1):
        start = time.perf_counter()
        with closing(
            map_ahead(
                lambda item: material.batch(item[1], settings, epoch=1, step=item[0]),
                enumerate([*batches] * 3),
                ahead=2 * threads,
                threads=threads,
            )
        ) as loading:
            images = sum(len(batch) for batch in loading)
        rates[str(threads)] = round(images / (time.perf_counter() - start))
        threads *= 2
    return rates


if __name__ == "__main__":
    sys.exit(main())
