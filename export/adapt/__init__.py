"""Adaptation: a checkpoint trained on one domain learns another's images, which have no labels, by clustering them."""

from reidserve.export.adapt.record import AdaptRecord
from reidserve.export.adapt.run import adapt, check_adaptation
from reidserve.export.adapt.settings import AdaptSettings, Distance, Mode
from reidserve.export.adapt.target import Target, read_target

__all__ = ["AdaptRecord", "AdaptSettings", "Distance", "Mode", "Target", "adapt", "check_adaptation", "read_target"]
