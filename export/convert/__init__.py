"""Graphs: wrapping a backbone into the contract's graph, and assembling artifacts from graphs."""

from reidserve.export.convert.adopt import adopt
from reidserve.export.convert.assembly import Assembled, Blueprint, assemble
from reidserve.export.convert.feeding import Feeding
from reidserve.export.convert.wrap import wrap

__all__ = ["Assembled", "Blueprint", "Feeding", "adopt", "assemble", "wrap"]
