"""The gallery: a folder on disk whose newest committed state can be searched."""

import threading
from pathlib import Path

from reidserve.datasets import path_to_text
from reidserve.errors import GalleryModelError
from reidserve.index.snapshot import Snapshot
from reidserve.index.store import Origin, Store, open_store


class Gallery:
    """A gallery opened for searching.

    A search takes `snapshot` once and uses it from start to end; `refresh` puts the next one in its place, and
    neither waits for the other. Safe from any thread.

    Attributes:
        folder: where it lies.
        origin: what its embeddings were computed by.
        snapshot: the newest state that was read.
    """

    def __init__(self, store: Store) -> None:
        self.folder = store.folder
        self.origin = store.origin
        self.snapshot = Snapshot(generation=-1, dim=store.origin.dim)
        self._store = store
        self._seen: int | None = None
        self._reading = threading.Lock()
        self.refresh()

    def refresh(self) -> bool:
        """Catch up with what any process has committed; returns whether there was anything.

        Raises:
            GalleryError: the gallery is damaged; the snapshot stays.
        """
        with self._reading:
            version = self._store.version()
            if version == self._seen:
                return False
            changes = self._store.changes(since=self.snapshot.generation)
            newer = changes.generation != self.snapshot.generation
            if newer:
                self.snapshot = self.snapshot.after(changes)
            # Only now: what could not be read is read again next time.
            self._seen = version
            return newer

    def close(self) -> None:
        """Let go of the files; snapshots stay usable."""
        with self._reading:
            self._store.close()


def open_gallery(folder: Path, *, identity: str | None = None) -> Gallery:
    """Open a gallery for searching with a model.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        GalleryModelError: it was built with a model of another `identity`.
    """
    store = open_store(folder)
    try:
        if identity is not None:
            check_origin(folder, store.origin, identity=identity)
        return Gallery(store)
    except BaseException:
        store.close()
        raise


def read_snapshot(folder: Path, *, identity: str | None = None) -> Snapshot:
    """Read the newest state of the gallery in a folder, to be searched with a model.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        GalleryModelError: it was built with a model of another `identity`.
    """
    gallery = open_gallery(folder, identity=identity)
    gallery.close()
    return gallery.snapshot


def check_origin(folder: Path, origin: Origin, *, identity: str) -> None:
    """See that a gallery was built with the model of this identity.

    Raises:
        GalleryModelError: it was not; both are named.
    """
    if origin.identity != identity:
        raise GalleryModelError(
            f"{path_to_text(folder)} holds embeddings of model {origin.identity[:12]}, this is model {identity[:12]}: "
            "their scores mean nothing together; serve it with its own model, or build a gallery for this one"
        )
