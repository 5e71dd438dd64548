"""Building: the crops of a folder become the entries of a gallery, and nothing is embedded twice."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reidserve.datasets import Crop, path_to_text
from reidserve.embed import Embedder, Embedding, Image, map_ahead, read_image
from reidserve.errors import DatasetError, EmbeddingError, ImageError, OutputExistsError, ReidError
from reidserve.index.entry import Entry
from reidserve.index.gallery import check_origin
from reidserve.index.lock import LOCK, writer_lock
from reidserve.index.store import DATABASE_FILES, Origin, Record, Store, create_store, holds_gallery, open_store

COMMIT_ROWS = 256

_ROOT, _STATE = "root", "state"
_BUILDING, _BUILT = "building", "built"


@dataclass(slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        entries: entries in the gallery after it.
        embedded: images that the model was run on.
        reused: new or changed entries whose image was in the gallery already.
        kept: entries that were in the gallery as they are.
        removed: entries whose image is gone from the source.
        failures: images that were left out, and why.
    """

    entries: int = 0
    embedded: int = 0
    reused: int = 0
    kept: int = 0
    removed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A crop that was read: with pixels where it must be embedded, with the reason where it cannot be.

    Attributes:
        entry: what will be written.
        path: the image file.
        content_sha256: of the encoded image.
        pixels: the crop at the model's size; None where the gallery has an entry of that content.
        failure: why it cannot be read.
    """

    entry: Entry
    path: Path
    content_sha256: bytes = b""
    pixels: Image | None = None
    failure: str | None = None


def build_gallery(
    crops: Sequence[Crop],
    root: Path,
    out: Path,
    embedder: Embedder,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuildReport:
    """Make the gallery at `out` hold exactly these crops, under the ids of their paths below `root`.

    A build that was cut off goes on where it stopped. A finished gallery is brought up to date only with
    `force`. Each COMMIT_ROWS entries are one transaction: whatever ends the process, the gallery opens.

    Raises:
        DatasetError: two crops have one id.
        OutputExistsError: `out` holds a finished gallery, or one of another root, and `force` was not given.
        GalleryModelError: `out` holds the embeddings of another model.
        GalleryLockedError: another process is writing to it.
        GalleryError: it cannot be written.
    """
    entries = _entries(crops, root)
    source = path_to_text(root.absolute())
    _check_own(out)
    with writer_lock(out):
        store = _open_or_create(out, source, embedder, force=force)
        try:
            store.write_note(_ROOT, source)
            store.write_note(_STATE, _BUILDING)
            report = _write_all(crops, entries, store, embedder, progress)
            gone = store.ids() - {entry.id for entry in entries}
            if gone:
                store.write([], delete=sorted(gone))
            report.removed = len(gone)
            report.entries = len(store.ids())
            store.write_note(_STATE, _BUILT)
        finally:
            store.close()
    return report


def _entries(crops: Sequence[Crop], root: Path) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for crop in crops:
        name = path_to_text(crop.path.relative_to(root) if crop.path.is_relative_to(root) else crop.path)
        if name in entries:
            raise DatasetError(f"two crops have the path {name}")
        entries[name] = Entry(name, crop.pid, crop.camid, crop.timestamp, path_to_text(crop.path.absolute()))
    return list(entries.values())


def _check_own(out: Path) -> None:
    """See that nothing of somebody else's lies where the gallery will."""
    if not out.exists() or holds_gallery(out):
        return
    if not out.is_dir() or {path.name for path in out.iterdir()} - {LOCK, *DATABASE_FILES}:
        raise OutputExistsError(f"{path_to_text(out)} is there already and is no gallery: choose another --out")


def _open_or_create(out: Path, source: str, embedder: Embedder, *, force: bool) -> Store:
    identity = embedder.contract.identity
    if not holds_gallery(out):
        return create_store(out, Origin(identity, embedder.engine, embedder.contract.dim))
    store = open_store(out, write=True)
    try:
        check_origin(out, store.origin, identity=identity)
        unfinished = store.note(_STATE) != _BUILT and store.note(_ROOT) in (None, source)
        if not unfinished and not force:
            raise OutputExistsError(
                f"{path_to_text(out)} holds a gallery of {len(store.ids())} entries built from {store.note(_ROOT)}: "
                "choose another --out, or bring it up to date with --force (nothing is embedded twice)"
            )
    except BaseException:
        store.close()
        raise
    return store


def _write_all(
    crops: Sequence[Crop],
    entries: Sequence[Entry],
    store: Store,
    embedder: Embedder,
    progress: Callable[[int, int], None],
) -> BuildReport:
    report = BuildReport()
    known = store.contents()
    contents = {content for _, content in known.values()}

    def load(item: tuple[Crop, Entry]) -> _Loaded:
        return _load(item[0].path, item[1], contents, embedder)

    done = 0
    with closing(map_ahead(load, zip(crops, entries, strict=True), ahead=COMMIT_ROWS)) as loading:
        while group := list(itertools.islice(loading, COMMIT_ROWS)):
            readable = [loaded for loaded in group if loaded.failure is None]
            changed = [one for one in readable if known.get(one.entry.id) != (one.entry, one.content_sha256)]
            report.failures += [(_name(one), one.failure) for one in group if one.failure is not None]
            report.kept += len(readable) - len(changed)
            records = _records(changed, store, embedder, report)
            if records:
                store.write(records)
                contents.update(record.content_sha256 for record in records)
            done += len(group)
            progress(done, len(crops))
    return report


def _load(path: Path, entry: Entry, contents: Set[bytes], embedder: Embedder) -> _Loaded:
    try:
        data = read_image(path)
        content = hashlib.sha256(data).digest()
        pixels = None if content in contents else embedder.prepare(data)
    except OSError as error:
        return _Loaded(entry, path, failure=error.strerror or str(error))
    except ImageError as error:
        return _Loaded(entry, path, failure=str(error))
    return _Loaded(entry, path, content, pixels)


def _records(changed: Sequence[_Loaded], store: Store, embedder: Embedder, report: BuildReport) -> list[Record]:
    """The records of crops that are new or changed, in their order; a crop the model fails on is reported."""
    fresh = [loaded.pixels for loaded in changed if loaded.pixels is not None]
    embedded = iter(embedder.embed_each(np.stack(fresh)) if fresh else [])
    records = []
    for loaded in changed:
        reused = store.find_vector(loaded.content_sha256) if loaded.pixels is None else None
        vector = reused if reused is not None else _embedded(loaded, embedded, embedder)
        if isinstance(vector, ReidError):
            report.failures.append((_name(loaded), str(vector)))
            continue
        records.append(Record(loaded.entry, loaded.content_sha256, vector))
        report.reused += reused is not None
        report.embedded += reused is None
    return records


def _embedded(
    loaded: _Loaded, embedded: Iterator[Embedding | EmbeddingError], embedder: Embedder
) -> Embedding | ReidError:
    if loaded.pixels is not None:
        return next(embedded)
    # Its content was known when it was read, but the only entry that had it was rewritten since.
    try:
        (vector,) = embedder.embed_each(embedder.prepare(read_image(loaded.path))[np.newaxis])
    except ImageError as error:
        return error
    return vector


def _name(loaded: _Loaded) -> str:
    return path_to_text(loaded.path)
