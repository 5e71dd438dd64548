"""The store: a gallery's SQLite file, the only durable truth.

`entry` and `vector` hold the live rows. A row is written once; a change of an entry deletes its row and writes a
new one, and `deleted` keeps which rows went at which generation, so that other processes can catch up. Row
numbers are never used again (AUTOINCREMENT). Each transaction raises the generation by one and is on the disk
when it returns (WAL with synchronous=FULL).
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import path_to_text
from reidserve.embed import UNIT_TOLERANCE, Embedding, Embeddings
from reidserve.errors import EntryError, GalleryError
from reidserve.index.entry import Entry

DATABASE = "gallery.db"
DATABASE_FILES = (DATABASE, *(f"{DATABASE}-{part}" for part in ("wal", "shm", "journal")))
APPLICATION_ID = 0x52654944  # "ReID"
FORMAT = 1

_SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE entry (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    pid TEXT,
    camid TEXT,
    timestamp INTEGER,
    source TEXT,
    content_sha256 BLOB NOT NULL,
    generation INTEGER NOT NULL
) STRICT;
CREATE INDEX entry_content ON entry (content_sha256);
CREATE TABLE vector (row INTEGER PRIMARY KEY REFERENCES entry, blob BLOB NOT NULL, crc32 INTEGER NOT NULL) STRICT;
CREATE TABLE deleted (row INTEGER PRIMARY KEY, generation INTEGER NOT NULL) STRICT;
CREATE INDEX deleted_generation ON deleted (generation);
"""

DAMAGE = (sqlite3.Error, EntryError, UnicodeError, TypeError, ValueError)
"""What reading a damaged database ends in: SQLite's own errors, or values that no column of ours ever held."""

_ORIGIN = "INSERT INTO meta VALUES ('identity', :identity), ('engine', :engine), ('dim', :dim), ('generation', 0)"

