"""Opening: the rows of a gallery wherever it is, for what reads or writes all of them without searching."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from reidserve.datasets import path_to_text
from reidserve.errors import OutputExistsError
from reidserve.index.gallery import check_origin, check_whole, open_writer
from reidserve.index.place import GalleryUrl, Place, place_text
from reidserve.index.seam import Gallery, Rows
from reidserve.index.storage.database import DATABASE_FILES, Origin, holds_gallery
from reidserve.index.storage.lock import LOCK, writer_lock
from reidserve.index.storage.store import Store, create_store, open_store


def absolute_place(place: Place) -> str:
    """A place as it is noted down: the same wherever the process stands."""
    return place_text(place if isinstance(place, GalleryUrl) else place.absolute())


@contextmanager
def reading(place: Place, *, identity: str | None = None) -> Iterator[Rows]:
    """The rows of a gallery, to be read beside whoever writes to it; in Milvus those of the model of an `identity`.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        BackendUnavailableError: what holds it does not answer.
    """
    if isinstance(place, GalleryUrl):
        from reidserve.index.milvus import open_rows

        with closing(open_rows(place, write=False, identity=identity)) as remote:
            yield remote
        return
    with closing(open_store(place)) as store:
        yield store


@contextmanager
def writing(place: Place, *, identity: str | None = None, max_memory: int | None = None) -> Iterator[Rows]:
    """The rows of a gallery that is there, to be written as its one writer.

    Raises:
        GalleryError, GalleryModelError, GalleryLockedError: as `open_gallery`.
        BackendUnavailableError: what holds it does not answer.
    """
    if isinstance(place, GalleryUrl):
        from reidserve.index.milvus import open_rows

        with closing(open_rows(place, write=True, identity=identity)) as remote:
            check_whole(place_text(place), remote)
            yield remote
        return
    with open_writer(place, identity=identity, max_memory=max_memory) as store:
        yield store


@contextmanager
def filling(place: Place, origin: Origin) -> Iterator[Rows]:
    """The rows of a gallery of this model, made if there is none, to be written as its one writer, whole or not.

    Raises:
        OutputExistsError: there is something else.
        GalleryError, GalleryModelError, GalleryLockedError, BackendUnavailableError: as `writing`.
    """
    if isinstance(place, GalleryUrl):
        from reidserve.index.milvus import make_rows

        with closing(make_rows(place, origin)) as remote:
            yield remote
        return
    check_own(place)
    with writer_lock(place), closing(_open_or_create(place, origin)) as store:
        yield store


def publish(gallery: Gallery) -> None:
    """Let who asks a place of several models, and names none, find the one that this gallery is of from now on.

    Raises:
        BackendUnavailableError: what holds it does not answer.
    """
    if isinstance(gallery.place, GalleryUrl):
        from reidserve.index.milvus import switch_alias

        switch_alias(gallery.place, gallery.origin.identity)


def check_own(out: Path) -> None:
    """See that nothing of somebody else's lies where a gallery is to be.

    Raises:
        OutputExistsError: something does.
    """
    if not out.exists() or holds_gallery(out):
        return
    if not out.is_dir() or {path.name for path in out.iterdir()} - {LOCK, *DATABASE_FILES}:
        raise OutputExistsError(f"{path_to_text(out)} is there already and is no gallery: choose another --out")


def _open_or_create(out: Path, origin: Origin) -> Store:
    if not holds_gallery(out):
        return create_store(out, origin)
    with ExitStack() as on_failure:
        store = open_store(out, write=True)
        on_failure.callback(store.close)
        check_origin(out, store.origin, identity=origin.identity)
        on_failure.pop_all()
        return store
