"""Copying: a gallery's rows go to another place, of whatever kind, and are read back before they count."""

from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, zip_longest

from reidserve.errors import GalleryError, OutputExistsError
from reidserve.index.build import Progress, no_progress
from reidserve.index.gallery import check_whole
from reidserve.index.opening import absolute_place, filling, reading
from reidserve.index.place import Place, place_text
from reidserve.index.seam import Rows
from reidserve.index.storage.rows import Damage, Record, Stored
from reidserve.index.storage.store import BUILT, COPIED, COPYING, ROOT, STATE

PAGE_ROWS = 512


@dataclass(slots=True)
class Copied:
    """What a copy did.

    Attributes:
        entries: in the copy after it, each read back and held against the gallery's.
        written: entries that were new or different.
        kept: entries that were there as they are.
        removed: entries that the gallery has no more.
        generation: the copy's after it.
        of: the generation of the gallery that it is.
        damaged: rows that were left out because they cannot be believed.
    """

    entries: int = 0
    written: int = 0
    kept: int = 0
    removed: int = 0
    generation: int = 0
    of: int = -1
    damaged: list[Damage] = field(default_factory=list)


def copy_rows(source: Place, out: Place, *, progress: Progress = no_progress) -> Copied:
    """Write a gallery's entries to another place and read them back: entries, hashes, vectors bit for bit, their order.

    The copy does not open before it was found to be whole. What is written to the gallery meanwhile is copied too.
    PAGE_ROWS entries are one write; a copy that was cut off goes on where it stopped, and one that was made may be
    made again, to do what was written to the gallery since, as long as nobody else wrote to the copy.

    Raises:
        OutputExistsError: `out` is something else than a copy of this gallery that nobody else wrote to.
        GalleryError: one of them cannot be read or written, or what is read back is not what was written.
        GalleryModelError, GalleryLockedError, BackendUnavailableError: as `filling`.
    """
    name = absolute_place(source)
    if name == absolute_place(out):
        raise OutputExistsError(f"{place_text(out)} cannot be copied to itself: choose another place")
    with reading(source) as old, filling(out, old.origin) as new:
        check_whole(place_text(source), old)
        _check_copy(new, out, name)
        new.write_note(COPIED, name)
        new.write_note(STATE, COPYING)
        copied, different = Copied(), None
        while copied.of != old.generation():
            copied.of = old.generation()
            _write_pages(old, new, copied, progress)
            different = _difference(old, new, progress)
        if different is not None:
            raise GalleryError(f"{place_text(out)} is no copy yet, {different}: copy into a place of its own")
        if (root := old.note(ROOT)) is not None:
            new.write_note(ROOT, root)
        copied.entries, copied.generation = new.count(), new.generation()
        new.write_note(COPIED, _finished(name, new))
        new.write_note(STATE, old.note(STATE) or BUILT)
        return copied


def _check_copy(new: Rows, out: Place, source: str) -> None:
    """See that a copy of the gallery `source` may be written here: into nothing, or on what one wrote before."""
    copied = new.note(COPIED)
    if copied is None and not new.generation():
        return
    if copied in (source, _finished(source, new)):
        return
    raise OutputExistsError(
        f"{place_text(out)} is no copy of {source}, or was written to after it: choose another place"
    )


def _finished(source: str, new: Rows) -> str:
    return f"{source} at generation {new.generation()}"


def _write_pages(old: Rows, new: Rows, copied: Copied, progress: Progress) -> None:
    """Write what the gallery has and the copy has not, and remove what it has not."""
    known = new.contents()
    left, done, total = set(known), 0, old.count()
    copied.kept, copied.damaged = 0, []
    with closing(old.scan()) as scan:
        while page := list(islice(scan, PAGE_ROWS)):
            whole = [one for one in page if isinstance(one, Stored)]
            copied.damaged += [one for one in page if isinstance(one, Damage)]
            left.difference_update(one.entry.id for one in whole)
            changed = [one for one in whole if known.get(one.entry.id) != (one.entry, one.content_sha256)]
            if changed:
                written = new.upsert([_record(one, old) for one in changed])
                copied.written += written.changed
            copied.kept += len(whole) - len(changed)
            done += len(page)
            progress(done, max(done, total))
    if left:
        copied.removed += new.delete(sorted(left)).changed


def _difference(old: Rows, new: Rows, progress: Progress) -> str | None:
    """What is not as it is in the gallery, entry by entry in their order; None where nothing is."""
    total, compared = new.count(), 0
    with closing(old.scan()) as there, closing(new.scan()) as here:
        whole = (one for one in there if isinstance(one, Stored))
        for compared, (one, other) in enumerate(zip_longest(whole, here), start=1):
            if isinstance(other, Damage):
                return f"entry {other.id!r} cannot be read back: {other.fault}"
            if one is None or other is None:
                return f"it has {'more' if one is None else 'fewer'} entries than the gallery"
            if fault := _unlike(one, other):
                return f"entry {one.entry.id!r} {fault}"
            if compared % PAGE_ROWS == 0:
                progress(compared, max(compared, total))
    progress(compared, compared)
    return None if compared == total else f"it counts {total} entries and has {compared}"


def _unlike(one: Stored, other: Stored) -> str | None:
    if one.entry.id != other.entry.id:
        return f"has {other.entry.id!r} in its place"
    if one.entry != other.entry:
        return "says something else"
    if one.content_sha256 != other.content_sha256:
        return "is of another image"
    return None if one.vector.tobytes() == other.vector.tobytes() else "has another embedding"


def _record(stored: Stored, old: Rows) -> Record:
    return Record(stored.entry, stored.content_sha256, stored.vector, old.thumbnail(stored.entry.id))
