"""The gallery: a folder on disk whose newest committed state can be searched, and changed by one process at a time."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from reidserve.datasets import path_to_text
from reidserve.errors import GalleryBehindError, GalleryError, GalleryFullError, GalleryModelError
from reidserve.index.entry import Entry
from reidserve.index.filters import Filter
from reidserve.index.search.blocks import BLOCK_ROWS, Growth, entry_bytes
from reidserve.index.search.coverage import Coverage, IndexDevice, IndexKind
from reidserve.index.search.snapshot import FolderSnapshot
from reidserve.index.storage.database import Origin, find_database
from reidserve.index.storage.erasure import erase
from reidserve.index.storage.lock import writer_lock
from reidserve.index.storage.rows import Damage, Record, Written
from reidserve.index.storage.store import COPYING, REBUILDING, STATE, Store, open_store
from reidserve.index.thumbnails import find_thumbnail

_POLL_SECONDS = 0.005
_UNFINISHED = {REBUILDING: "rebuild", COPYING: "copy"}


class FolderGallery:
    """A folder's gallery opened for searching, and for writing where that was asked for.

    A search takes `snapshot` once and uses it from start to end; `refresh` and the writes put the next one in its
    place, and no search waits for them. Safe from any thread. A write returns after it is on the disk and in
    `snapshot`.

    Attributes:
        folder: where it lies.
        origin: what its embeddings were computed by.
        snapshot: the newest state that was read.
    """

    def __init__(self, store: Store, coverage: Coverage, lock: contextlib.ExitStack, *, writes: bool) -> None:
        self.folder = store.folder
        self.origin = store.origin
        self.snapshot = FolderSnapshot(generation=-1, dim=store.origin.dim)
        self._store = store
        self._coverage = coverage
        self._lock = lock
        self._writes = writes
        self._growth = Growth(store.origin.dim)
        self._damaged: dict[int, Damage] = {}
        self._seen: int | None = None
        self._grown = -1
        self._changing = threading.Lock()
        self.refresh()

    @property
    def place(self) -> Path:
        """Where it lies."""
        return self.folder

    def refresh(self) -> bool:
        """Catch up with what any process has committed; returns whether there was anything.

        Raises:
            GalleryError: the gallery cannot be read; the snapshot stays.
            GalleryFullError: it has outgrown the memory that was allowed; the snapshot stays.
        """
        with self._changing:
            version = self._store.version()
            if version == self._seen:
                return False
            newer = self._catch_up()
            # Only now: what could not be read is read again next time.
            self._seen = version
            return newer

    def wait(self, generation: int, *, timeout: float) -> FolderSnapshot:
        """The first snapshot at a generation or later, to read what somebody wrote; `timeout` in seconds.

        Raises:
            GalleryBehindError: there is none yet after that time.
            GalleryError: the gallery cannot be read.
        """
        deadline = time.monotonic() + timeout
        while self.snapshot.generation < generation:
            self.refresh()
            if self.snapshot.generation >= generation:
                break
            if time.monotonic() >= deadline:
                raise GalleryBehindError(
                    f"{path_to_text(self.folder)} is at generation {self.snapshot.generation}, "
                    f"{generation} was waited for {timeout:g} s"
                )
            time.sleep(_POLL_SECONDS)
        return self.snapshot

    def upsert(self, records: Sequence[Record]) -> Written:
        """Write records by entry id, all or none; what is there already with equal content and fields stays.

        Raises:
            EntryError: a vector is not of unit length and the gallery's dimensions, or an id comes twice.
            GalleryFullError: there is no room for them in the memory that was allowed.
            GalleryError: it was not opened for writing, or the disk failed; nothing was written.
            GalleryBehindError: it was written, and this process cannot read it back yet.
        """
        with self._writing() as store:
            return store.upsert(records)

    def update(self, entries: Sequence[Entry]) -> Written:
        """Say something else of entries that are there, by id, all or none; their embeddings stay.

        Raises:
            EntryNotFoundError: one of them is not there.
            EntryError: an id comes twice.
            GalleryError: it was not opened for writing, or the disk failed; nothing was written.
            GalleryBehindError: it was written, and this process cannot read it back yet.
        """
        with self._writing() as store:
            return store.update(entries)

    def delete(self, ids: Iterable[str] | None = None, *, where: Filter | None = None) -> Written:
        """Remove the entries of these ids, or those that a filter accepts, all or none; ids not there are no error.

        Raises:
            GalleryError: it was not opened for writing, or the disk failed; nothing was removed.
            GalleryBehindError: they were removed, and this process cannot read that back yet.
        """
        if (ids is None) == (where is None):
            raise TypeError("delete takes ids or a filter")
        with self._writing() as store:
            if where is not None:
                ids = [entry.id for entry in self.snapshot.matching(where)]
            return store.delete(ids or ())

    def thumbnail(self, entry_id: str, *, sources: Path | None = None) -> bytes | None:
        """The thumbnail of an entry as it is encoded, None if there is none; see index/thumbnails.py for `sources`.

        Raises:
            GalleryError: the gallery cannot be read, or the entry is damaged.
        """
        # A connection of its own: no thumbnail waits for a write.
        with contextlib.closing(self.rows()) as rows:
            return find_thumbnail(rows, entry_id, sources=sources)

    def erase(self) -> bool:
        """Clear the gallery's files of every byte of what was removed; returns whether there was any.

        Writes wait meanwhile, which takes as long as writing the gallery anew; searches do not.

        Raises:
            RemainsError: bytes of it are left, because the gallery is being read.
            GalleryError: it was not opened for writing, or the disk failed.
        """
        with self._writing() as store:
            if not erase(store):
                return False
            self._coverage.close()
            return True

    def rows(self) -> Store:
        """A connection to its rows, to be read beside searches and closed by who asked for it.

        Raises:
            GalleryError: the gallery cannot be read.
        """
        return self._store.another()

    def close(self) -> None:
        """Let go of the files and the writer's lock; snapshots stay usable."""
        with self._changing, self._lock:
            self._coverage.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Store]:
        if not self._writes:
            raise GalleryError(f"{path_to_text(self.folder)} was opened for reading: open it to write")
        with self._changing:
            yield self._store
            # What cannot be read now is read by the next refresh.
            seen, self._seen = self._seen, None
            try:
                self._catch_up()
            except Exception as error:
                raise GalleryBehindError(
                    f"{path_to_text(self.folder)}: the write is on the disk, but it cannot be shown yet: {error}"
                ) from error
            self._seen = seen

    def _catch_up(self) -> bool:
        most = self._store.most_entries
        if most is not None and (count := self._store.count()) > most:
            raise GalleryFullError(
                f"{path_to_text(self.folder)} has {count} entries, {most} fit in the memory that was allowed: "
                "raise --max-memory, or remove entries"
            )
        changes = self._store.changes(since=self._grown)
        if changes.generation == self.snapshot.generation:
            return False
        # Changes that were applied by half, where memory ran out, are void: the next time everything is read anew.
        self._grown = -1
        if changes.anew:
            self._damaged.clear()
        for row in changes.deleted.tolist():
            self._damaged.pop(row, None)
        self._damaged |= {damage.row: damage for damage in changes.damaged}
        blocks = self._growth.apply(changes)
        self._grown = changes.generation
        damaged = tuple(self._damaged.values())
        dim = self.origin.dim
        # What is new is served at once, multiplied; the index follows when there is a new full block.
        self.snapshot = FolderSnapshot(changes.generation, dim, blocks, self._coverage.of(blocks), damaged)
        if self._coverage.extend(self._growth.sealed):
            self.snapshot = replace(self.snapshot, covered=self._coverage.of(blocks))
        return True


