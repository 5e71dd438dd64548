"""Places: a gallery opened, made and looked for wherever it is."""

import contextlib
from pathlib import Path

from reidserve.index import gallery as folders
from reidserve.index.place import GalleryUrl, Place, parse_place, place_text
from reidserve.index.seam import Gallery
from reidserve.index.search.coverage import IndexDevice, IndexKind

__all__ = ["GalleryUrl", "Place", "open_gallery", "parse_place", "place_text"]


def open_gallery(
    place: Place,
    *,
    identity: str | None = None,
    write: bool = False,
    kind: IndexKind = "auto",
    device: IndexDevice = "cpu",
    max_memory: int | None = None,
) -> Gallery:
    """Open a gallery for searching with a model, and to `write`, which one process at a time may.

    `kind` says how rows of a folder are searched and `device` where; `max_memory`, bytes, is what its entries may take
    in this process. Milvus has an index of its own.

    Raises:
        GalleryError: no gallery there, or one that cannot be read.
        GalleryModelError: it was built with a model of another `identity`.
        GalleryLockedError: another process is writing to it.
        GalleryFullError: it does not fit in `max_memory`.
        DeviceError: the index's device was not obtained.
        BackendUnavailableError: the server that holds it does not answer.
    """
    if isinstance(place, Path):
        return folders.open_gallery(
            place, identity=identity, write=write, kind=kind, device=device, max_memory=max_memory
        )
    from reidserve.index import milvus

    gallery = milvus.open_gallery(place, identity=identity, write=write)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(gallery.close)
        with contextlib.closing(gallery.rows()) as rows:
            folders.check_whole(place_text(place), rows)
        on_failure.pop_all()
    return gallery
