"""Snapshots: whole copies of a gallery as of one generation, made while it is searched and written to."""

import re
import secrets
import shutil
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from reidserve.errors import GalleryError, OutputExistsError, QueryError
from reidserve.index.storage.database import copy_database, gallery_bytes
from reidserve.index.storage.folders import sync
from reidserve.index.storage.store import open_store

_NAME = re.compile("[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_STRANGE = re.compile("^[.]|[^A-Za-z0-9._-]")
_LONGEST_BEGINNING = 80  # of a name that we make


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a gallery.

    Attributes:
        name: of its folder among the snapshots.
        generation: the state that it is of.
        entries: how many it has.
        size: bytes on the disk.
    """

    name: str
    generation: int
    entries: int
    size: int


def check_name(snapshots: Path, name: str) -> None:
    """See that a copy may have this name; an empty one may, as one is made for it.

    Raises:
        QueryError: it is no name of ours.
        OutputExistsError: there is something of that name.
    """
    if not name:
        return
    if not _NAME.fullmatch(name):
        raise QueryError(
            "a snapshot's name must be up to 128 letters, digits, '-', '_' and '.', and not begin with '.', "
            f"got {name[:140]!r}"
        )
    out = snapshots / name
    if out.exists() or out.is_symlink():
        raise OutputExistsError(f"there is a snapshot {name!r} already: choose a name that is free")


def copy_gallery(folder: Path, snapshots: Path, *, gallery: str, name: str) -> Copy:
    """Copy a gallery's folder to a new one among the snapshots, whole and durable or not at all.

    Where `name` is empty it becomes the `gallery`'s name, the copy's generation and the time. A killed process leaves
    a hidden folder, which may be removed.

    Raises:
        QueryError, OutputExistsError: the name may not be, or is taken.
        GalleryError: the gallery cannot be read, or the copy not written.
    """
    check_name(snapshots, name)
    # Only the copy itself knows of which generation it is, and so what it is called.
    hidden = snapshots / f".copying-{secrets.token_hex(4)}"
    copy_database(folder, hidden)
    try:
        with closing(open_store(hidden)) as store:
            generation, entries = store.generation(), store.count()
        name = name or _name_of(gallery, generation)
        check_name(snapshots, name)
        hidden.rename(snapshots / name)
        sync(snapshots)
        return Copy(name, generation, entries, gallery_bytes(snapshots / name))
    except OSError as error:
        raise GalleryError(f"the copy of gallery {gallery!r} cannot be kept: {error.strerror}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _name_of(gallery: str, generation: int) -> str:
    beginning = _STRANGE.sub("_", gallery)[:_LONGEST_BEGINNING]
    return f"{beginning}-{generation}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