_COLUMNS = "id, pid, camid, timestamp, source"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a gallery's embeddings were computed by.

    Attributes:
        identity: the model's identity.
        engine: flavour and engine that embedded it first, such as "fp32/onnxruntime-cpu".
        dim: dimensions of an embedding.
    """

    identity: str
    engine: str
    dim: int


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One entry to be written.

    Attributes:
        entry: what it is.
        content_sha256: of the encoded image it was embedded from.
        vector: what it embeds to.
    """

    entry: Entry
    content_sha256: bytes
    vector: Embedding


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What happened between two generations.

    Attributes:
        generation: the later one.
        rows: int64 (n,), the new rows that are still live, ascending.
        entries: their entries.
        vectors: float32 (n, dim), their embeddings.
        deleted: int64 (m,), the rows that went.
    """

    generation: int
    rows: NDArray[np.int64]
    entries: Sequence[Entry]
    vectors: Embeddings
    deleted: NDArray[np.int64]


class Store:
    """One connection to a gallery's database; calls come from one thread at a time.

    Any call raises GalleryError where SQLite fails.

    Attributes:
        folder: the gallery's folder.
        origin: what its embeddings were computed by.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        with self._reported():
            self.origin = msgspec.convert(dict(connection.execute("SELECT key, value FROM meta")), Origin)
            self._file = (folder / DATABASE).stat().st_ino

    def close(self) -> None:
        """Close the connection; the database is whole at any moment, closed or not."""
        self._connection.close()

    def note(self, key: str) -> str | None:
        """What was last noted under a key, None if nothing."""
        with self._reported():
            found = self._connection.execute("SELECT value FROM meta WHERE key = ?", (f"note:{key}",)).fetchone()
        return None if found is None else str(found[0])

    def write_note(self, key: str, text: str) -> None:
        """Note a text under a key, durably."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note:{key}", text))

    def write(self, records: Sequence[Record], *, delete: Sequence[str] = ()) -> int:
        """Write records by entry id, and delete entries, in one transaction; returns the new generation.

        Raises:
            EntryError: a vector is not of unit length and the gallery's dimensions; nothing of the call was written.
            GalleryError: SQLite could not write; nothing of the call was.
        """
        for record in records:
            self._check(record)
        with self._transaction():
            (generation,) = self._connection.execute(
                "UPDATE meta SET value = value + 1 WHERE key = 'generation' RETURNING value"
            ).fetchone()
            for name in (*delete, *(record.entry.id for record in records)):
                self._delete(name, generation)
            for record in records:
                self._insert(record, generation)
        return int(generation)

    def _check(self, record: Record) -> None:
        vector = record.vector
        if vector.shape != (self.origin.dim,):
            raise EntryError(
                f"entry {record.entry.id!r}: expected a vector of {self.origin.dim} dimensions, got {vector.shape}"
            )
        length = float(np.sqrt(np.vecdot(vector, vector)))
        # Written so that NaN fails.
        if not abs(length - 1) <= UNIT_TOLERANCE:
            raise EntryError(f"entry {record.entry.id!r}: expected a vector of unit length, got {length:g}")

    def _delete(self, name: str, generation: int) -> None:
        gone = self._connection.execute("DELETE FROM entry WHERE id = ? RETURNING row", (name,)).fetchone()
        if gone is not None:
            self._connection.execute("DELETE FROM vector WHERE row = ?", gone)
            self._connection.execute("INSERT INTO deleted VALUES (?, ?)", (*gone, generation))

    def _insert(self, record: Record, generation: int) -> None:
        entry = record.entry
        row = self._connection.execute(
            f"INSERT INTO entry ({_COLUMNS}, content_sha256, generation) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (entry.id, entry.pid, entry.camid, entry.timestamp, entry.source, record.content_sha256, generation),
        ).lastrowid
        blob = record.vector.astype("<f4").tobytes()
        self._connection.execute("INSERT INTO vector VALUES (?, ?, ?)", (row, blob, checksum(entry, blob)))

    def contents(self) -> dict[str, tuple[Entry, bytes]]:
        """Every entry by its id, with its content_sha256."""
        with self._reported():
            rows = self._connection.execute(f"SELECT {_COLUMNS}, content_sha256 FROM entry")
            return {name: (Entry(name, *fields), content) for name, *fields, content in rows}

    def find_vector(self, content_sha256: bytes) -> Embedding | None:
        """The embedding of any entry with that content, None if there is none."""
        with self._reported():
            found = self._connection.execute(
                f"SELECT {_COLUMNS}, blob, crc32 FROM entry JOIN vector USING (row) WHERE content_sha256 = ? LIMIT 1",
                (content_sha256,),
            ).fetchone()
            return None if found is None else self._vector(Entry(*found[:-2]), *found[-2:])

    def ids(self) -> set[str]:
        """The ids of all entries."""
        with self._reported():
            return {name for (name,) in self._connection.execute("SELECT id FROM entry")}

    def version(self) -> int:
        """A number that changes when another connection has written.

        Raises:
            GalleryError: the file was deleted or replaced; this connection reads what is left of the old one.
        """
        path = self.folder / DATABASE
        if not path.exists() or path.stat().st_ino != self._file:
            raise GalleryError(f"{path_to_text(path)} is not the file that was opened any more: start again to read it")
        with self._reported():
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def changes(self, *, since: int) -> Changes:
        """What happened after a generation, read in one transaction.

        Raises:
            GalleryError: a vector is damaged; its entry is named.
        """
        with self._transaction("BEGIN"):
            (generation,) = self._connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
            (count,) = self._connection.execute("SELECT count(*) FROM entry WHERE generation > ?", (since,)).fetchone()
            rows, entries = np.empty(count, np.int64), []
            vectors = np.empty((count, self.origin.dim), np.float32)
            selected = self._connection.execute(
                f"SELECT row, {_COLUMNS}, blob, crc32 FROM entry JOIN vector USING (row)"
                " WHERE generation > ? ORDER BY row",
                (since,),
            )
            for place, (row, *fields, blob, crc32) in enumerate(selected):
                entry = Entry(*fields)
                rows[place], vectors[place] = row, self._vector(entry, blob, crc32)
                entries.append(entry)
            if len(entries) != count or len({entry.id for entry in entries}) != count or (np.diff(rows) <= 0).any():
                raise GalleryError(
                    f"{path_to_text(self.folder)} is damaged: {count} entries were expected in row order, each with a "
                    f"vector and an id of its own, {len(entries)} were read"
                )
            deleted = self._connection.execute("SELECT row FROM deleted WHERE generation > ?", (since,)).fetchall()
        return Changes(generation, rows, entries, vectors, np.array(deleted, np.int64).reshape(-1))

    def _vector(self, entry: Entry, blob: bytes, crc32: int) -> Embedding:
        if len(blob) != 4 * self.origin.dim or checksum(entry, blob) != crc32:
            raise GalleryError(f"{path_to_text(self.folder)} is damaged: entry {entry.id!r} fails its checksum")
        return cast(Embedding, np.frombuffer(blob, "<f4"))

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        with self._reported():
            self._connection.execute(begin)
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise GalleryError(
                f"{path_to_text(self.folder / DATABASE)}: {error}; what was committed before is safe"
            ) from error


def checksum(entry: Entry, blob: bytes) -> int:
    """The crc32 of a vector's bytes and of what is said of it."""
    facts = (entry.id, entry.pid, entry.camid, entry.timestamp, entry.source)
    return zlib.crc32(msgspec.json.encode(facts), zlib.crc32(blob))


