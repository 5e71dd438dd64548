"""Files on disk become crops: layouts, tables, patterns, and the synthetic set."""

from reidserve.datasets.attributes import NO_ATTRIBUTES, Attribute, Attributes, read_attribute, wrong_attributes
from reidserve.datasets.crop import DISTRACTOR, JUNK, Crop, Dataset, ProtocolName, is_distractor
from reidserve.datasets.groups import read_multi_query, read_tracks
from reidserve.datasets.layouts import LAYOUTS, LayoutName, read_crops, read_dataset, read_training
from reidserve.datasets.masks import with_masks
from reidserve.datasets.names import path_to_text, text_to_path
from reidserve.datasets.tables import read_timestamp

__all__ = [
    "DISTRACTOR",
    "JUNK",
    "LAYOUTS",
    "NO_ATTRIBUTES",
    "Attribute",
    "Attributes",
    "Crop",
    "Dataset",
    "LayoutName",
    "ProtocolName",
    "is_distractor",
    "path_to_text",
    "read_attribute",
    "read_crops",
    "read_dataset",
    "read_multi_query",
    "read_timestamp",
    "read_tracks",
    "read_training",
    "text_to_path",
    "with_masks",
    "wrong_attributes",
]
