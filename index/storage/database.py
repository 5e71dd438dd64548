"""The database: a gallery's SQLite file, made, opened, brought to today's format, copied. Its rows are the store's."""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from reidserve.datasets import path_to_text
from reidserve.errors import EntryError, GalleryError
from reidserve.index.storage.folders import make_folder, new_folder, sync
from reidserve.index.storage.lock import remote_file_system, writer_lock

DATABASE = "gallery.db"
DATABASE_FILES = (DATABASE, *(f"{DATABASE}-{part}" for part in ("wal", "shm", "journal")))
APPLICATION_ID = 0x52654944  # "ReID"
FORMAT = 2
"""What a gallery is made in, and brought to."""

NEWEST = 3
"""What a gallery is in that keeps thumbnails: who knows nothing of them would leave those of deleted entries behind."""

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
    generation INTEGER NOT NULL,
    attributes TEXT NOT NULL DEFAULT '{{}}'
) STRICT;
CREATE INDEX entry_content ON entry (content_sha256);
CREATE INDEX entry_generation ON entry (generation);
CREATE TABLE vector (row INTEGER PRIMARY KEY REFERENCES entry, blob BLOB NOT NULL, crc32 INTEGER NOT NULL) STRICT;
CREATE TABLE deleted (row INTEGER PRIMARY KEY, generation INTEGER NOT NULL) STRICT;
CREATE INDEX deleted_generation ON deleted (generation);
"""

_MIGRATIONS = {
    1: """
BEGIN IMMEDIATE;
ALTER TABLE entry ADD COLUMN attributes TEXT NOT NULL DEFAULT '{}';
CREATE INDEX entry_generation ON entry (generation);
INSERT INTO meta VALUES ('entries', (SELECT count(*) FROM entry)), ('horizon', 0);
PRAGMA user_version = 2;
COMMIT;
"""
}
"""What turns a format into the next."""

_THUMBNAILS = """
CREATE TABLE thumbnail (row INTEGER PRIMARY KEY REFERENCES entry, blob BLOB NOT NULL, crc32 INTEGER NOT NULL) STRICT
"""

_META = """
INSERT INTO meta VALUES ('identity', :identity), ('engine', :engine), ('dim', :dim),
    ('generation', 0), ('entries', 0), ('horizon', 0)
"""

_LOG_BYTES = 64 * 2**20
_LOOK_UP_STEPS = 100_000

DAMAGE = (sqlite3.Error, EntryError, UnicodeError, TypeError, ValueError)
"""What reading a damaged database ends in: SQLite's own errors, or values that no column of ours ever held."""


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


def holds_gallery(folder: Path) -> bool:
    """Whether a folder holds a gallery; the empty beginning of one, cut off while it was made, is none.

    Raises:
        GalleryError: its gallery.db is something else.
    """
    path = folder / DATABASE
    if not path.is_file():
        return False
    try:
        with contextlib.closing(_connect_to_read(path)) as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return bool(tables)
    except DAMAGE as error:
        raise GalleryError(f"{path_to_text(path)} is no gallery: {error}") from error


def create_database(folder: Path, origin: Origin) -> sqlite3.Connection:
    """Make an empty gallery in a folder; one whose making was cut off before is made whole.

    Raises:
        GalleryError: SQLite could not write there.
    """
    try:
        make_folder(folder)
        with contextlib.closing(_connect(folder / DATABASE, "rwc")) as connection:
            connection.execute(f"PRAGMA page_size = {_page_bytes(origin.dim)}")
            _make_durable(connection)
            connection.executescript(_SCHEMA)
            connection.execute(_META, asdict(origin))
            connection.execute("COMMIT")
        sync(folder)
    except (sqlite3.Error, OSError) as error:
        raise GalleryError(f"no gallery can be made at {path_to_text(folder)}: {error}") from error
    return open_database(folder, write=True)


def find_database(folder: Path) -> Path:
    """The file of the gallery in a folder.

    Raises:
        GalleryError: there is none.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise GalleryError(
            f"no gallery at {path_to_text(folder)}: expected {path_to_text(path)}; make one with reid-index build"
        )
    return path


def open_database(folder: Path, *, write: bool) -> sqlite3.Connection:
    """Connect to the gallery in a folder; an older format is migrated first, after a copy was put beside it.

    Whoever opens to `write` holds the writer's lock.

    Raises:
        GalleryError: no gallery there, one of a newer format, a damaged one, or one that SQLite cannot open.
        GalleryLockedError: it must be migrated, and another process is writing to it.
    """
    path = find_database(folder)
    try:
        if _format(folder, path) < FORMAT:
            if not os.access(folder, os.W_OK):
                raise GalleryError(
                    f"{path_to_text(folder)} has an older format, which is brought to format {FORMAT} where it can be "
                    "written: copy it to a disk where that is so"
                )
            with contextlib.nullcontext() if write else writer_lock(folder):
                _migrate(folder, path)
        connection = _connect(path, "rw") if write else _connect_to_read(path)
    except DAMAGE as error:
        raise_if_interrupted(error)
        raise GalleryError(f"{path_to_text(path)} does not open: {error}") from error
    if write:
        try:
            _make_durable(connection)
            # A writer that was killed may have left a whole transaction in the log that no reader has been shown yet.
            # Writing over it decides that it never was, before anything is built on that.
            connection.execute(f"PRAGMA user_version = {_version(connection)}")
        except sqlite3.Error as error:
            connection.close()
            raise GalleryError(f"{path_to_text(path)} cannot be written: {error}") from error
    return connection


def remove_old_copies(folder: Path) -> list[Path]:
    """Remove the copies that migrations left in a gallery's folder; returns which there were.

    Raises:
        OSError: one cannot be removed.
    """
    copies = sorted(folder.glob("gallery.format-*"))
    for path in copies:
        path.unlink()
    sync(folder)
    return copies


def gallery_bytes(folder: Path) -> int:
    """What a gallery's files take on the disk, bytes."""
    size = 0
    for path in folder.rglob("*"):
        # Another process may take its log away meanwhile.
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return size