def open_gallery(
    folder: Path,
    *,
    identity: str | None = None,
    write: bool = False,
    kind: IndexKind = "auto",
    device: IndexDevice = "cpu",
    max_memory: int | None = None,
) -> FolderGallery:
    """Open a gallery for searching with a model, and to `write`, which one process at a time may.

    `kind` says how rows are searched and `device` where; `max_memory`, bytes, is what its entries may take.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        GalleryModelError: it was built with a model of another `identity`.
        GalleryLockedError: another process is writing to it.
        GalleryFullError: it does not fit in `max_memory`.
        DeviceError: the index's device was not obtained.
    """
    with contextlib.ExitStack() as on_failure:
        opened = on_failure.enter_context(contextlib.ExitStack())
        if write:
            find_database(folder)  # before the lock, which would make the folder
            opened.enter_context(writer_lock(folder))
        store = open_store(folder, write=write)
        opened.callback(store.close)
        if identity is not None:
            check_origin(folder, store.origin, identity=identity)
        check_whole(path_to_text(folder), store)
        store.most_entries = most_entries(store.origin, max_memory)
        coverage = Coverage(folder, store.origin.dim, kind=kind, device=device)
        gallery = FolderGallery(store, coverage, opened, writes=write)
        on_failure.pop_all()
        return gallery


