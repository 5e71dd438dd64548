"""Verifying: everything in a gallery is read and held against itself; what can be repaired is, from the images."""

import hashlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reidserve.datasets import path_to_text, text_to_path
from reidserve.embed import Embedder, off_unit, read_image
from reidserve.errors import GalleryError, ImageError
from reidserve.index.build import Progress, no_progress
from reidserve.index.gallery import open_writer
from reidserve.index.opening import reading
from reidserve.index.place import GalleryUrl, Place
from reidserve.index.seam import Rows
from reidserve.index.storage.cache import cache_faults, remove_cache
from reidserve.index.storage.rows import Damage, Stored
from reidserve.index.storage.store import Store, open_store

_STEP_ROWS = 512


@dataclass(frozen=True, slots=True)
class Verification:
    """What a gallery's reading found.

    Attributes:
        entries: rows that are whole.
        generation: the gallery's.
        faults: what is wrong with the database as a whole.
        damaged: rows that cannot be believed, and what is wrong with each.
        cache_faults: what is wrong with derived files; they are made again when the gallery is opened.
    """

    entries: int
    generation: int
    faults: list[str]
    damaged: list[Damage]
    cache_faults: list[str]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong with what is durable."""
        return not self.faults and not self.damaged


@dataclass(slots=True)
class Repair:
    """What a repair did.

    Attributes:
        repaired: ids of entries whose embedding was computed again, and is the one that was stored.
        left: ids of entries that could not be repaired, and why.
    """

    repaired: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def verify_gallery(place: Place, *, progress: Progress = no_progress) -> Verification:
    """Read everything of a gallery, beside whoever serves or writes it; nothing is changed.

    Raises:
        GalleryError: it does not even open.
        BackendUnavailableError: what holds it does not answer.
    """
    if isinstance(place, GalleryUrl):
        with reading(place) as rows:
            return _read(rows, [], [], progress)
    with closing(open_store(place)) as store:
        try:
            faults = store.faults()
        except GalleryError as error:
            faults = [str(error)]
        return _read(store, faults, cache_faults(place), progress)


def _read(store: Rows, faults: list[str], cache: list[str], progress: Progress) -> Verification:
    ids: set[str] = set()
    damaged: list[Damage] = []
    entries = rows = generation = counted = 0
    try:
        counted, generation = store.count(), store.generation()
        with closing(store.scan()) as scan:
            for found in scan:
                if not rows:
                    # Within the scan's transaction: what is written meanwhile is not part of it.
                    counted, generation = store.count(), store.generation()
                damage = found if isinstance(found, Damage) else _damage(found, ids)
                if damage is not None:
                    damaged.append(damage)
                rows += 1
                entries += damage is None
                if rows % _STEP_ROWS == 0:
                    progress(rows, max(rows, counted))
        if rows != counted:
            faults.append(f"the counter says {counted} entries, {rows} were read")
    except GalleryError as error:
        faults.append(f"reading stopped after {rows} rows: {error}")
    progress(rows, rows)
    return Verification(entries, generation, faults, damaged, cache)


def _damage(stored: Stored, ids: set[str]) -> Damage | None:
    """What is wrong with a row whose checksum holds; its id is added to those that were seen."""
    name = stored.entry.id
    if name in ids:
        return Damage(stored.row, name, "its id comes twice")
    ids.add(name)
    if wrong := off_unit(stored.vector[np.newaxis]):
        return Damage(stored.row, name, f"its vector has length {wrong[0][1]:g}")
    if len(stored.content_sha256) != hashlib.sha256().digest_size:
        return Damage(stored.row, name, "the hash of its image is none")
    return None


def repair_gallery(
    folder: Path, found: Verification, embedder: Embedder | None = None, *, progress: Progress = no_progress
) -> Repair:
    """Repair what was found: derived numbers always, rows from their images where the embedder is given.

    A row is repaired only where its image is the one it was made of and the embedding then has the row's checksum, so
    a repaired gallery answers as it did before the damage.

    Raises:
        GalleryModelError: the gallery was built with another model than the embedder's.
        GalleryLockedError: another process is writing to it.
        GalleryError: it cannot be written.
    """
    identity = None if embedder is None else embedder.contract.identity
    repair = Repair()
    with open_writer(folder, identity=identity) as store:
        if found.faults:
            store.mend()
        if found.cache_faults:
            remove_cache(folder)
        for done, damage in enumerate(found.damaged, start=1):
            fault = _repair_row(store, damage, embedder)
            if fault is None:
                repair.repaired.append(damage.id)
            else:
                repair.left.append((damage.id, f"{damage.fault}; {fault}"))
            progress(done, len(found.damaged))
    return repair


def _repair_row(store: Store, damage: Damage, embedder: Embedder | None) -> str | None:
    """Repair a row; returns why it cannot be, None where it was."""
    if embedder is None:
        return "its image can be embedded again with --model"
    try:
        source, content = store.said_source(damage)
    except GalleryError as error:
        return str(error)
    if source is None:
        return "it has no source that could be embedded again"
    try:
        path = text_to_path(source)
        data = read_image(path)
        if hashlib.sha256(data).digest() != content:
            return f"{path_to_text(path)} is no longer the image that it was made of"
        (vector,) = embedder.embed_each(embedder.prepare(data)[np.newaxis])
    except (OSError, ValueError) as error:
        return f"{source}: {getattr(error, 'strerror', None) or error}"
    except ImageError as error:
        return f"{source}: {error}"
    if isinstance(vector, Exception):
        return f"{source}: {vector}"
    if not store.replace_vector(damage, content, vector):
        return "embedded again it has another checksum: what is said of it, or the engine, is not what it was"
    return None
