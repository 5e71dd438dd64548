"""Training: a dataset becomes a checkpoint."""

from reidserve.export.train.folder import RunFolder, claim_folder
from reidserve.export.train.material import Material, read_material
from reidserve.export.train.record import Record
from reidserve.export.train.run import Outcome, check_start, train
from reidserve.export.train.settings import Device, Precision, Settings

__all__ = [
    "Device",
    "Material",
    "Outcome",
    "Precision",
    "Record",
    "RunFolder",
    "Settings",
    "check_start",
    "claim_folder",
    "read_material",
    "train",
]
