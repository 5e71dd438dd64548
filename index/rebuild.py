"""Rebuilding: a gallery's images are embedded again, with another model, while it goes on serving."""

from reidserve.datasets import text_to_path
from reidserve.embed import Embedder
from reidserve.errors import OutputExistsError
from reidserve.index.build import (
    BuildReport,
    Item,
    Progress,
    finished,
    no_progress,
    origin_of,
    write_all,
)
from reidserve.index.gallery import check_whole
from reidserve.index.opening import absolute_place, filling, reading
from reidserve.index.place import Place, place_text
from reidserve.index.seam import Rows
from reidserve.index.storage.rows import Damage
from reidserve.index.storage.store import BUILT, REBUILDING, REBUILT, ROOT, STATE


def rebuild_gallery(place: Place, out: Place, embedder: Embedder, *, progress: Progress = no_progress) -> BuildReport:
    """Embed a gallery's images again, with another model, into a sibling gallery, while the old one goes on serving.

    What is written to the old gallery meanwhile is done again in the new one, until both say the same. Entries
    whose source is not there, or is no longer what it was, are the report's failures; while there are any, the new
    gallery is unfinished and does not open, and the same call goes on where this one stopped. It may be made again
    after it finished, to do what was written to the old gallery since, as long as nothing else wrote to the new one.

    Raises:
        OutputExistsError: `out` is something else than a rebuild of this gallery that nobody else wrote to.
        GalleryError, GalleryModelError, GalleryLockedError: as `build_gallery`.
    """
    with reading(place) as old, filling(out, origin_of(embedder)) as new:
        check_whole(place_text(place), old)
        source = absolute_place(place)
        _check_rebuild(new, out, source)
        new.write_note(REBUILT, source)
        new.write_note(STATE, REBUILDING)
        report = _embed_again(old, new, embedder, progress)
        if not report.failures:
            if (root := old.note(ROOT)) is not None:
                new.write_note(ROOT, root)
            new.write_note(REBUILT, _finished_rebuild(source, new))
            new.write_note(STATE, BUILT)
        return finished(report, new)


def _check_rebuild(new: Rows, out: Place, source: str) -> None:
    """See that a rebuild of the gallery `source` may write here: into nothing, or on what one wrote before."""
    state, rebuilt = new.note(STATE), new.note(REBUILT)
    if state is None and not new.generation():
        return
    if state == REBUILDING and rebuilt == source:
        return
    if state == BUILT and rebuilt == _finished_rebuild(source, new):
        return
    raise OutputExistsError(
        f"{place_text(out)} is no rebuild of {source}, or was written to after it: choose another --out"
    )


def _finished_rebuild(source: str, new: Rows) -> str:
    return f"{source} at generation {new.generation()}"


def _embed_again(old: Rows, new: Rows, embedder: Embedder, progress: Progress) -> BuildReport:
    """Do in the new gallery what was done in the old one, until nothing was done meanwhile or an image is missing."""
    report = BuildReport()
    thumbnails = bool(old.with_thumbnail())
    seen = -1
    while seen != old.generation() and not report.failures:
        first, seen = seen < 0, old.generation()
        items, report.failures = _items_of(old)
        known = new.contents()
        missing = [item for item in items if known.get(item.entry.id) != (item.entry, item.content_sha256)]
        if first:
            report.kept = len(items) - len(missing)
        write_all(missing, new, known, embedder, report, progress, thumbnails=thumbnails)
        if not report.failures:
            report.removed += new.delete(sorted(new.ids() - {item.entry.id for item in items})).changed
    return report


def _items_of(old: Rows) -> tuple[list[Item], list[tuple[str, str]]]:
    """What a gallery was made of, and the entries of which that cannot be known."""
    items, failures = [], []
    for stored in old.scan():
        if isinstance(stored, Damage):
            failures.append((stored.id, stored.fault))
        elif stored.entry.source is None:
            failures.append((stored.entry.id, "it has no source that could be embedded again"))
        else:
            items.append(Item(text_to_path(stored.entry.source), stored.entry, stored.content_sha256))
    return items, failures
