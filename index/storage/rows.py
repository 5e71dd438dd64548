"""The values that the store takes and gives, and how an entry stands in its columns."""

import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import NO_ATTRIBUTES
from reidserve.embed import Embedding, Embeddings, off_unit
from reidserve.errors import EntryError
from reidserve.index.entry import Entry

PIECE_ROWS = 8192

FIELDS = "id, pid, camid, timestamp, source, attributes"
"""The columns of an entry, in the order in which `read_entry` takes them."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One entry to be written.

    Attributes:
        entry: what it is.
        content_sha256: of the encoded image it was embedded from, or of the vector's bytes where there was none.
        vector: what it embeds to.
        thumbnail: the encoded image made small, to be kept; None keeps the one that is there of the same content.
    """

    entry: Entry
    content_sha256: bytes
    vector: Embedding
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did.

    Attributes:
        generation: the gallery's after it; who reads at this one or a later one sees the write.
        changed: entries that were written or removed; those that were so already do not count.
    """

    generation: int
    changed: int


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One row as it was read.

    Attributes:
        row: its number.
        content_sha256: of what it was embedded from.
        entry: what it is.
        vector: float32 (dim,).
        crc32: of vector and entry.
    """

    row: int
    content_sha256: bytes
    entry: Entry
    vector: Embedding
    crc32: int


@dataclass(frozen=True, slots=True)
class Damage:
    """One row that cannot be believed.

    Attributes:
        row: its number.
        id: the entry's id, as far as it can be read.
        fault: what is wrong.
    """

    row: int
    id: str
    fault: str


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of new rows, at most PIECE_ROWS.

    Attributes:
        rows: int64 (n,), ascending.
        entries: what they are, n of them.
        vectors: float32 (n, dim).
        crc32s: uint32 (n,), the checksum of each.
    """

    rows: NDArray[np.int64]
    entries: Sequence[Entry]
    vectors: Embeddings
    crc32s: NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What happened between two generations.

    Attributes:
        generation: the later one.
        anew: True where the earlier one is no longer known: what was read before is void, and `pieces` is all.
        pieces: the new rows that are still live, in row order.
        deleted: int64 (m,), the rows that went, ascending.
        damaged: new rows that were left out.
    """

    generation: int
    anew: bool
    pieces: Sequence[Piece]
    deleted: NDArray[np.int64]
    damaged: Sequence[Damage]


class Drawer:
    """Rows on their way into a piece; each piece has arrays of its own, which a gallery keeps without copying."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._start()

    def _start(self) -> None:
        self._entries: list[Entry] = []
        self._rows = np.empty(PIECE_ROWS, np.int64)
        self._vectors = np.empty((PIECE_ROWS, self._dim), np.float32)
        self._crc32s = np.empty(PIECE_ROWS, np.uint32)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, stored: Stored) -> bool:
        """Put a row in; returns whether it was the last that fits."""
        place = len(self._entries)
        self._rows[place], self._vectors[place], self._crc32s[place] = stored.row, stored.vector, stored.crc32
        self._entries.append(stored.entry)
        return place + 1 == PIECE_ROWS

    def empty(self) -> Piece:
        """Take what is in it."""
        count = len(self._entries)
        piece = Piece(self._rows[:count], self._entries, self._vectors[:count], self._crc32s[:count])
        self._start()
        return piece


def check_once(ids: Iterable[str]) -> None:
    """See that each entry comes once in a write.

    Raises:
        EntryError: one comes twice.
    """
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise EntryError(f"entry {name!r} comes twice in one write")
        seen.add(name)


def check_vector(record: Record, dim: int) -> None:
    """See that a vector may be written.

    Raises:
        EntryError: it has other dimensions, or is not of unit length.
    """
    vector = record.vector
    if vector.shape != (dim,):
        raise EntryError(f"entry {record.entry.id!r}: expected a vector of {dim} dimensions, got {vector.shape}")
    if wrong := off_unit(vector[np.newaxis]):
        raise EntryError(f"entry {record.entry.id!r}: expected a vector of unit length, got {wrong[0][1]:g}")


def checksum(entry: Entry, blob: bytes) -> int:
    """The crc32 of a vector's bytes and of what is said of it."""
    facts: tuple[object, ...] = (entry.id, entry.pid, entry.camid, entry.timestamp, entry.source)
    if entry.attributes:
        # Left away where there are none, as rows of format 1 were written.
        facts = (*facts, attributes_text(entry))
    return zlib.crc32(msgspec.json.encode(facts), zlib.crc32(blob))


def attributes_text(entry: Entry) -> str:
    """An entry's attributes as their column holds them: JSON, names in order."""
    return msgspec.json.encode(dict(entry.attributes), order="sorted").decode() if entry.attributes else "{}"


def read_entry(fields: Sequence[object]) -> Entry:
    """The entry that the values of FIELDS say; values that no entry ever had raise an error of `database.DAMAGE`."""
    name, pid, camid, timestamp, source, attributes = fields
    said = NO_ATTRIBUTES if attributes == "{}" else msgspec.json.decode(cast(str, attributes), type=dict)
    return Entry(
        cast(str, name),
        None if pid is None else sys.intern(cast(str, pid)),
        None if camid is None else sys.intern(cast(str, camid)),
        cast(int | None, timestamp),
        cast(str | None, source),
        cast(Mapping[str, str], said),
    )
