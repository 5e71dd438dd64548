"""Building: images become the entries of a gallery, and nothing is embedded twice."""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self

from reidserve.datasets import Crop, path_to_text
from reidserve.embed import BulkEmbedder, Embedding, Prepared, map_ahead, read_image, shrink
from reidserve.errors import DatasetError, ImageError, OutputExistsError, ReidError
from reidserve.index.entry import Entry
from reidserve.index.gallery import check_whole, most_entries
from reidserve.index.opening import filling, writing
from reidserve.index.place import Place, place_text
from reidserve.index.seam import Rows
from reidserve.index.storage.database import Origin
from reidserve.index.storage.rows import Record, Written
from reidserve.index.storage.store import BUILDING, BUILT, ROOT, STATE

COMMIT_ROWS = 256

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        entries: entries in the gallery after it.
        embedded: images that the model was run on.
        reused: new or changed entries whose image was in the gallery already.
        kept: entries that were in the gallery as they are.
        gone: entries of the gallery that are not among the images; removed only where that was asked for.
        removed: entries that were removed.
        generation: the gallery's after it.
        failures: images that were left out, and why.
    """

    entries: int = 0
    embedded: int = 0
    reused: int = 0
    kept: int = 0
    gone: int = 0
    removed: int = 0
    generation: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Item:
    """An image that an entry is to be made of.

    Attributes:
        path: the image file.
        entry: what is said of it.
        content_sha256: what its bytes must be; None where any will do.
    """

    path: Path
    entry: Entry
    content_sha256: bytes | None = None

    @property
    def name(self) -> str:
        """What it is called in a report: the file, or the entry where there is one already."""
        return path_to_text(self.path) if self.content_sha256 is None else self.entry.id


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded(Generic[Prepared]):
    """An image that was read: prepared where it must be embedded, with the reason where it cannot be.

    Attributes:
        item: what it is for.
        content_sha256: of the encoded image.
        prepared: what is embedded; None where the gallery has an entry of that content.
        failure: why it cannot be read.
        thumbnail: it made small; None where none is wanted or there is one.
    """

    item: Item
    content_sha256: bytes = b""
    prepared: Prepared | None = None
    failure: str | None = None
    thumbnail: bytes | None = None


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


def build_gallery(
    crops: Sequence[Crop],
    root: Path,
    out: Place,
    embedder: BulkEmbedder[Any],
    *,
    prune: bool = False,
    force: bool = False,
    thumbnails: bool = False,
    max_memory: int | None = None,
    progress: Progress = no_progress,
) -> BuildReport:
    """Put these crops into the gallery at `out`, under the ids of their paths below `root`; it is made if need be.

    What is new or changed is embedded, and with `prune` what is not among the crops is removed. A build that was cut
    off goes on where it stopped: each COMMIT_ROWS entries are one transaction. With `thumbnails` each entry that has
    none gets one. `max_memory` is the bytes that the gallery's entries may take where it is served.

    Raises:
        DatasetError: two crops have one id.
        OutputExistsError: `out` is something else, or was built from another root and `force` was not given.
        GalleryModelError: `out` holds the embeddings of another model.
        GalleryLockedError: another process is writing to it.
        GalleryFullError: more entries than `max_memory` has room for; what was written before stays.
        GalleryError: it cannot be written.
    """
    items = [Item(crop.path, entry) for crop, entry in zip(crops, _entries(crops, root), strict=True)]
    source = path_to_text(root.absolute())
    with filling(out, origin_of(embedder)) as store:
        check_whole(place_text(out), store)
        built_from = store.note(ROOT)
        if built_from not in (None, source) and not force:
            raise OutputExistsError(
                f"{place_text(out)} holds a gallery built from {built_from}: choose another --out, add single images "
                "with reid-index add, or take it over to this folder with --force"
            )
        store.most_entries = most_entries(store.origin, max_memory)
        store.write_note(ROOT, source)
        store.write_note(STATE, BUILDING)
        report = BuildReport()
        write_all(items, store, store.contents(), embedder, report, progress, thumbnails=thumbnails)
        gone = store.ids() - {item.entry.id for item in items}
        report.gone = len(gone)
        if prune:
            report.removed = store.delete(sorted(gone)).changed
        store.write_note(STATE, BUILT)
        return finished(report, store)


def add_images(
    items: Sequence[Item],
    place: Place,
    embedder: BulkEmbedder[Any],
    *,
    thumbnails: bool = False,
    max_memory: int | None = None,
    progress: Progress = no_progress,
) -> BuildReport:
    """Put single images into a gallery that is there; entries of the same ids are replaced where they differ.

    With `thumbnails` each of them gets one that has none.

    Raises:
        DatasetError: two images have one id.
        GalleryError, GalleryModelError, GalleryLockedError, GalleryFullError: as `build_gallery`.
    """
    seen: set[str] = set()
    for item in items:
        if item.entry.id in seen:
            raise DatasetError(f"two images have the id {item.entry.id}")
        seen.add(item.entry.id)
    with writing(place, identity=embedder.contract.identity, max_memory=max_memory) as store:
        report = BuildReport()
        write_all(items, store, store.known(seen), embedder, report, progress, thumbnails=thumbnails)
        return finished(report, store)


def origin_of(embedder: BulkEmbedder[Any]) -> Origin:
    """What a gallery that a model begins says of it."""
    return Origin(embedder.contract.identity, embedder.engine, embedder.contract.dim)


def finished(report: BuildReport, store: Rows) -> BuildReport:
    """A report with what the gallery holds at its end."""
    report.entries, report.generation = store.count(), store.generation()
    return report


def _entries(crops: Sequence[Crop], root: Path) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for crop in crops:
        name = path_to_text(crop.path.relative_to(root) if crop.path.is_relative_to(root) else crop.path)
        if name in entries:
            raise DatasetError(f"two crops have the path {name}")
        source = path_to_text(crop.path.absolute())
        entries[name] = Entry(name, crop.pid, crop.camid, crop.timestamp, source, crop.attributes)
    return list(entries.values())


def write_all(
    items: Sequence[Item],
    store: Rows,
    known: Mapping[str, tuple[Entry, bytes]],
    embedder: BulkEmbedder[Prepared],
    report: BuildReport,
    progress: Progress,
    *,
    thumbnails: bool = False,
) -> None:
    """Write what is new or changed against the `known` entries of the store, each with its content_sha256.

    An entry that is to have one of the `thumbnails`, and has none, is changed.
    """
    contents = {content for _, content in known.values()}
    shown = {name: known[name][1] for name in store.with_thumbnail() & known.keys()} if thumbnails else None

    def load(item: Item) -> _Loaded[Prepared]:
        return _load(item, contents, embedder, shown)

    done = 0
    with _Writing(store) as writing, closing(map_ahead(load, items, ahead=embedder.ahead)) as loading:
        while group := list(itertools.islice(loading, COMMIT_ROWS)):
            readable = [loaded for loaded in group if loaded.failure is None]
            changed = [one for one in readable if one.thumbnail is not None or not _is_known(one, known)]
            report.failures += [(one.item.name, one.failure) for one in group if one.failure is not None]
            report.kept += len(readable) - len(changed)
            records = _records(changed, writing, contents, embedder, report)
            if records:
                writing.upsert(records)
                contents.update(record.content_sha256 for record in records)
            done += len(group)
            progress(done, len(items))


class _Writing:
    """Writes to a store on a thread of its own, one write after the other, while the next images are embedded."""

    def __init__(self, store: Rows) -> None:
        self._store = store
        self._reader = store.another()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: Future[Written] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # A write that has begun ends, whatever happens.
        self._thread.shutdown()
        self._reader.close()
        if error is None:
            self.wait()

    def upsert(self, records: Sequence[Record]) -> None:
        """Begin a write; what was wrong with the one before is raised here."""
        self.wait()
        self._pending = self._thread.submit(self._store.upsert, records)

    def find_vector(self, content_sha256: bytes) -> Embedding | None:
        """The embedding of that content, if it is written."""
        return self._reader.find_vector(content_sha256)

    def wait(self) -> None:
        """Wait for the write that was begun; what was wrong with it is raised here."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _is_known(loaded: _Loaded[Prepared], known: Mapping[str, tuple[Entry, bytes]]) -> bool:
    return known.get(loaded.item.entry.id) == (loaded.item.entry, loaded.content_sha256)


