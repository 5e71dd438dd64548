"""Entries to be written: messages of reid.v1 to values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from reidserve.embed import Embedding
from reidserve.errors import EntryError, QueryError
from reidserve.index import Entry
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.writes.entries import Change, NewEntry

MAX_ID = 1024

# What a google.protobuf.Timestamp may say: the years 1 to 9999.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799

_FIELDS = ("pid", "camid", "timestamp", "source", "attributes")
_ATTRIBUTE = "attributes."


def read_new_entry(message: reid_pb2.NewEntry) -> NewEntry:
    """The entry that a message asks for.

    Raises:
        EntryError: there can be no such entry.
    """
    if not 1 <= len(message.entry_id) <= MAX_ID:
        raise EntryError(f"an entry_id must have 1 to {MAX_ID:,} characters, got {len(message.entry_id)}")
    name = f"entry {message.entry_id!r}"
    match message.WhichOneof("content"):
        case "image":
            content: bytes | Embedding = message.image
        case "embedding":
            content = _read_embedding(name, message.embedding)
        case _:
            raise EntryError(f"{name}: expected an image or an embedding, got none")
    return NewEntry(Entry(message.entry_id, **{field: _field(message, field) for field in _FIELDS}), content)


def read_change(message: reid_pb2.UpdateEntryRequest) -> Change:
    """What a message asks to be said of an entry.

    Raises:
        QueryError: the mask names nothing, or what cannot be changed.
        EntryError: a value that no entry can have.
    """
    said, paths = message.entry, message.update_mask.paths
    if not paths:
        raise QueryError(f"update_mask must name what to change: some of {', '.join(_FIELDS)}, attributes.NAME")
    names = {path.removeprefix(_ATTRIBUTE) for path in paths if path.startswith(_ATTRIBUTE)}
    fields = [path for path in paths if not path.startswith(_ATTRIBUTE)]
    if "" in names or not set(fields).issubset(_FIELDS):
        raise QueryError(
            f"update_mask may name {', '.join(_FIELDS)} and attributes.NAME, got {', '.join(paths)[:200]!r}"
        )
    attributes = _attributes(said)
    return Change(
        said.entry_id,
        {field: _field(said, field) for field in fields},
        {name: attributes.get(name) for name in names},
    )


def _field(message: reid_pb2.NewEntry | reid_pb2.Entry, name: str) -> Any:  # noqa: ANN401  # fields are of many types
    """The value of an Entry's field, None where it is not said."""
    if name == "attributes":
        return _attributes(message)
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    return _microseconds(message) if name == "timestamp" else getattr(message, name)


def _read_embedding(name: str, raw: bytes) -> Embedding:
    if len(raw) % 4:
        raise EntryError(f"{name}: an embedding is little-endian float32, 4 bytes a number; got {len(raw)} bytes")
    return np.frombuffer(raw, "<f4")


def _microseconds(message: reid_pb2.NewEntry | reid_pb2.Entry) -> int:
    time: Timestamp = message.timestamp
    microseconds, rest = divmod(time.nanos, 1000)
    if not _FIRST_SECOND <= time.seconds <= _LAST_SECOND or not 0 <= microseconds < 1_000_000 or rest:
        raise EntryError(
            f"entry {message.entry_id!r}: a timestamp must be of the years 1 to 9999 and whole microseconds, "
            f"got {time.seconds} s and {time.nanos} ns"
        )
    return time.seconds * 1_000_000 + microseconds


def _attributes(message: reid_pb2.NewEntry | reid_pb2.Entry) -> Mapping[str, str | int | float | bool]:
    found = {}
    for name, value in message.attributes.items():
        kind = value.WhichOneof("kind")
        if kind is None:
            raise EntryError(
                f"entry {message.entry_id!r}: attribute {name!r} must be a text, an integer, a number or a boolean, "
                "got nothing"
            )
        found[name] = getattr(value, kind)
    return found
