"""Images to embeddings: the contract, the artifact and the embedder. The kernel: it knows no other room."""

from reidserve.embed.ahead import map_ahead
from reidserve.embed.artifact import Artifact, read_artifact
from reidserve.embed.contract import Check, Contract, Flavour, Network, Plan, Precision, Preprocessing, Source
from reidserve.embed.embedder import UNIT_TOLERANCE, Embedder, Embedding, Embeddings, off_unit, open_embedder
from reidserve.embed.engines import Device, available_devices, graph_of, start_session
from reidserve.embed.images import Batch, Image, ResizeFilter, decode, read_image, resize
from reidserve.embed.session import Session

__all__ = [
    "UNIT_TOLERANCE",
    "Artifact",
    "Batch",
    "Check",
    "Contract",
    "Device",
    "Embedder",
    "Embedding",
    "Embeddings",
    "Flavour",
    "Image",
    "Network",
    "Plan",
    "Precision",
    "Preprocessing",
    "ResizeFilter",
    "Session",
    "Source",
    "available_devices",
    "decode",
    "graph_of",
    "map_ahead",
    "off_unit",
    "open_embedder",
    "read_artifact",
    "read_image",
    "resize",
    "start_session",
]
