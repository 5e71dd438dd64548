"""Exchange: a gallery as safetensors and JSON lines, for other programs. Of the index, nothing else knows safetensors.

Two files: `embeddings.safetensors` with one float32 tensor `embeddings` (N, dim) and the metadata format, identity,
engine, dim and generation; `entries.jsonl` with one object a line, in the order of the rows: id, pid, camid,
timestamp (microseconds since 1970 UTC), source, attributes, content_sha256 (hexadecimal).
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reidserve.datasets import Attribute, path_to_text, read_timestamp
from reidserve.embed import UNIT_TOLERANCE, Embedding, Embeddings
from reidserve.errors import DatasetError, EntryError, GalleryError, GalleryFullError, GalleryModelError
from reidserve.index.build import Progress, no_progress
from reidserve.index.entry import Entry
from reidserve.index.filters import Filter
from reidserve.index.gallery import check_origin, check_whole, most_entries
from reidserve.index.opening import check_own
from reidserve.index.storage.database import Origin, holds_gallery
from reidserve.index.storage.folders import new_folder
from reidserve.index.storage.lock import writer_lock
from reidserve.index.storage.rows import Damage, Record, Stored
from reidserve.index.storage.store import BUILDING, BUILT, STATE, Store, create_store, open_store

EMBEDDINGS_FILE, ENTRIES_FILE = "embeddings.safetensors", "entries.jsonl"
IMPORT_ROWS = 512

_TENSOR = "embeddings"
_FORMAT = "reidserve.gallery/1"
_MAX_LINE = 4 * 2**20
_IDENTITY = re.compile("[0-9a-f]{64}")


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line of entries.jsonl."""

    id: str
    pid: str | None = None
    camid: str | None = None
    timestamp: int | str | None = None
    source: str | None = None
    attributes: dict[str, Attribute] = {}
    content_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote.

    Attributes:
        entries: how many.
        generation: the gallery's, of which they are.
        damaged: rows that were left out because they cannot be believed.
    """

    entries: int
    generation: int
    damaged: list[Damage]


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        entries: in the gallery after it.
        written: entries that are new or changed.
        kept: entries that were in the gallery as they are.
        normalised: vectors that were brought to unit length.
        generation: the gallery's after it.
        engine: what the vectors were embedded by, as the file says.
    """

    entries: int
    written: int
    kept: int
    normalised: int
    generation: int
    engine: str


def export_gallery(
    folder: Path, out: Path, *, where: Filter | None = None, progress: Progress = no_progress
) -> Exported:
    """Write a gallery's entries that `where` accepts, as of one generation, into the new folder `out`.

    Damaged rows are left out. Memory does not grow with the gallery.

    Raises:
        OutputExistsError: there is something at `out`.
        GalleryError: the gallery cannot be read, or `out` not written; nothing is left there.
    """
    with closing(open_store(folder)) as store:
        check_whole(path_to_text(folder), store)
        try:
            with new_folder(out) as partial:
                return _write_files(store, partial, where, progress)
        except (OSError, SafetensorError) as error:
            raise GalleryError(f"{path_to_text(folder)} cannot be exported to {path_to_text(out)}: {error}") from error


def _write_files(store: Store, folder: Path, where: Filter | None, progress: Progress) -> Exported:
    rows, embeddings = folder / "rows", folder / EMBEDDINGS_FILE
    exported = _write_rows(store, rows, folder / ENTRIES_FILE, where, progress)
    dim = store.origin.dim
    vectors: Embeddings = np.empty((0, dim), np.float32)
    if exported.entries:
        vectors = np.memmap(rows, "<f4", "r", shape=(exported.entries, dim))
    save_file({_TENSOR: vectors}, embeddings, metadata=_metadata(store.origin, exported.generation))
    # The library writes it for its owner alone.
    embeddings.chmod((folder / ENTRIES_FILE).stat().st_mode)
    rows.unlink()
    return exported


def _write_rows(store: Store, rows: Path, entries: Path, where: Filter | None, progress: Progress) -> Exported:
    """Write the vectors bare, and the lines."""
    written, damaged = 0, []
    total = store.count()
    with rows.open("wb") as vectors, entries.open("wb") as lines, closing(store.scan()) as scan:
        found = next(scan, None)
        generation = store.generation()  # of the transaction that the scan has opened
        seen = 0
        while found is not None:
            if isinstance(found, Damage):
                damaged.append(found)
            elif where is None or where.accepts(found.entry):
                vectors.write(found.vector.astype("<f4").tobytes())
                lines.write(_line(found))
                written += 1
            seen += 1
            if seen % IMPORT_ROWS == 0:
                progress(seen, total)
            found = next(scan, None)
    progress(total, total)
    return Exported(written, generation, damaged)


