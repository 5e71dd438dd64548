"""How a gallery lies in Milvus: one collection, an entity for each entry, and one for what is said of all of them."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from reidserve.embed import Embedding
from reidserve.errors import EntryError
from reidserve.index.entry import MAX_TEXT, Entry
from reidserve.index.storage.database import DAMAGE
from reidserve.index.storage.rows import Damage, Record, Stored, attributes_text, checksum, read_entry

FORMAT = 1

ABOUT = "about"
"""The entity that speaks of the gallery; those of entries begin with a colon."""

NO_TIME = -(2**63)
"""Stands for an unknown timestamp, below all that an entry can have; Milvus before 2.5 knows no nulls."""

MAX_JSON = 65_536
TEXT_BYTES = 4 * MAX_TEXT + 1

ENTRY_FIELDS = ("id", "pid", "camid", "timestamp", "source", "attributes", "row")
STORED_FIELDS = (*ENTRY_FIELDS, "content", "crc32", "vector")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a gallery.

    Attributes:
        format: of its layout.
        identity, engine, dim: what its embeddings were computed by.
        generation: how many writes have changed something.
        next_row: no row that was ever given reaches it.
        writing: a write has begun and has not ended.
        notes: by key.
        writer: who may write; empty for nobody.
        until: until when, seconds since 1970 UTC.
    """

    format: int = FORMAT
    identity: str
    engine: str
    dim: int
    generation: int = 0
    next_row: int = 1
    writing: bool = False
    notes: dict[str, str] = {}
    writer: str = ""
    until: float = 0.0


def code_text(text: str | None) -> str:
    """A text as a field that knows no null holds it: behind a colon, an unknown one empty."""
    return "" if text is None else f":{text}"


def read_text(coded: str) -> str | None:
    """The text that a field holds."""
    return coded[1:] if coded else None


def about_entity(about: About) -> dict[str, Any]:
    """The entity that says it."""
    return {
        "id": ABOUT,
        "pid": "",
        "camid": "",
        "timestamp": NO_TIME,
        "source": "",
        "attributes": msgspec.to_builtins(about),
        "row": -1,
        "content": "",
        "crc32": 0,
        "vector": np.zeros(about.dim, np.float32),
    }


def read_about(entity: Mapping[str, Any]) -> About:
    """What the entity says.

    Raises:
        msgspec.ValidationError: it says nothing of the kind.
    """
    return msgspec.convert(_json(entity["attributes"]), About)


def entity_of(record: Record, row: int) -> dict[str, Any]:
    """The entity of an entry."""
    entry = record.entry
    vector = np.ascontiguousarray(record.vector, np.float32)
    return {
        "id": code_text(entry.id),
        "pid": code_text(entry.pid),
        "camid": code_text(entry.camid),
        "timestamp": NO_TIME if entry.timestamp is None else entry.timestamp,
        "source": code_text(entry.source),
        "attributes": dict(entry.attributes),
        "row": row,
        "content": record.content_sha256.hex(),
        "crc32": checksum(entry, vector.astype("<f4").tobytes()),
        "vector": vector,
    }


def read_entry_of(entity: Mapping[str, Any]) -> Entry:
    """The entry that an entity is of; one that nobody here wrote raises an error of `database.DAMAGE`."""
    attributes = _json(entity["attributes"])
    texts = [read_text(entity[name]) for name in ("id", "pid", "camid")]
    timestamp = None if entity["timestamp"] == NO_TIME else entity["timestamp"]
    said = msgspec.json.encode(attributes).decode() if attributes else "{}"
    return read_entry((*texts, timestamp, read_text(entity["source"]), said))


def read_stored(entity: Mapping[str, Any]) -> Stored | Damage:
    """The row that an entity is."""
    try:
        entry = read_entry_of(entity)
        content = bytes.fromhex(entity["content"])
    except DAMAGE as error:
        return Damage(entity["row"], entity["id"][1:], str(error))
    vector = read_vector(entity)
    if checksum(entry, vector.astype("<f4").tobytes()) != entity["crc32"]:
        return Damage(entity["row"], entry.id, "it fails its checksum")
    return Stored(entity["row"], content, entry, vector, entity["crc32"])


def read_vector(entity: Mapping[str, Any]) -> Embedding:
    """The embedding (dim,) of an entity."""
    return np.asarray(entity["vector"], np.float32)


def check_fits(record: Record) -> None:
    """See that Milvus can keep an entry.

    Raises:
        EntryError: its attributes are too long.
    """
    if (size := len(attributes_text(record.entry).encode())) > MAX_JSON:
        raise EntryError(
            f"entry {record.entry.id!r}: Milvus keeps attributes of up to {MAX_JSON:,} bytes as JSON, got {size:,}"
        )


def _json(value: Any) -> Any:  # noqa: ANN401  # JSON may be anything
    return msgspec.json.decode(value) if isinstance(value, str | bytes) else value
