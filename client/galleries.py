"""Galleries and their entries, as values."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from os import PathLike
from pathlib import Path

from reidserve.client.filters import Attribute, read_attributes, read_time, write_attributes, write_time
from reidserve.client.results import read_embedding, write_embedding
from reidserve.errors import QueryError, RequestError
from reidserve.proto.reid.v1 import reid_pb2

Image = bytes | str | PathLike[str]
"""Encoded bytes, or the path of an image file."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """A gallery as a whole.

    Attributes:
        name: its name on the server.
        entries: how many it has.
        dim: dimensions of an embedding.
        generation: how many writes had been committed.
        index: how a search finds them: "flat" and "flat-fp16" find every one, "rabitq" may miss one.
        model: identity of the model that embedded them.
        engine: what computed it, such as "fp32/onnxruntime-cpu".
        writable: whether the server writes to it.
        damaged: how many entries are damaged, and not served.
    """

    name: str
    entries: int
    dim: int
    generation: int
    index: str
    model: str
    engine: str
    writable: bool = False
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What a gallery knows of one photograph.

    Attributes:
        row: its place in the order in which entries were written.
        entry_id: its id in the gallery.
        pid: the identity; None where unknown.
        camid: the camera; None where unknown.
        timestamp: when it was taken, in UTC; None where unknown.
        source: the file that it came from; None where there was none.
        attributes: what else is known of it, by name.
        embedding: float32 ("f") of unit length; None where it was not asked for.
    """

    row: int
    entry_id: str
    pid: str | None
    camid: str | None
    timestamp: datetime | None
    source: str | None
    attributes: Mapping[str, Attribute] = field(hash=False)
    embedding: "array[float] | None" = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Some of a gallery's entries.

    Attributes:
        entries: in row order.
        token: asks for those behind them; empty where there are none.
        generation: the state that they are of.
    """

    entries: Sequence[Entry]
    token: str
    generation: int


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to be written: an image or an embedding, and what is known of it.

    Attributes:
        entry_id: its id; what has it already is replaced.
        image: encoded bytes, or the path of an image file, which is read when it is sent.
        embedding: of the server's own model, of unit length, in place of an image.
        pid: the identity; None where unknown.
        camid: the camera; None where unknown.
        timestamp: when it was taken, with a time zone; None where unknown.
        source: where it came from, for people: the server never opens it.
        attributes: what else is known of it, by name.
    """

    entry_id: str
    image: Image | None = None
    embedding: Sequence[float] | None = None
    pid: str | None = None
    camid: str | None = None
    timestamp: datetime | None = None
    source: str | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if (self.image is None) == (self.embedding is None):
            raise QueryError(f"entry {self.entry_id!r} must have an image or an embedding, one of both")


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        generation: the state from which on it can be found.
        written: how many entries were new or different.
    """

    generation: int
    written: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was removed.

    Attributes:
        generation: the state from which on it cannot be found.
        deleted: how many entries were there.
    """

    generation: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Updated:
    """What is said of an entry from now on.

    Attributes:
        entry: as it stands.
        generation: the state from which on it is so.
    """

    entry: Entry
    generation: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An entry that was left out of an import.

    Attributes:
        entry_id: its id.
        error: why.
    """

    entry_id: str
    error: RequestError | QueryError | OSError


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        entries: how many there were.
        written: how many were new or different, as the server counted what it acknowledged.
        generation: the state from which on they can be found.
        faults: what was left out.
    """

    entries: int
    written: int
    generation: int
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a gallery.

    Attributes:
        name: its name in the server's folder for snapshots.
        generation: the state that it is of.
        entries: how many it has.
        size: bytes on the disk.
    """

    name: str
    generation: int
    entries: int
    size: int


def read_gallery(gallery: reid_pb2.Gallery) -> Gallery:
    """A gallery as a whole."""
    return Gallery(
        gallery.name,
        gallery.entries,
        gallery.dim,
        gallery.generation,
        gallery.index,
        gallery.model.identity,
        gallery.model.engine,
        gallery.writable,
        gallery.damaged,
    )


def read_entry(entry: reid_pb2.Entry, embedding: bytes = b"") -> Entry:
    """What a gallery knows of one photograph."""
    return Entry(
        row=entry.row,
        entry_id=entry.entry_id,
        pid=entry.pid if entry.HasField("pid") else None,
        camid=entry.camid if entry.HasField("camid") else None,
        timestamp=read_time(entry.timestamp) if entry.HasField("timestamp") else None,
        source=entry.source if entry.HasField("source") else None,
        attributes=read_attributes(entry.attributes),
        embedding=read_embedding(embedding) if embedding else None,
    )


def read_page(response: reid_pb2.ListEntriesResponse) -> EntryPage:
    """Some of a gallery's entries."""
    return EntryPage(list(map(read_entry, response.entries)), response.next_page_token, response.generation)


def write_entry(entry: NewEntry) -> reid_pb2.NewEntry:
    """The message that says an entry.

    Raises:
        QueryError: something of it does not fit the protocol.
        OSError: its image cannot be read.
    """
    content = {}
    if entry.image is not None:
        content["image"] = read_image(entry.image)
    if entry.embedding is not None:
        content["embedding"] = write_embedding(entry.embedding)
    try:
        return reid_pb2.NewEntry(
            entry_id=entry.entry_id,
            **content,
            pid=entry.pid,
            camid=entry.camid,
            timestamp=write_time("an entry's timestamp", entry.timestamp),
            source=entry.source,
            attributes=write_attributes(entry.attributes),
        )
    except (ValueError, TypeError) as error:
        raise QueryError(f"entry {entry.entry_id!r} does not fit the protocol: {error}") from error


def read_image(image: Image) -> bytes:
    """An image's encoded bytes."""
    return image if isinstance(image, bytes) else Path(image).read_bytes()