@contextlib.contextmanager
def open_writer(folder: Path, *, identity: str | None = None, max_memory: int | None = None) -> Iterator[Store]:
    """Hold the writer's lock and write to a gallery's rows without reading its embeddings into memory.

    Raises:
        GalleryError, GalleryModelError, GalleryLockedError: as `open_gallery`.
    """
    find_database(folder)  # before the lock, which would make the folder
    with writer_lock(folder), contextlib.closing(open_store(folder, write=True)) as store:
        if identity is not None:
            check_origin(folder, store.origin, identity=identity)
        check_whole(path_to_text(folder), store)
        store.most_entries = most_entries(store.origin, max_memory)
        yield store


def most_entries(origin: Origin, max_memory: int | None) -> int | None:
    """How many entries fit in so many bytes of memory; None for no limit."""
    return None if max_memory is None else max_memory // entry_bytes(origin.dim)


def read_snapshot(folder: Path, *, identity: str | None = None, kind: IndexKind = "auto") -> FolderSnapshot:
    """Read the newest state of the gallery in a folder, to be searched with a model.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        GalleryModelError: it was built with a model of another `identity`.
    """
    gallery = open_gallery(folder, identity=identity, kind=kind)
    gallery.close()
    return gallery.snapshot


class Noted(Protocol):
    """What has notes of how far its making is."""

    def note(self, key: str) -> str | None:
        """What was last noted under a key, None if nothing."""


def check_whole(place: object, rows: Noted) -> None:
    """See that a gallery is no half of one; `place` is as messages name it.

    Raises:
        GalleryError: it is an unfinished rebuild, or an unfinished copy.
    """
    if made := _UNFINISHED.get(rows.note(STATE) or ""):
        raise GalleryError(f"{place} is an unfinished {made}: run the same reid-index {made} again to finish it")


def read_kinds(
    folder: Path, kinds: Sequence[IndexKind], *, device: IndexDevice = "cpu"
) -> dict[IndexKind, FolderSnapshot]:
    """Read the newest state of a gallery once, to be searched by each of these kinds of index; the rows are shared.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        DeviceError: the device was not obtained, or a kind does not run there.
    """
    snapshot = read_snapshot(folder, kind="flat")
    snapshots = {}
    for kind in kinds:
        coverage = Coverage(folder, snapshot.dim, kind=kind, device="cpu" if kind == "flat" else device)
        full = [block for block in snapshot.blocks if len(block.rows) == BLOCK_ROWS]
        coverage.extend(full)
        snapshots[kind] = replace(snapshot, covered=coverage.of(snapshot.blocks))
        coverage.close()
    return snapshots


def check_origin(folder: Path, origin: Origin, *, identity: str) -> None:
    """See that a gallery was built with the model of this identity.

    Raises:
        GalleryModelError: it was not; both are named.
    """
    if origin.identity != identity:
        raise GalleryModelError(
            f"{path_to_text(folder)} holds embeddings of model {origin.identity[:12]}, this is model {identity[:12]}: "
            "their scores mean nothing together; serve it with its own model, or embed its images again with "
            "reid-index rebuild GALLERY --model MODEL --out NEW"
        )
