"""Images to embeddings: the contract, the artifact and the embedder. The kernel: it knows no other room."""

from reidserve.embed.ahead import map_ahead
from reidserve.embed.artifact import Artifact, read_artifact
from reidserve.embed.bulk import BulkEmbedder, Prepared
from reidserve.embed.contract import Check, Contract, Flavour, Network, Plan, Precision, Preprocessing, Source
from reidserve.embed.embedder import UNIT_TOLERANCE, Embedder, Embedding, Embeddings, off_unit, open_embedder
from reidserve.embed.engines import Device, available_devices, graph_of, start_session
from reidserve.embed.images import (
    THUMBNAIL_TYPE,
    Batch,
    Image,
    ResizeFilter,
    decode,
    encode_png,
    read_image,
    resize,
    shrink,
)
from reidserve.embed.place import ModelPlace, ModelUrl, parse_model
from reidserve.embed.session import Session

__all__ = [
    "THUMBNAIL_TYPE",
    "UNIT_TOLERANCE",
    "Artifact",
    "Batch",
    "BulkEmbedder",
    "Check",
    "Contract",
    "Device",
    "Embedder",
    "Embedding",
    "Embeddings",
    "Flavour",
    "Image",
    "ModelPlace",
    "ModelUrl",
    "Network",
    "Plan",
    "Precision",
    "Prepared",
    "Preprocessing",
    "ResizeFilter",
    "Session",
    "Source",
    "available_devices",
    "decode",
    "encode_png",
    "graph_of",
    "map_ahead",
    "off_unit",
    "open_embedder",
    "parse_model",
    "read_artifact",
    "read_image",
    "resize",
    "shrink",
    "start_session",
]
