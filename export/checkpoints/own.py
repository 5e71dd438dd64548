"""Our own checkpoints: safetensors whose metadata say what the network is and how it was fed."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import msgspec
import safetensors.torch

from reidserve.errors import CheckpointError, ExportError
from reidserve.export.checkpoints.feed import Feed, parse_feed
from reidserve.export.checkpoints.files import Contents
from reidserve.export.files import write_whole
from reidserve.export.model.architecture import Architecture
from reidserve.export.model.network import Network

OWN = "reidserve"
_FORMAT, _ARCHITECTURE = "reidserve_format", "architecture"
OWN_NAMES = {_FORMAT, _ARCHITECTURE, *Feed.__slots__}
"""Metadata that are read back; all others are for people."""
_VERSION = "2"
_WITHOUT = {"1": frozenset({"parts", "neck_relu", "non_local"}), _VERSION: frozenset[str]()}
"""The formats that are read, with what an architecture of theirs does not say; it has its default there."""
_ALIGNMENT = 8


def write_checkpoint(path: Path, network: Network, metadata: Mapping[str, str]) -> None:
    """Write a network's tensors with its architecture and these metadata, whole or not at all.

    Equal networks and metadata give equal bytes. `Feed.to_metadata` says how the network was fed, which the export
    reads back; everything else in the metadata is for people.

    Raises:
        CheckpointError: the metadata use a name of the format's own.
        OSError: the file cannot be written.
    """
    taken = sorted({_FORMAT, _ARCHITECTURE} & metadata.keys())
    if taken:
        raise CheckpointError(f"metadata may not be named {' or '.join(taken)}: the format uses these itself")
    everything = {**metadata, _FORMAT: _VERSION, _ARCHITECTURE: json.dumps(asdict(network.architecture))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    data = _sorted_header(safetensors.torch.save(tensors, everything))
    write_whole(path, data)


def _sorted_header(data: bytes) -> bytes:
    """The same file with its header's names in order: the library leaves the metadata in the order of a hash."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read_own(contents: Contents) -> tuple[Architecture, Feed | None] | None:
    """What our own file's metadata say; None if it is not ours.

    Raises:
        CheckpointError: it is ours and its metadata do not read.
    """
    version = contents.metadata.get(_FORMAT)
    if version is None:
        return None
    if version not in _WITHOUT:
        raise CheckpointError(f"{contents.path} is of format {version}, this reidserve reads {' and '.join(_WITHOUT)}")
    text = contents.metadata.get(_ARCHITECTURE, "")
    names = {field.name for field in fields(Architecture)} - _WITHOUT[version]
    try:
        architecture = msgspec.json.decode(text, type=Architecture)
        different = names ^ json.loads(text).keys()
        if different:
            raise CheckpointError(f"it has, or lacks, {', '.join(sorted(different))}")
        return architecture, parse_feed(contents.metadata)
    except (msgspec.DecodeError, ExportError, CheckpointError, RecursionError) as error:
        raise CheckpointError(f"{contents.path}: its metadata do not read: {error}") from error
