"""What a checkpoint says of itself: how its network is fed, which the export reads, and where it comes from."""

import platform
from importlib.metadata import version

import torch

from reidserve.export.checkpoints import Feed
from reidserve.export.train.material import Material
from reidserve.export.train.record import Record
from reidserve.export.train.settings import Settings


def describe(record: Record, settings: Settings, material: Material) -> dict[str, str]:
    """The metadata of the checkpoint of an epoch."""
    feed = Feed(
        mean=settings.input.mean,
        std=settings.input.std,
        colour="rgb",
        resize=settings.input.resize,
        height=settings.input.height,
        width=settings.input.width,
    )
    facts = {
        "dataset": material.name,
        "training_images": len(material.train),
        "fingerprint": material.fingerprint,
        "epoch": record.epoch,
        "epochs": settings.epochs,
        "stage": record.stage,
        "rank1": record.rank1,
        "mAP": record.mAP,
        "val_accuracy": record.val_accuracy,
        "seed": settings.seed,
        "precision": settings.precision,
        "threads": torch.get_num_threads(),
        "reidserve": version("reidserve"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {**feed.to_metadata(), **{name: str(value) for name, value in facts.items() if value is not None}}
