"""Checkpoints: files of weights, ours and other projects', read to the last tensor or refused."""

from reidserve.export.checkpoints.dialects import DIALECTS
from reidserve.export.checkpoints.feed import Feed
from reidserve.export.checkpoints.inspection import Held, Inspection, inspect_checkpoint
from reidserve.export.checkpoints.own import write_checkpoint
from reidserve.export.checkpoints.pretrained import load_pretrained
from reidserve.export.checkpoints.read import Checkpoint, read_checkpoint

__all__ = [
    "DIALECTS",
    "Checkpoint",
    "Feed",
    "Held",
    "Inspection",
    "inspect_checkpoint",
    "load_pretrained",
    "read_checkpoint",
    "write_checkpoint",
]
