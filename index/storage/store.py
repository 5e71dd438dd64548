"""The store: the rows of a gallery's database, the only durable truth.

`entry` and `vector` hold the live rows. A row is written once; a change of an entry deletes its row and writes a
new one, and `deleted` keeps which rows went at which generation, so that other processes can catch up. Row
numbers are never used again (AUTOINCREMENT). `thumbnail`, a table that a gallery has from its first one on, goes with
its row. A transaction that changes something raises the generation by one and
is on the disk when it returns (WAL with synchronous=FULL); one that changes nothing leaves it.
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from reidserve.datasets import path_to_text
from reidserve.embed import Embedding
from reidserve.errors import EntryError, EntryNotFoundError, GalleryError, GalleryFullError, RemainsError
from reidserve.index.entry import Entry
from reidserve.index.storage.database import (
    DAMAGE,
    DATABASE,
    Origin,
    create_database,
    error_code,
    keep_thumbnails,
    keeps_thumbnails,
    open_database,
    raise_if_interrupted,
)
from reidserve.index.storage.rows import (
    FIELDS,
    Changes,
    Damage,
    Drawer,
    Piece,
    Record,
    Stored,
    Written,
    attributes_text,
    check_once,
    check_vector,
    checksum,
    read_entry,
)

ROOT, STATE, REBUILT, COPIED, ERASED = "root", "state", "rebuilt", "copied", "erased"
"""Notes: the folder that a gallery was built from, how far the building is, which gallery it rebuilds or copies, and up
to which generation nothing is left of what was removed."""

BUILDING, BUILT, REBUILDING, COPYING = "building", "built", "rebuilding", "copying"

_ANEW = "restore a snapshot, or build the gallery again"
_STORED = f"SELECT entry.row, content_sha256, blob, crc32, {FIELDS} FROM entry LEFT JOIN vector USING (row)"


class Store:
    """One connection to a gallery's database; calls come from one thread at a time.

    Any call raises GalleryError where SQLite fails.

    Attributes:
        folder: the gallery's folder.
        origin: what its embeddings were computed by.
        most_entries: a write that would leave more is refused; None for no limit.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, *, most_entries: int | None = None) -> None:
        self.folder = folder
        self.most_entries = most_entries
        self._connection = connection
        self._failed: str | None = None
        with self._reported():
            self.origin = msgspec.convert(dict(connection.execute("SELECT key, value FROM meta")), Origin)
            self._file = (folder / DATABASE).stat().st_ino

    @property
    def place(self) -> Path:
        """Where it lies."""
        return self.folder

    def another(self) -> "Store":
        """A second connection to the same rows, to read beside a thread that writes."""
        return open_store(self.folder)

    def close(self) -> None:
        """Close the connection; the database is whole at any moment, closed or not."""
        self._connection.close()

    def generation(self) -> int:
        """How many transactions have changed something."""
        with self._reported():
            return self._number("generation")

    def count(self) -> int:
        """How many entries there are, as counted by the transactions that wrote them."""
        with self._reported():
            return self._number("entries")

    def note(self, key: str) -> str | None:
        """What was last noted under a key, None if nothing."""
        with self._reported():
            found = self._connection.execute("SELECT value FROM meta WHERE key = ?", (f"note:{key}",)).fetchone()
        return None if found is None else str(found[0])

    def write_note(self, key: str, text: str) -> None:
        """Note a text under a key, durably."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note:{key}", text))

    def upsert(self, records: Sequence[Record]) -> Written:
        """Write records by entry id, in one transaction; what is there already with equal content stays as it is.

        Raises:
            EntryError: a vector is not of unit length and the gallery's dimensions, or an id comes twice; nothing of
                the call was written.
            GalleryFullError: there would be more than `most_entries`; nothing of the call was written.
            GalleryError: SQLite could not write; nothing of the call was.
        """
        check_once(record.entry.id for record in records)
        for record in records:
            check_vector(record, self.origin.dim)
        with self._transaction():
            written = self._put([record for record in records if not self._holds(record)])
            self._put_thumbnails(records)
            return written

    def update(self, entries: Sequence[Entry]) -> Written:
        """Say something else of entries that are there, by id, in one transaction; their embeddings stay.

        Raises:
            EntryNotFoundError: one of them is not there; nothing of the call was written.
            EntryError: an id comes twice.
            GalleryError: SQLite could not write, or the embedding of one is damaged; nothing of the call was written.
        """
        check_once(entry.id for entry in entries)
        with self._transaction():
            records = []
            for entry in entries:
                match self._find(entry.id):
                    case None:
                        raise EntryNotFoundError(f"the gallery has no entry {entry.id!r}")
                    case Damage(fault=fault):
                        raise self._damaged(entry.id, fault)
                    case Stored() as stored if stored.entry != entry:
                        records.append(Record(entry, stored.content_sha256, stored.vector))
            return self._put(records)

    def delete(self, ids: Iterable[str]) -> Written:
        """Remove entries, in one transaction; ids that are not there are no error.

        Raises:
            GalleryError: SQLite could not write; nothing was removed.
        """
        with self._transaction():
            there = [
                name
                for name in dict.fromkeys(ids)
                if self._connection.execute("SELECT 1 FROM entry WHERE id = ?", (name,)).fetchone()
            ]
            if not there:
                return Written(self._number("generation"), 0)
            generation = self._next_generation()
            for name in there:
                if gone := self._remove(name, generation):
                    self._hand_thumbnail(gone[0], None)
            self._connection.execute("UPDATE meta SET value = value - ? WHERE key = 'entries'", (len(there),))
            return Written(generation, len(there))

    def get(self, name: str) -> Stored | None:
        """An entry, None if it is not there.

        Raises:
            GalleryError: it is damaged.
        """
        with self._reported():
            found = self._find(name)
        if isinstance(found, Damage):
            raise self._damaged(name, found.fault)
        return found

    def thumbnail(self, name: str) -> bytes | None:
        """The thumbnail of an entry as it is encoded, None if there is none that is whole."""
        with self._reported():
            found = (
                keeps_thumbnails(self._connection)
                and self._connection.execute(
                    "SELECT blob, thumbnail.crc32 FROM thumbnail JOIN entry USING (row) WHERE id = ?", (name,)
                ).fetchone()
            )
        if not found:
            return None
        blob, crc32 = found
        return blob if isinstance(blob, bytes) and zlib.crc32(blob) == crc32 else None

    def with_thumbnail(self) -> set[str]:
        """The ids of the entries that have a thumbnail."""
        with self._reported():
            if not keeps_thumbnails(self._connection):
                return set()
            return {name for (name,) in self._connection.execute("SELECT id FROM thumbnail JOIN entry USING (row)")}

    def contents(self) -> dict[str, tuple[Entry, bytes]]:
        """Every undamaged entry by its id, with its content_sha256, in row order."""
        found = {}
        for stored in self.scan():
            if isinstance(stored, Stored):
                found[stored.entry.id] = (stored.entry, stored.content_sha256)
        return found

    def known(self, ids: Iterable[str]) -> dict[str, tuple[Entry, bytes]]:
        """The undamaged entries among these ids, with their content_sha256; reads those rows and no others."""
        with self._reported():
            found = {name: self._find(name) for name in ids}
        return {name: (one.entry, one.content_sha256) for name, one in found.items() if isinstance(one, Stored)}

    def ids(self) -> set[str]:
        """The ids of all entries, damaged or not."""
        with self._reported():
            return {name for (name,) in self._connection.execute("SELECT id FROM entry")}

    def find_vector(self, content_sha256: bytes) -> Embedding | None:
        """The embedding of any undamaged entry with that content, None if there is none."""
        with self._reported():
            rows = self._connection.execute(f"{_STORED} WHERE content_sha256 = ?", (content_sha256,))
            found = (self._read(row) for row in rows)
            return next((stored.vector for stored in found if isinstance(stored, Stored)), None)

    def scan(self) -> Generator[Stored | Damage, None, None]:
        """Every row in row order, as of one generation."""
        with self._transaction("BEGIN"):
            yield from self._rows(since=-1)

    def version(self) -> int:
        """A number that changes when another connection has written.

        Raises:
            GalleryError: the file was deleted or replaced; this connection reads what is left of the old one.
        """
        path = self.folder / DATABASE
        try:
            there = path.stat().st_ino == self._file
        except OSError:
            there = False
        if not there:
            raise GalleryError(f"{path_to_text(path)} is not the file that was opened any more: start again to read it")
        with self._reported():
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def changes(self, *, since: int) -> Changes:
        """What happened after a generation (-1: everything), read in one transaction; damaged rows are named."""
        with self._transaction("BEGIN"):
            generation = self._number("generation")
            anew = since < self._number("horizon")
            since = -1 if anew else since
            pieces: list[Piece] = []
            damaged: list[Damage] = []
            drawer = Drawer(self.origin.dim)
            for found in self._rows(since=since):
                if isinstance(found, Damage):
                    damaged.append(found)
                elif drawer.put(found):
                    pieces.append(drawer.empty())
            if len(drawer):
                pieces.append(drawer.empty())
            gone = (
                ()
                if anew
                else self._connection.execute("SELECT row FROM deleted WHERE generation > ? ORDER BY row", (since,))
            )
            deleted = np.fromiter((row for (row,) in gone), np.int64)
        return Changes(generation, anew, pieces, deleted, damaged)

    def faults(self) -> list[str]:
        """What SQLite finds wrong with the file, and where the tables and the counter contradict each other."""
        # In one transaction: what another process commits between two of these questions is no contradiction.
        with self._transaction("BEGIN"):
            found = [str(line) for (line,) in self._connection.execute("PRAGMA integrity_check") if line != "ok"]
            (entries,) = self._connection.execute("SELECT count(*) FROM entry NOT INDEXED").fetchone()
            (orphans,) = self._connection.execute(
                "SELECT count(*) FROM vector WHERE row NOT IN (SELECT row FROM entry)"
            ).fetchone()
            (both,) = self._connection.execute("SELECT count(*) FROM deleted JOIN entry USING (row)").fetchone()
            (later,) = self._connection.execute(
                "SELECT count(*) FROM entry WHERE generation > (SELECT value FROM meta WHERE key = 'generation')"
            ).fetchone()
            counted = self._number("entries")
            thumbnails = self._thumbnail_faults()
        if counted != entries:
            found.append(f"the counter says {counted} entries, the table holds {entries}")
        if orphans:
            found.append(f"{orphans} vectors belong to no entry")
        if both:
            found.append(f"{both} rows are live and deleted at once")
        if later:
            found.append(f"{later} rows are of a later generation than the gallery")
        if thumbnails:
            found.append(f"{len(thumbnails)} thumbnails belong to no entry or fail their checksum")
        return found

    def mend(self) -> None:
        """Make what can be derived from the rows anew: the counters and the search trees of SQLite."""
        with self._transaction():
            self._connection.execute("REINDEX")
            self._connection.execute("DELETE FROM deleted WHERE row IN (SELECT row FROM entry)")
            self._connection.execute(
                "UPDATE meta SET value = max(value, (SELECT coalesce(max(generation), 0) FROM entry)) "
                "WHERE key = 'generation'"
            )
            self._connection.execute("DELETE FROM vector WHERE row NOT IN (SELECT row FROM entry)")
            for row in self._thumbnail_faults():
                self._connection.execute("DELETE FROM thumbnail WHERE row = ?", (row,))
            # No row of `deleted` tells of these.
            self._connection.execute("DELETE FROM meta WHERE key = ?", (f"note:{ERASED}",))
            self._connection.execute(
                "UPDATE meta SET value = (SELECT count(*) FROM entry NOT INDEXED) WHERE key = 'entries'"
            )

    def compact(self) -> None:
        """Forget which rows went when, and give free pages back to the disk; readers far behind read all again."""
        with self._transaction():
            self._connection.execute("DELETE FROM deleted")
            self._connection.execute(
                "UPDATE meta SET value = (SELECT value FROM meta WHERE key = 'generation') WHERE key = 'horizon'"
            )
        self.vacuum()

    def has_remains(self) -> bool:
        """Whether rows were removed since the files were last cleared of them."""
        erased = self.note(ERASED)
        with self._reported():
            return erased is None or bool(
                self._connection.execute("SELECT 1 FROM deleted WHERE generation > ?", (int(erased),)).fetchone()
            )

    def vacuum(self) -> None:
        """Write the database anew, without a byte of what was removed, and empty its log.

        Raises:
            RemainsError: somebody reads the gallery as it was, for whom its bytes must stay.
        """
        with self._reported():
            generation = self._number("generation")
            self._connection.execute("VACUUM")
            (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise RemainsError(
                f"{path_to_text(self.folder)}: what was removed is found no more, and its bytes are in the files, as "
                "long as the gallery is being read (an export, a snapshot): do it again after that"
            )
        self.write_note(ERASED, str(generation))

    def said_source(self, damage: Damage) -> tuple[str | None, bytes]:
        """What a damaged row says that it was embedded from, source and content_sha256; nothing vouches for it."""
        with self._reported():
            found = self._connection.execute(
                "SELECT source, content_sha256 FROM entry WHERE row = ?", (damage.row,)
            ).fetchone()
        return (None, b"") if found is None else cast(tuple[str | None, bytes], found)

    def replace_vector(self, stored: Damage, content_sha256: bytes, vector: Embedding) -> bool:
        """Give a damaged row a vector; False, and nothing is written, where its checksum then still fails."""
        blob = vector.astype("<f4").tobytes()
        with self._transaction():
            found = self._connection.execute(
                f"SELECT content_sha256, crc32, {FIELDS} FROM entry LEFT JOIN vector USING (row) WHERE row = ?",
                (stored.row,),
            ).fetchone()
            if found is None:
                return False
            content, crc32, *fields = found
            try:
                entry = read_entry(fields)
            except DAMAGE:
                return False
            if content != content_sha256 or crc32 not in (None, checksum(entry, blob)):
                return False
            self._put([Record(entry, content, vector)])
        return True

    def _put(self, records: Sequence[Record]) -> Written:
        if not records:
            return Written(self._number("generation"), 0)
        generation = self._next_generation()
        replaced = 0
        for record in records:
            gone = self._remove(record.entry.id, generation)
            row = self._insert(record, generation)
            if gone is not None:
                replaced += 1
                self._hand_thumbnail(gone[0], row if gone[1] == record.content_sha256 else None)
        (count,) = self._connection.execute(
            "UPDATE meta SET value = value + ? WHERE key = 'entries' RETURNING value", (len(records) - replaced,)
        ).fetchone()
        if self.most_entries is not None and count > self.most_entries and len(records) > replaced:
            raise GalleryFullError(
                f"{path_to_text(self.folder)} would hold {count} entries, {self.most_entries} fit in the memory that "
                "was allowed: raise --max-memory, or remove entries"
            )
        return Written(generation, len(records))

    def _next_generation(self) -> int:
        (generation,) = self._connection.execute(
            "UPDATE meta SET value = value + 1 WHERE key = 'generation' RETURNING value"
        ).fetchone()
        return int(generation)

    def _number(self, key: str) -> int:
        (number,) = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return int(number)

    def _remove(self, name: str, generation: int) -> tuple[int, bytes] | None:
        """Delete an entry; returns the row that it had, and its content_sha256."""
        gone: tuple[int, bytes] | None = self._connection.execute(
            "DELETE FROM entry WHERE id = ? RETURNING row, content_sha256", (name,)
        ).fetchone()
        if gone is not None:
            self._connection.execute("DELETE FROM vector WHERE row = ?", (gone[0],))
            self._connection.execute("INSERT INTO deleted VALUES (?, ?)", (gone[0], generation))
        return gone

    def _hand_thumbnail(self, gone: int, row: int | None) -> None:
        """Give the thumbnail of a row that went to the row that took its place, or remove it with its row."""
        if not keeps_thumbnails(self._connection):
            return
        if row is None:
            self._connection.execute("DELETE FROM thumbnail WHERE row = ?", (gone,))
        else:
            self._connection.execute("UPDATE thumbnail SET row = ? WHERE row = ?", (row, gone))

    def _put_thumbnails(self, records: Sequence[Record]) -> None:
        shown = [
            (one.thumbnail, zlib.crc32(one.thumbnail), one.entry.id) for one in records if one.thumbnail is not None
        ]
        if shown:
            keep_thumbnails(self._connection)
            # One that is there is of the same content.
            self._connection.executemany(
                "INSERT OR IGNORE INTO thumbnail SELECT row, ?, ? FROM entry WHERE id = ?", shown
            )

    def _thumbnail_faults(self) -> list[int]:
        """The rows of thumbnails that belong to no entry or are not whole."""
        if not keeps_thumbnails(self._connection):
            return []
        rows = self._connection.execute(
            "SELECT thumbnail.row, entry.row, blob, crc32 FROM thumbnail LEFT JOIN entry ON thumbnail.row = entry.row"
        )
        return [row for row, owner, blob, crc32 in rows if owner is None or zlib.crc32(blob) != crc32]

    def _insert(self, record: Record, generation: int) -> int:
        entry = record.entry
        row = self._connection.execute(
            f"INSERT INTO entry ({FIELDS}, content_sha256, generation) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(entry.id, entry.pid, entry.camid, entry.timestamp, entry.source),
                *(attributes_text(entry), record.content_sha256, generation),
            ),
        ).lastrowid
        assert row is not None, "an entry has a row"
        blob = record.vector.astype("<f4").tobytes()
        self._connection.execute("INSERT INTO vector VALUES (?, ?, ?)", (row, blob, checksum(entry, blob)))
        return row

    def _find(self, name: str) -> Stored | Damage | None:
        row = self._connection.execute(f"{_STORED} WHERE id = ?", (name,)).fetchone()
        return None if row is None else self._read(row)

    def _holds(self, record: Record) -> bool:
        found = self._find(record.entry.id)
        return (
            isinstance(found, Stored) and found.entry == record.entry and found.content_sha256 == record.content_sha256
        )

    def _rows(self, *, since: int) -> Iterator[Stored | Damage]:
        where = "WHERE entry.generation > ?" if since >= 0 else "WHERE ? < 0"
        last = 0
        for row in self._connection.execute(f"{_STORED} {where} ORDER BY entry.row", (since,)):
            if row[0] <= last:
                raise GalleryError(
                    f"{path_to_text(self.folder)} is damaged: row {row[0]} came after row {last}; {_ANEW}"
                )
            last = row[0]
            yield self._read(row)

    def _read(self, row: Sequence[object]) -> Stored | Damage:
        number, content, blob, crc32, *fields = cast(tuple[int, bytes, object, int, *tuple[object, ...]], row)
        try:
            entry = read_entry(fields)
        except DAMAGE as error:
            name = str(fields[0]).encode(errors="backslashreplace").decode()
            return Damage(number, name, str(error))
        if blob is None:
            return Damage(number, entry.id, "its vector is missing")
        if not isinstance(blob, bytes) or len(blob) != 4 * self.origin.dim or checksum(entry, blob) != crc32:
            return Damage(number, entry.id, "it fails its checksum")
        return Stored(number, content, entry, cast(Embedding, np.frombuffer(blob, "<f4")), crc32)

    def _damaged(self, name: str, fault: str) -> GalleryError:
        return GalleryError(
            f"{path_to_text(self.folder)} is damaged: entry {name!r}: {fault}; reid-index verify --repair may mend it"
        )

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        if self._failed is not None and begin != "BEGIN":
            raise GalleryError(
                f"{path_to_text(self.folder)}: the disk failed before ({self._failed}): open the gallery again to write"
            )
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
        except EntryError:
            raise
        except DAMAGE as error:
            raise_if_interrupted(error)
            if error_code(error) & 0xFF == sqlite3.SQLITE_IOERR:
                # After a failed fsync nobody knows what reached the disk; what comes next must not build on it.
                self._failed = str(error)
            way_out = "what was committed before is safe"
            if error_code(error) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                way_out = _ANEW
            raise GalleryError(f"{path_to_text(self.folder / DATABASE)}: {error}; {way_out}") from error


def open_store(folder: Path, *, write: bool = False, most_entries: int | None = None) -> Store:
    """Connect to the gallery in a folder; who opens it to `write` holds the writer's lock.

    Raises:
        GalleryError: no gallery there, one of a newer format, a damaged one, or one that SQLite cannot open.
    """
    return _store(folder, open_database(folder, write=write), most_entries)


def create_store(folder: Path, origin: Origin, *, most_entries: int | None = None) -> Store:
    """Make an empty gallery in a folder; one whose making was cut off before is made whole.

    Raises:
        GalleryError: SQLite could not write there.
    """
    return _store(folder, create_database(folder, origin), most_entries)


def _store(folder: Path, connection: sqlite3.Connection, most_entries: int | None) -> Store:
    try:
        return Store(folder, connection, most_entries=most_entries)
    except BaseException:
        connection.close()
        raise