def _line(stored: Stored) -> bytes:
    entry = stored.entry
    facts = {
        "id": entry.id,
        "pid": entry.pid,
        "camid": entry.camid,
        "timestamp": entry.timestamp,
        "source": entry.source,
        "attributes": dict(entry.attributes),
        "content_sha256": stored.content_sha256.hex(),
    }
    return msgspec.json.encode(facts) + b"\n"


def _metadata(origin: Origin, generation: int) -> dict[str, str]:
    return {
        "format": _FORMAT,
        "identity": origin.identity,
        "engine": origin.engine,
        "dim": str(origin.dim),
        "generation": str(generation),
    }


def import_gallery(
    source: Path,
    folder: Path,
    *,
    identity: str | None = None,
    normalise: bool = False,
    max_memory: int | None = None,
    progress: Progress = no_progress,
) -> Imported:
    """Write what an exchange folder, or a .safetensors file and the .jsonl file of its name, says into a gallery.

    All of it is checked before any is written; the gallery is made if need be. IMPORT_ROWS entries are one transaction,
    and what is there already with equal content and fields stays: an import that was cut off is made again. `identity`
    is the model's for files that do not say theirs.

    Raises:
        DatasetError: the files are wrong (a wrong line is named by its number), or the model is not known.
        OutputExistsError: `folder` is something else than a gallery.
        GalleryModelError: the vectors are another model's than the gallery's, or than `identity`.
        GalleryLockedError: another process is writing to it.
        GalleryFullError: there is no room for all in `max_memory`.
        GalleryError: it cannot be written.
    """
    check_own(folder)
    with _opened(source, normalise=normalise) as material:
        origin = material.origin(identity)
        if holds_gallery(folder):
            with closing(open_store(folder)) as store:
                _check_fits(store, origin)
        elif (most := most_entries(origin, max_memory)) is not None and material.count > most:
            raise GalleryFullError(
                f"{path_to_text(source)} has {material.count} entries, {most} fit in the memory that was allowed: "
                "raise --max-memory"
            )
        material.check(progress)
        with writer_lock(folder), closing(_open_or_create(folder, origin)) as store:
            store.most_entries = most_entries(origin, max_memory)
            written = done = 0
            for records in material.batches():
                written += store.upsert(records).changed
                done += len(records)
                progress(done, material.count)
            if store.note(STATE) == BUILDING:
                store.write_note(STATE, BUILT)
            return Imported(
                store.count(), written, done - written, material.normalised, store.generation(), origin.engine
            )


def _open_or_create(folder: Path, origin: Origin) -> Store:
    with ExitStack() as on_failure:
        begun = holds_gallery(folder)
        store = open_store(folder, write=True) if begun else create_store(folder, origin)
        on_failure.callback(store.close)
        _check_fits(store, origin)
        if not begun:
            store.write_note(STATE, BUILDING)
        on_failure.pop_all()
        return store


def _check_fits(store: Store, origin: Origin) -> None:
    check_whole(path_to_text(store.folder), store)
    check_origin(store.folder, store.origin, identity=origin.identity)
    if store.origin.dim != origin.dim:
        raise DatasetError(
            f"{path_to_text(store.folder)} has embeddings of {store.origin.dim} dimensions, got {origin.dim}"
        )


@contextmanager
def _opened(source: Path, *, normalise: bool) -> Iterator["_Material"]:
    """The two files of an exchange, open."""
    if source.is_dir():
        vectors, lines = source / EMBEDDINGS_FILE, source / ENTRIES_FILE
    elif source.suffix == ".safetensors":
        vectors, lines = source, source.with_suffix(".jsonl")
    else:
        raise DatasetError(
            f"{path_to_text(source)}: expected a folder with {EMBEDDINGS_FILE} and {ENTRIES_FILE}, or a .safetensors "
            "file beside a .jsonl file of its name"
        )
    for path in (vectors, lines):
        if not path.is_file():
            raise DatasetError(f"{path_to_text(path)} is not there")
    with ExitStack() as opened:
        try:
            file = opened.enter_context(safe_open(vectors, framework="np"))
            tensor = file.get_slice(_TENSOR)
        except (SafetensorError, OSError, ValueError) as error:
            raise DatasetError(
                f"{path_to_text(vectors)} is no whole safetensors file with a tensor {_TENSOR}: {error}"
            ) from error
        yield _Material(vectors, lines, tensor, file.metadata() or {}, normalise=normalise)


