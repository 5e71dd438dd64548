"""Rebuilding: a gallery's images are embedded again, with another model, while it goes on serving."""

from contextlib import closing
from pathlib import Path

from reidserve.datasets import path_to_text, text_to_path
from reidserve.embed import Embedder
from reidserve.errors import OutputExistsError
from reidserve.index.build import (
    BuildReport,
    Item,
    Progress,
    check_own,
    finished,
    no_progress,
    open_or_create,
    write_all,
)
from reidserve.index.gallery import check_whole
from reidserve.index.storage.lock import writer_lock
from reidserve.index.storage.rows import Damage
from reidserve.index.storage.store import BUILT, REBUILDING, REBUILT, ROOT, STATE, Store, open_store


def rebuild_gallery(folder: Path, out: Path, embedder: Embedder, *, progress: Progress = no_progress) -> BuildReport:
    """Embed a gallery's images again, with another model, into a sibling gallery, while the old one goes on serving.

    What is written to the old gallery meanwhile is done again in the new one, until both say the same. Entries
    whose source is not there, or is no longer what it was, are the report's failures; while there are any, the new
    gallery is unfinished and does not open, and the same call goes on where this one stopped. It may be made again
    after it finished, to do what was written to the old gallery since, as long as nothing else wrote to the new one.

    Raises:
        OutputExistsError: `out` is something else than a rebuild of this gallery that nobody else wrote to.
        GalleryError, GalleryModelError, GalleryLockedError: as `build_gallery`.
    """
    check_own(out)
    with closing(open_store(folder)) as old, writer_lock(out), closing(open_or_create(out, embedder)) as new:
        check_whole(old)
        source = path_to_text(folder.absolute())
        _check_rebuild(new, source)
        new.write_note(REBUILT, source)
        new.write_note(STATE, REBUILDING)
        report = _embed_again(old, new, embedder, progress)
        if not report.failures:
            if (root := old.note(ROOT)) is not None:
                new.write_note(ROOT, root)
            new.write_note(REBUILT, _finished_rebuild(source, new))
            new.write_note(STATE, BUILT)
        return finished(report, new)


def _check_rebuild(new: Store, source: str) -> None:
    """See that a rebuild of the gallery `source` may write here: into nothing, or on what one wrote before."""
    state, rebuilt = new.note(STATE), new.note(REBUILT)
    if state is None and not new.generation():
        return
    if state == REBUILDING and rebuilt == source:
        return
    if state == BUILT and rebuilt == _finished_rebuild(source, new):
        return
    raise OutputExistsError(
        f"{path_to_text(new.folder)} is no rebuild of {source}, or was written to after it: choose another --out"
    )


def _finished_rebuild(source: str, new: Store) -> str:
    return f"{source} at generation {new.generation()}"


def _embed_again(old: Store, new: Store, embedder: Embedder, progress: Progress) -> BuildReport:
    """Do in the new gallery what was done in the old one, until nothing was done meanwhile or an image is missing."""
    report = BuildReport()
    seen = -1
    while seen != old.generation() and not report.failures:
        first, seen = seen < 0, old.generation()
        items, report.failures = _items_of(old)
        known = new.contents()
        missing = [item for item in items if known.get(item.entry.id) != (item.entry, item.content_sha256)]
        if first:
            report.kept = len(items) - len(missing)
        write_all(missing, new, known, embedder, report, progress)
        if not report.failures:
            report.removed += new.delete(sorted(new.ids() - {item.entry.id for item in items})).changed
    return report


def _items_of(old: Store) -> tuple[list[Item], list[tuple[str, str]]]:
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