def _load(
    item: Item, contents: Set[bytes], embedder: BulkEmbedder[Prepared], shown: Mapping[str, bytes] | None
) -> _Loaded[Prepared]:
    """Read an image; `shown` has the content of each entry with a thumbnail, by id, where there are to be some."""
    try:
        data = read_image(item.path)
        content = hashlib.sha256(data).digest()
        if item.content_sha256 not in (None, content):
            return _Loaded(item, failure=f"{path_to_text(item.path)} is no longer the image that it was made of")
        thumbnail = None if shown is None or shown.get(item.entry.id) == content else shrink(data)
        prepared = None if content in contents else embedder.prepare(data)
        return _Loaded(item, content, prepared, thumbnail=thumbnail)
    except OSError as error:
        return _Loaded(item, failure=_reason(item, error.strerror or str(error)))
    except ImageError as error:
        return _Loaded(item, failure=_reason(item, str(error)))


def _reason(item: Item, fault: str) -> str:
    return fault if item.content_sha256 is None else f"{path_to_text(item.path)}: {fault}"


def _records(
    changed: Sequence[_Loaded[Prepared]],
    writing: _Writing,
    contents: Set[bytes],
    embedder: BulkEmbedder[Prepared],
    report: BuildReport,
) -> list[Record]:
    """The records of images that are new or changed, in their order; one that the model fails on is reported."""
    answers: dict[bytes, Embedding | ReidError] = {}
    fresh: dict[bytes, Prepared] = {}
    for loaded in changed:
        content = loaded.content_sha256
        if content in answers or content in fresh:
            continue
        if content in contents:
            writing.wait()
        vector = writing.find_vector(content)
        if vector is not None:
            answers[content] = vector
            continue
        prepared = _prepared(loaded, embedder)
        if isinstance(prepared, ReidError):
            answers[content] = prepared
        else:
            fresh[content] = prepared
    if fresh:
        answers |= zip(fresh, embedder.embed_each(list(fresh.values())), strict=True)
    records = []
    for loaded in changed:
        vector_or_error = answers[loaded.content_sha256]
        if isinstance(vector_or_error, ReidError):
            report.failures.append((loaded.item.name, _reason(loaded.item, str(vector_or_error))))
        else:
            records.append(Record(loaded.item.entry, loaded.content_sha256, vector_or_error, loaded.thumbnail))
    embedded = sum(not isinstance(answers[content], ReidError) for content in fresh)
    report.embedded += embedded
    report.reused += len(records) - embedded
    return records


def _prepared(loaded: _Loaded[Prepared], embedder: BulkEmbedder[Prepared]) -> Prepared | ReidError:
    if loaded.prepared is not None:
        return loaded.prepared
    # Its content was known when it was read, but the only entry that had it was rewritten since.
    try:
        data = read_image(loaded.item.path)
        if hashlib.sha256(data).digest() != loaded.content_sha256:
            return ImageError("it changed while it was read")
        return embedder.prepare(data)
    except OSError as error:
        return ImageError(error.strerror or str(error))
    except ImageError as error:
        return error
