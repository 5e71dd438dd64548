"""Thumbnails: of an entry the small image that its gallery keeps, or its source made small where that may be shown."""

import hashlib
from pathlib import Path

from reidserve.datasets import text_to_path
from reidserve.embed import read_image, shrink
from reidserve.errors import ImageError
from reidserve.index.seam import Rows


def find_thumbnail(rows: Rows, name: str, *, sources: Path | None = None) -> bytes | None:
    """The thumbnail of an entry as it is encoded (`THUMBNAIL_TYPE`), None if there is none.

    Where none is kept, its source is made small if that lies below `sources`, through links too, and is to the byte
    the image that the entry was made of: whoever may write an entry can name any file, and is shown no other's.

    Raises:
        GalleryError: the gallery cannot be read, or the entry is damaged.
    """
    kept = rows.thumbnail(name)
    if kept is not None or sources is None:
        return kept
    stored = rows.get(name)
    if stored is None or stored.entry.source is None:
        return None
    data = _read_below(sources, text_to_path(stored.entry.source))
    if data is None or hashlib.sha256(data).digest() != stored.content_sha256:
        return None
    try:
        return shrink(data)
    except ImageError:
        return None


def _read_below(root: Path, path: Path) -> bytes | None:
    """The bytes of an image file, None where there is none that lies below the root."""
    try:
        found = (root / path).resolve(strict=True)
        return read_image(found) if found.is_relative_to(root.resolve(strict=True)) else None
    # RuntimeError: links that lead in a circle; ValueError: a NUL character.
    except (OSError, RuntimeError, ValueError, ImageError):
        return None