def copy_database(folder: Path, out: Path) -> None:
    """Write a whole copy of a gallery's database into the new folder `out`, whatever is written to it meanwhile.

    Raises:
        OutputExistsError: there is something at `out`.
        GalleryError: the gallery cannot be read, or the copy not written; nothing is left at `out`.
    """
    try:
        path = find_database(folder)
        _format(folder, path)
        # Of whatever format: a copy of an old backup leaves the backup as it is.
        with new_folder(out) as partial, contextlib.closing(_connect_to_read(path)) as connection:
            _vacuum_into(connection, partial / DATABASE)
    except (sqlite3.Error, OSError) as error:
        raise_if_interrupted(error)
        raise GalleryError(f"{path_to_text(folder)} cannot be copied to {path_to_text(out)}: {error}") from error


def keeps_thumbnails(connection: sqlite3.Connection) -> bool:
    """Whether a gallery has the table of thumbnails."""
    return _version(connection) >= NEWEST


def keep_thumbnails(connection: sqlite3.Connection) -> None:
    """Give a gallery the table of thumbnails, within the transaction that needs it; nothing else of it changes."""
    if not keeps_thumbnails(connection):
        connection.execute(_THUMBNAILS)
        connection.execute(f"PRAGMA user_version = {NEWEST}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _page_bytes(dim: int) -> int:
    """The page size in which vectors of that many dimensions leave least room unused, bytes.

    By SQLite's file format (sqlite.org/fileformat2.html, 1.6): a row that does not fit a page leaves a part there and
    goes on in pages of its own. In pages of 16 KiB each vector of 2048 dimensions would take one alone, half empty.
    """
    row = 4 * dim + 20

    def taken(page: int) -> float:
        if row <= page - 35:
            return page / ((page - 8) // (row + 4))
        least = (page - 12) * 32 // 255 - 23
        kept = least + (row - least) % (page - 4)
        kept = kept if kept <= page - 35 else least
        return kept + 4 + page * -(-(row - kept) // (page - 4))

    return min((16_384, 8_192, 4_096), key=taken)


def _vacuum_into(connection: sqlite3.Connection, path: Path) -> None:
    # SQLite promises a whole file here, not a durable one.
    connection.execute("VACUUM INTO ?", (path.absolute().as_uri(),))
    sync(path)
    sync(path.parent)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.set_progress_handler(_look_up, _LOOK_UP_STEPS)
    # A text with a flipped bit may be no UTF-8: it is read as something that fails its checksum, and fails no query.
    connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
    return connection


def _look_up() -> int:
    """Let Python notice Ctrl-C during a statement that takes minutes; it then ends in SQLITE_INTERRUPT."""
    return 0


def error_code(error: Exception) -> int:
    """SQLite's code of an error; errors that Python's module makes itself, such as of UTF-8, have none: 0."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code


def raise_if_interrupted(error: Exception) -> None:
    """Turn SQLite's word for Ctrl-C back into Python's.

    Raises:
        KeyboardInterrupt: a statement was ended by Ctrl-C.
    """
    if error_code(error) == sqlite3.SQLITE_INTERRUPT:
        raise KeyboardInterrupt from error


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect beside the write-ahead log where there can be one, else to the bare file, which then must be all."""
    log = path.with_name(f"{path.name}-wal")
    if os.access(path.parent, os.W_OK) and remote_file_system(path.parent) is None:
        return _connect(path, "ro")
    if log.exists() and path.with_name(f"{path.name}-shm").exists() and remote_file_system(path.parent) is None:
        # Somebody else may be writing there: what is seen as unchangeable would be seen unchanged for ever.
        return _connect(path, "ro")
    if log.exists() and log.stat().st_size:
        raise GalleryError(
            f"{path_to_text(path)} has changes in its write-ahead log, which cannot be read on a read-only or network "
            "disk: open the gallery once where it can be written, or serve a copy (reid-index snapshot)"
        )
    return _connect(path, "ro&immutable=1")


def _make_durable(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(f"a write-ahead log was asked for, SQLite gave {mode!r}: is the disk local?")
    connection.execute("PRAGMA synchronous = FULL")
    # A long reader lets the log grow; once it has gone the log shrinks to this.
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")


def _format(folder: Path, path: Path) -> int:
    with contextlib.closing(_connect_to_read(path)) as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        version = _version(connection)
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    name = path_to_text(folder)
    if not tables:
        raise GalleryError(f"{name} is a gallery whose making was cut off: run the command that made it again")
    if application != APPLICATION_ID:
        raise GalleryError(f"{name}/{DATABASE} is a database, but no gallery (application_id {application:#x})")
    if not 1 <= version <= NEWEST:
        raise GalleryError(
            f"{name} has format {version}, this reidserve reads 1 to {NEWEST}: install a newer reidserve"
        )
    return version


def _migrate(folder: Path, path: Path) -> None:
    """Bring a gallery to today's format, one format after the other, each after a copy of what was."""
    with contextlib.closing(_connect(path, "rw")) as connection:
        for version in range(_format(folder, path), FORMAT):
            # One that is there already may be of long ago, if an older reidserve has written since.
            kept = folder / f"gallery.format-{version}.db"
            partial = kept.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            _vacuum_into(connection, partial)
            partial.rename(kept)
            sync(folder)
            _make_durable(connection)
            with _rolled_back(connection):
                connection.executescript(_MIGRATIONS[version])


@contextlib.contextmanager
def _rolled_back(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
