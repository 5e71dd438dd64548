"""Forgetting: entries are removed so that nothing of them is left in a gallery's files."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from reidserve.errors import RetentionError
from reidserve.index.entry import Entry
from reidserve.index.filters import Filter
from reidserve.index.gallery import open_writer
from reidserve.index.storage.erasure import erase
from reidserve.index.storage.rows import Damage, Written
from reidserve.index.storage.store import Store

MOST_SHARE = 0.5
"""How much of a gallery may grow too old at once without somebody saying that the clock is right."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was forgotten.

    Attributes:
        entries: what was removed; the image files that they came from are where they were.
        thumbnails: how many of them had one.
        damaged: ids of entries that cannot be believed, so that nobody knows whether they were meant.
        timeless: how many entries have no timestamp, and never grow too old.
        generation: the gallery's after it.
    """

    entries: Sequence[Entry]
    thumbnails: int
    damaged: Sequence[str]
    timeless: int
    generation: int


def forget_entries(
    folder: Path,
    where: Filter,
    *,
    most_share: float = 1.0,
    on_removed: Callable[[Written], None] = lambda written: None,
) -> Forgotten:
    """Remove the entries that a filter accepts, and clear the gallery's files of every byte of them.

    `on_removed` is told when they are removed, durably, and their bytes are there still; what was cut off before or
    after that is finished by the same call.

    Raises:
        RetentionError: they are more than `most_share` of the gallery; nothing was removed.
        RemainsError: they are removed, and bytes of them are left.
        GalleryLockedError: another process is writing to it.
        GalleryError: it cannot be read or written.
    """
    with open_writer(folder) as store:
        chosen, damaged, timeless = _sorted(store, where)
        check_share(len(chosen), store.count(), most=most_share)
        shown = store.with_thumbnail() & {entry.id for entry in chosen}
        written = store.delete(entry.id for entry in chosen)
        on_removed(written)
        erase(store)
        return Forgotten(chosen, len(shown), damaged, timeless, written.generation)


def check_share(removed: int, entries: int, *, most: float) -> None:
    """See that no more than a part of a gallery goes at once: a clock that is wrong would empty it.

    Raises:
        RetentionError: more would.
    """
    if removed > most * entries:
        raise RetentionError(
            f"{removed} of {entries} entries have grown too old at once, and none was removed: see whether the clock "
            "is right; if it is, reid-index forget GALLERY --older-than AGE --yes removes them"
        )


def _sorted(store: Store, where: Filter) -> tuple[list[Entry], list[str], int]:
    """The entries that are meant, the ids of those that cannot be believed, and how many have no timestamp."""
    chosen, damaged, timeless = [], [], 0
    with closing(store.scan()) as scan:
        for found in scan:
            if isinstance(found, Damage):
                damaged.append(found.id)
                continue
            timeless += found.entry.timestamp is None
            if where.accepts(found.entry):
                chosen.append(found.entry)
    return chosen, damaged, timeless
