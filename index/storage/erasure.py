"""Erasure: what was removed from a gallery leaves its files too, to the last byte."""

from reidserve.datasets import path_to_text
from reidserve.errors import RemainsError
from reidserve.index.storage.cache import has_cache, remove_cache
from reidserve.index.storage.database import remove_old_copies
from reidserve.index.storage.store import Store


def erase(store: Store) -> bool:
    """Clear a gallery's files of what was removed: derived codes, old copies, free pages and the log.

    Returns whether there was anything to clear. A process that is killed on the way leaves the rest to the next call.

    Raises:
        RemainsError: bytes of it are left, because somebody reads the gallery or a file cannot be removed.
        GalleryError: the disk failed.
    """
    if not store.has_remains():
        return False
    folder = store.folder
    try:
        remove_cache(folder)
        remove_old_copies(folder)
    except OSError as error:
        raise RemainsError(f"{path_to_text(folder)}: {error.filename} cannot be removed: {error.strerror}") from error
    if has_cache(folder):
        raise RemainsError(
            f"{path_to_text(folder)}: the folder cache, which has codes of embeddings, cannot be removed"
        )
    # Last, for it notes that it was done.
    store.vacuum()
    return True
