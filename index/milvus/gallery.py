"""The gallery that a Milvus server holds, opened."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from reidserve.errors import (
    GalleryBehindError,
    GalleryError,
    GalleryModelError,
    OutputExistsError,
    RemainsError,
)
from reidserve.index.entry import Entry
from reidserve.index.filters import Filter
from reidserve.index.milvus.collection import Collection
from reidserve.index.milvus.conditions import among
from reidserve.index.milvus.layout import ABOUT, About, about_entity
from reidserve.index.milvus.rows import MilvusRows
from reidserve.index.milvus.server import Server
from reidserve.index.milvus.snapshot import MilvusSnapshot
from reidserve.index.place import GalleryUrl
from reidserve.index.storage.database import Origin
from reidserve.index.storage.rows import Record, Written
from reidserve.index.thumbnails import find_thumbnail

_POLL_SECONDS = 0.05
_IDENTITY_DIGITS = 12


class MilvusGallery:
    """A gallery in Milvus opened for searching, and for writing where that was asked for; safe from any thread.

    Attributes:
        place: where it is.
        origin: what its embeddings were computed by.
        snapshot: the newest state, as it was last looked at.
    """

    def __init__(self, collection: Collection, rows: MilvusRows, *, writes: bool) -> None:
        self.place = collection.url
        self.origin = rows.origin
        self.snapshot = MilvusSnapshot(-1, rows.origin.dim, 0, collection)
        self._collection = collection
        self._rows = rows
        self._writes = writes
        self._changing = threading.Lock()
        self.refresh()

    def refresh(self) -> bool:
        """Catch up with what anybody has written; returns whether there was anything.

        Raises:
            GalleryError: the gallery cannot be read; the snapshot stays.
            BackendUnavailableError: Milvus does not answer; the snapshot stays.
        """
        with self._changing:
            return self._look(self._rows.renewed() if self._writes else self._collection.about())

    def wait(self, generation: int, *, timeout: float) -> MilvusSnapshot:
        """The first snapshot at a generation or later, to read what somebody wrote; `timeout` in seconds.

        Raises:
            GalleryBehindError: there is none yet after that time.
            GalleryError, BackendUnavailableError: the gallery cannot be read.
        """
        deadline = time.monotonic() + timeout
        while self.snapshot.generation < generation:
            self.refresh()
            if self.snapshot.generation >= generation:
                break
            if time.monotonic() >= deadline:
                raise GalleryBehindError(
                    f"{self.place} is at generation {self.snapshot.generation}, "
                    f"{generation} was waited for {timeout:g} s"
                )
            time.sleep(_POLL_SECONDS)
        return self.snapshot

    def upsert(self, records: Sequence[Record]) -> Written:
        """Write records by entry id; what is there already with equal content and fields stays.

        What is promised of a write that fails half way, milvus/rows.py says.

        Raises:
            EntryError, GalleryFullError, GalleryError, GalleryLockedError: nothing was written.
            BackendUnavailableError: Milvus went away: some of it may be written; write it again.
            GalleryBehindError: it was written, and this process cannot read it back yet.
        """
        return self._write(lambda rows: rows.upsert(records))

    def update(self, entries: Sequence[Entry]) -> Written:
        """Say something else of entries that are there, by id; their embeddings stay.

        Raises:
            EntryNotFoundError: one of them is not there; nothing was written.
            EntryError, GalleryError, GalleryLockedError, BackendUnavailableError, GalleryBehindError: as `upsert`.
        """
        return self._write(lambda rows: rows.update(entries))

    def delete(self, ids: Iterable[str] | None = None, *, where: Filter | None = None) -> Written:
        """Remove the entries of these ids, or those that a filter accepts; ids not there are no error.

        Raises:
            GalleryError, GalleryLockedError, BackendUnavailableError, GalleryBehindError: as `upsert`.
        """
        if (ids is None) == (where is None):
            raise TypeError("delete takes ids or a filter")

        def delete(rows: MilvusRows) -> Written:
            if where is None:
                return rows.delete(ids or ())
            return rows.delete([entry.id for entry in self.snapshot.matching(where)])

        return self._write(delete)

    def thumbnail(self, entry_id: str, *, sources: Path | None = None) -> bytes | None:
        """The source of an entry made small, where that lies below `sources`; Milvus keeps no thumbnails."""
        with contextlib.closing(self.rows()) as rows:
            return find_thumbnail(rows, entry_id, sources=sources)

    def erase(self) -> bool:
        """Refuse to say that nothing is left: Milvus clears its files of what was removed in its own time.

        Raises:
            RemainsError: always.
        """
        raise RemainsError(
            f"{self.place}: what was removed is found no more, and Milvus clears its files of it in its own time: by "
            "compaction and garbage collection, as its operator has set them"
        )

    def rows(self) -> MilvusRows:
        """Its rows, to be read beside searches and closed by who asked for it."""
        return self._rows.another()

    def close(self) -> None:
        """Let go of the lease and the connection."""
        with self._changing:
            self._rows.close()
            self._collection.server.close()

    def _write(self, write: Callable[[MilvusRows], Written]) -> Written:
        if not self._writes:
            raise GalleryError(f"{self.place} was opened for reading: open it to write")
        with self._changing:
            written = write(self._rows)
            try:
                self._look(self._rows.held())
            except Exception as error:
                raise GalleryBehindError(
                    f"{self.place}: the write is in Milvus, but it cannot be shown yet: {error}"
                ) from error
            return written

    def _look(self, about: About) -> bool:
        if about.generation == self.snapshot.generation:
            return False
        self.snapshot = MilvusSnapshot(about.generation, about.dim, self._collection.count(), self._collection)
        return True


def open_gallery(url: GalleryUrl, *, identity: str | None = None, write: bool = False) -> MilvusGallery:
    """Open a gallery in Milvus, to be searched with a model, and to `write`.

    Its name may stand for several, one for each model: the one of this `identity` is opened, or where that is None the
    one that the name stands for by now.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        GalleryModelError: it was built with a model of another `identity`.
        GalleryLockedError: another process is writing to it.
        BackendUnavailableError: Milvus does not answer.
    """
    with contextlib.ExitStack() as on_failure:
        collection = _opened(url, identity)
        on_failure.callback(collection.server.close)
        rows = MilvusRows(collection, write=write)
        on_failure.callback(rows.close)
        gallery = MilvusGallery(collection, rows, writes=write)
        on_failure.pop_all()
        return gallery


def open_rows(url: GalleryUrl, *, identity: str | None = None, write: bool = False) -> MilvusRows:
    """Connect to the rows of a gallery, which is found as `open_gallery` finds it.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        GalleryModelError: it was built with a model of another `identity`.
        GalleryLockedError: another process is writing to it.
        BackendUnavailableError: Milvus does not answer.
    """
    return MilvusRows(_opened(url, identity), write=write)


def make_rows(url: GalleryUrl, origin: Origin) -> MilvusRows:
    """The rows of the gallery of a model's embeddings, to be written; it is made if there is none.

    Its name stands for it from now on, if it stands for nothing else. One whose making was cut off is made whole.

    Raises:
        GalleryError: Milvus cannot make it.
        GalleryLockedError: another process is writing to it.
        OutputExistsError: something else has its name.
        BackendUnavailableError: Milvus does not answer.
    """
    server = Server(url.address)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(server.close)
        name = collection_name(url, origin.identity)
        pointed = server.collection(url.name)
        if pointed is None and server.has(url.name):
            raise OutputExistsError(f"{url} is a collection of Milvus that is no gallery: choose another name")
        if not server.has(name):
            server.create(name, origin.dim)
        server.load(name)
        if not _begun(server, name):
            about = About(identity=origin.identity, engine=origin.engine, dim=origin.dim)
            server.upsert(name, [about_entity(about)])
        if pointed is None:
            server.point(url.name, name)
        rows = MilvusRows(Collection(server, url, name), write=True)
        on_failure.pop_all()
        return rows


def holds_gallery(url: GalleryUrl, *, identity: str | None = None) -> bool:
    """Whether there is a gallery of that name, or the one of this `identity`.

    Raises:
        BackendUnavailableError: Milvus does not answer.
    """
    server = Server(url.address)
    with contextlib.closing(server):
        name = server.collection(url.name) if identity is None else collection_name(url, identity)
        if name is None or not server.has(name):
            return False
        server.load(name)
        return _begun(server, name)


def switch_alias(url: GalleryUrl, identity: str) -> None:
    """Let a gallery's name stand for the one of this identity, which must be there, in one step.

    Raises:
        GalleryError: there is none.
        BackendUnavailableError: Milvus does not answer.
    """
    with contextlib.closing(_opened(url, identity).server) as server:
        server.point(url.name, collection_name(url, identity))


def collection_name(url: GalleryUrl, identity: str) -> str:
    """What the collection of a gallery is called that holds one model's embeddings."""
    return f"{url.name}__{identity[:_IDENTITY_DIGITS]}"


def _opened(url: GalleryUrl, identity: str | None) -> Collection:
    """The collection of this identity, or where it is None the one that the gallery's name stands for."""
    server = Server(url.address)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(server.close)
        own = None if identity is None else collection_name(url, identity)
        name = own if own is not None and server.has(own) else server.collection(url.name)
        if name is None:
            raise GalleryError(f"no gallery at {url}: make one with reid-index build --out {url}")
        collection = Collection(server, url, name)
        if identity is not None and (held := collection.origin.identity) != identity:
            raise GalleryModelError(
                f"{url} holds embeddings of model {held[:12]}, this is model {identity[:12]}: their scores mean "
                "nothing together; serve it with its own model, or embed its images again with reid-index rebuild"
            )
        on_failure.pop_all()
        return collection


def _begun(server: Server, name: str) -> bool:
    """Whether a collection says of itself that it is a gallery."""
    return bool(server.query(name, among("id", [ABOUT]), fields=["row"], newest=True))
