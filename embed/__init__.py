"""Images to embeddings: the contract, the artifact and the embedder. The kernel: it knows no other room."""

from reidserve.embed.ahead import map_ahead
from reidserve.embed.artifact import Artifact, read_artifact
from reidserve.embed.contract import Contract, Network, Preprocessing, Source
from reidserve.embed.embedder import UNIT_TOLERANCE, Embedder, Embedding, Embeddings, off_unit, open_embedder
from reidserve.embed.images import Batch, Image, ResizeFilter, decode, read_image, resize
from reidserve.embed.onnx_session import Device
from reidserve.embed.session import Session

__all__ = [
    "UNIT_TOLERANCE",
    "Artifact",
    "Batch",
    "Contract",
    "Device",
    "Embedder",
    "Embedding",
    "Embeddings",
    "Image",
    "Network",
    "Preprocessing",
    "ResizeFilter",
    "Session",
    "Source",
    "decode",
    "map_ahead",
    "off_unit",
    "open_embedder",
    "read_artifact",
    "read_image",
    "resize",
]
