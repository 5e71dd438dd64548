"""Files on disk become crops: layouts, tables, patterns, and the synthetic set."""

from reidserve.datasets.crop import JUNK, Crop, Dataset
from reidserve.datasets.layouts import LAYOUTS, LayoutName, read_crops, read_dataset, read_training
from reidserve.datasets.names import path_to_text, text_to_path

__all__ = [
    "JUNK",
    "LAYOUTS",
    "Crop",
    "Dataset",
    "LayoutName",
    "path_to_text",
    "read_crops",
    "read_dataset",
    "read_training",
    "text_to_path",
]
