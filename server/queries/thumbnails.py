"""Thumbnails: small pictures of entries, found beside searches."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reidserve.errors import ThumbnailNotFoundError
from reidserve.index import Gallery


class Thumbnails:
    """Finds thumbnails one after the other, on a thread: at most one source is in memory while it is made small.

    Below `sources` lie the images that may be shown of entries without a thumbnail; None for none.
    """

    def __init__(self, sources: Path | None) -> None:
        self._sources = sources
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thumbnails")

    async def of(self, gallery: Gallery, entry_id: str) -> bytes:
        """The thumbnail of an entry as it is encoded.

        Raises:
            EntryNotFoundError: there is no such entry.
            ThumbnailNotFoundError: it has none.
            GalleryError: the gallery cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, gallery, entry_id)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown()

    def _find(self, gallery: Gallery, entry_id: str) -> bytes:
        found = gallery.thumbnail(entry_id, sources=self._sources)
        if found is None:
            gallery.snapshot.row(entry_id)
            raise ThumbnailNotFoundError(
                f"entry {entry_id!r} has no thumbnail: the server keeps them of what is written with --thumbnails, and "
                "shows sources below --sources-root"
            )
        return found