class _Material:
    """What an exchange says, read in batches.

    Attributes:
        count: of entries.
        normalised: how many vectors of the last pass were brought to unit length.
    """

    def __init__(
        self,
        vectors: Path,
        lines: Path,
        tensor: Any,  # noqa: ANN401  # safetensors names no type for it
        metadata: Mapping[str, str],
        *,
        normalise: bool,
    ) -> None:
        name, shape = path_to_text(vectors), tensor.get_shape()
        if tensor.get_dtype() != "F32" or len(shape) != 2 or not shape[1]:
            raise DatasetError(f"{name}: expected a float32 tensor (N, dim), got {tensor.get_dtype()} {shape}")
        said = metadata.get("format", "")
        if said.startswith("reidserve.") and said != _FORMAT:
            raise DatasetError(f"{name} has the format {said}, this reidserve reads {_FORMAT}")
        self.count, self._dim = shape
        self.normalised = 0
        self._vectors, self._lines = name, lines
        self._tensor, self._metadata, self._normalise = tensor, metadata, normalise

    def origin(self, identity: str | None) -> Origin:
        """What the vectors were embedded by.

        Raises:
            DatasetError: nobody says it.
            GalleryModelError: the file says another identity.
        """
        said = self._metadata.get("identity", identity)
        if said is None or not _IDENTITY.fullmatch(said):
            raise DatasetError(
                f"{self._vectors} does not say which model its vectors are of (metadata identity, 64 hexadecimal "
                f"digits; got {said and said[:80]!r}): name it with --model"
            )
        if identity not in (None, said):
            raise GalleryModelError(
                f"{self._vectors} holds embeddings of model {said[:12]}, this is model {str(identity)[:12]}"
            )
        return Origin(said, self._metadata.get("engine", "unknown")[:200], self._dim)

    def check(self, progress: Progress) -> None:
        """Read everything once.

        Raises:
            DatasetError: something is wrong.
        """
        seen: dict[str, int] = {}
        for records in self.batches():
            for record in records:
                number = len(seen) + 1
                first = seen.setdefault(record.entry.id, number)
                if first != number:
                    raise self._wrong(number, f"the id {record.entry.id!r} stands on line {first} already")
            progress(len(seen), self.count)

    def batches(self) -> Iterator[list[Record]]:
        """The records, at most IMPORT_ROWS at a time.

        Raises:
            DatasetError: a line is wrong, or there are more or fewer than vectors.
        """
        self.normalised = 0
        with self._lines.open("rb") as lines:
            for start in range(0, self.count, IMPORT_ROWS):
                vectors = self._tensor[start : min(start + IMPORT_ROWS, self.count)]
                yield [
                    self._record(number, lines.readline(_MAX_LINE + 1), vector)
                    for number, vector in enumerate(vectors, start=start + 1)
                ]
            if lines.read(1):
                raise self._wrong(self.count + 1, f"{self._vectors} has {self.count} vectors, this is one line more")

    def _record(self, number: int, line: bytes, vector: Embedding) -> Record:
        if not line:
            raise self._wrong(number, f"the file ends, {self._vectors} has {self.count} vectors")
        if len(line) > _MAX_LINE:
            raise self._wrong(number, f"it is longer than {_MAX_LINE} bytes")
        try:
            said = msgspec.json.decode(line, type=_Line)
            vector = self._unit(vector)
            content = hashlib.sha256(vector.tobytes()).digest()
            if said.content_sha256 is not None:
                content = bytes.fromhex(said.content_sha256)
            if len(content) != hashlib.sha256().digest_size:
                raise DatasetError(f"content_sha256 must be 64 hexadecimal digits, got {said.content_sha256!r}")
            timestamp = read_timestamp(said.timestamp) if isinstance(said.timestamp, str) else said.timestamp
            entry = Entry(said.id, said.pid, said.camid, timestamp, said.source, said.attributes)
        except (msgspec.MsgspecError, DatasetError, EntryError, ValueError) as error:
            raise self._wrong(number, str(error)) from error
        return Record(entry, content, vector)

    def _unit(self, vector: Embedding) -> Embedding:
        exact = vector.astype(np.float64)
        length = float(np.sqrt(np.vecdot(exact, exact)))
        # Written so that NaN fails.
        if abs(length - 1) <= UNIT_TOLERANCE:
            return vector
        if not self._normalise:
            raise DatasetError(f"its vector has length {length:g}, expected 1 (--normalise divides by the length)")
        if not (0 < length < np.inf):
            raise DatasetError(f"its vector has length {length:g}, which cannot be brought to 1")
        self.normalised += 1
        return (exact / length).astype(np.float32)

    def _wrong(self, number: int, fault: str) -> DatasetError:
        return DatasetError(f"{path_to_text(self._lines)}, line {number}: {fault}")