def open_store(folder: Path, *, write: bool = False) -> Store:
    """Connect to the gallery in a folder.

    Raises:
        GalleryError: no gallery there, one of a newer format, a damaged one, or one that SQLite cannot open.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise GalleryError(
            f"no gallery at {path_to_text(folder)}: expected {path_to_text(path)}; make one with reid-index build"
        )
    try:
        with contextlib.ExitStack() as on_failure:
            connection = _connect(path, "rw" if write else "ro")
            on_failure.callback(connection.close)
            _check_format(folder, connection)
            if write:
                _make_durable(connection)
            store = Store(folder, connection)
            on_failure.pop_all()
            return store
    except DAMAGE as error:
        advice = (
            "" if os.access(folder, os.W_OK) else " (its folder is read-only, and SQLite's write-ahead log lives there)"
        )
        raise GalleryError(f"{path_to_text(path)} does not open: {error}{advice}") from error


def create_store(folder: Path, origin: Origin) -> Store:
    """Make an empty gallery in a folder; one whose making was cut off before is made whole.

    Raises:
        GalleryError: SQLite could not write there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(folder / DATABASE, "rwc")) as connection:
            connection.execute("PRAGMA page_size = 16384")
            _make_durable(connection)
            connection.executescript(_SCHEMA)
            connection.execute(_ORIGIN, asdict(origin))
            connection.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise GalleryError(f"no gallery can be made at {path_to_text(folder)}: {error}") from error
    return open_store(folder, write=True)


def holds_gallery(folder: Path) -> bool:
    """Whether a folder holds a gallery; the empty beginning of one, cut off while it was made, is none.

    Raises:
        GalleryError: its gallery.db is something else.
    """
    path = folder / DATABASE
    if not path.is_file():
        return False
    try:
        with contextlib.closing(_connect(path, "ro")) as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return bool(tables)
    except DAMAGE as error:
        raise GalleryError(f"{path_to_text(path)} is no gallery: {error}") from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )


def _make_durable(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(f"a write-ahead log was asked for, SQLite gave {mode!r}: is the disk local?")
    connection.execute("PRAGMA synchronous = FULL")


def _check_format(folder: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    name = path_to_text(folder)
    if application != APPLICATION_ID:
        raise GalleryError(f"{name}/{DATABASE} is a database, but no gallery (application_id {application:#x})")
    if version > FORMAT:
        raise GalleryError(
            f"{name} has format {version}, this reidserve reads up to {FORMAT}: install a newer reidserve"
        )
