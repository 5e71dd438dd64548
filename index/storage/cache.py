"""Derived codes of a gallery on disk, in the folder `cache` beside its database.

    cache/rabitq.codes: one line of JSON (`_Header`), then rows int64 (n,), crc32s uint32 (n,), centre float32 (dim,)
    and codes uint8 (n, code_size), little-endian, one after the other

A cache is never needed and never trusted: what is missing, torn, of another version or in any other doubt is not
used, and made anew by the caller. The sha256 covers header and body, sizes are held against the file's before anything
is allocated, and nothing in it is ever executed or handed to a deserialiser.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import path_to_text
from reidserve.embed import Embedding
from reidserve.index.storage.folders import sync

CACHE = "cache"
FORMAT = 1

_HEADER_BYTES = 4096
_SUFFIX = ".codes"
_TEMPORARY = ".tmp"
_number = itertools.count()

_log = logging.getLogger(__name__)

Checksums = NDArray[np.uint32]
Rows = NDArray[np.int64]
Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class CachedCodes:
    """Codes of a gallery's rows, and what they are relative to.

    Attributes:
        rows: int64 (n,), ascending.
        checksums: uint32 (n,), the store's crc32 of each row: another gallery's, or another content's, differ.
        codes: uint8 (n, code_size).
        centre: float32 (dim,), of the frame.
        seed: of the frame.
    """

    rows: Rows
    checksums: Checksums
    codes: Codes
    centre: Embedding
    seed: int

    def pick(self, rows: Rows, checksums: Checksums) -> tuple[NDArray[np.bool_], Codes]:
        """Which of these rows (m,) are held with these checksums (m,), bool (m,), and the codes of those that are."""
        places = np.searchsorted(self.rows, rows)
        places[places == len(self.rows)] = 0
        if not len(self.rows):
            return np.zeros(len(rows), np.bool_), self.codes
        held = (self.rows[places] == rows) & (self.checksums[places] == checksums)
        return held, self.codes[places[held]]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    kind: str
    version: str
    dim: Annotated[int, msgspec.Meta(ge=1)]
    seed: int
    count: Annotated[int, msgspec.Meta(ge=0)]
    code_size: Annotated[int, msgspec.Meta(ge=1)]
    sha256: str

    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"

    def body_bytes(self) -> int:
        return self.count * (8 + 4 + self.code_size) + 4 * self.dim


class _DoubtError(Exception):
    """Why a cache is not used."""


def load_codes(folder: Path, *, kind: str, version: str, dim: int, code_size: int) -> CachedCodes | None:
    """The codes that were saved for the gallery in `folder` by the same `version`, None if there are none to trust."""
    path = _path(folder, kind)
    try:
        with contextlib.closing(_open(path)) as file:
            return _read(file, _Header(FORMAT, kind, version, dim, 0, 0, code_size, ""))
    except FileNotFoundError:
        return None
    except (OSError, MemoryError, _DoubtError) as error:
        _log.warning("%s is not used, and is made anew: %s", path_to_text(path), error)
        return None


def save_codes(folder: Path, cached: CachedCodes, *, kind: str, version: str) -> bool:
    """Save codes for the gallery in `folder`, in place of what was; returns whether that could be done."""
    path = _path(folder, kind)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{next(_number)}{_TEMPORARY}")
    try:
        path.parent.mkdir(exist_ok=True)
        _remove_stale(path.parent)
        try:
            _write(temporary, cached, kind=kind, version=version)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        _log.warning("%s cannot be saved, and is made anew at the next start: %s", path_to_text(path), error)
        return False
    return True


def has_cache(folder: Path) -> bool:
    """Whether the gallery in `folder` has a cache."""
    return (folder / CACHE).exists()


def remove_cache(folder: Path) -> None:
    """Remove all codes of the gallery in `folder`; whoever opens it makes them anew."""
    shutil.rmtree(folder / CACHE, ignore_errors=True)


def cache_faults(folder: Path) -> list[str]:
    """Which files of a gallery's cache are not whole, and why; whatever version they are of."""
    faults = []
    for path in sorted((folder / CACHE).glob(f"*{_SUFFIX}")):
        try:
            with contextlib.closing(_open(path)) as file:
                header = _header(file.readline(_HEADER_BYTES))
                file.seek(0)
                _read(file, header)
        except FileNotFoundError:  # made anew by another process meanwhile
            continue
        except (OSError, MemoryError, _DoubtError) as error:
            faults.append(f"{path_to_text(path)}: {error}")
    return faults


def _path(folder: Path, kind: str) -> Path:
    return folder / CACHE / f"{kind}{_SUFFIX}"


def _open(path: Path) -> BinaryIO:
    # Without waiting: what lies there may be a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise _DoubtError("it is no file")
    return file


def _header(line: bytes) -> _Header:
    try:
        header = msgspec.json.decode(line, type=_Header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _DoubtError(f"its header cannot be read ({error})") from error
    if header.line() != line:
        raise _DoubtError("its header was not written by this program")
    return header


def _read(file: BinaryIO, wanted: _Header) -> CachedCodes:
    line = file.readline(_HEADER_BYTES)
    header = _header(line)
    expected = msgspec.structs.replace(wanted, seed=header.seed, count=header.count, sha256=header.sha256)
    if header != expected:
        raise _DoubtError(f"expected {_said(expected)}, got {_said(header)}")
    size = os.fstat(file.fileno()).st_size
    if size != len(line) + header.body_bytes():
        raise _DoubtError(f"expected {len(line) + header.body_bytes()} bytes, got {size}")
    rows, checksums = np.empty(header.count, "<i8"), np.empty(header.count, "<u4")
    centre, codes = np.empty(header.dim, "<f4"), np.empty((header.count, header.code_size), np.uint8)
    body = (rows, checksums, centre, codes)
    for part in body:
        if file.readinto(_raw(part)) != part.nbytes:  # type: ignore[attr-defined]
            raise _DoubtError("it ended while it was read")
    if _digest(header, body) != header.sha256:
        raise _DoubtError("it fails its sha256")
    if (np.diff(rows) <= 0).any() or not np.isfinite(centre).all():
        raise _DoubtError("its rows do not ascend, or its centre is not finite")
    return CachedCodes(
        rows.astype(np.int64, copy=False),
        checksums.astype(np.uint32, copy=False),
        codes,
        centre.astype(np.float32, copy=False),
        header.seed,
    )


def _write(path: Path, cached: CachedCodes, *, kind: str, version: str) -> None:
    count, code_size = cached.codes.shape
    body = (
        np.ascontiguousarray(cached.rows, "<i8"),
        np.ascontiguousarray(cached.checksums, "<u4"),
        np.ascontiguousarray(cached.centre, "<f4"),
        np.ascontiguousarray(cached.codes),
    )
    if not len(body[0]) == len(body[1]) == count:
        raise ValueError(f"expected {count} rows and checksums, got {len(body[0])} and {len(body[1])}")
    header = _Header(FORMAT, kind, version, len(body[2]), cached.seed, count, code_size, "")
    header = msgspec.structs.replace(header, sha256=_digest(header, body))
    with path.open("xb") as file:
        file.write(header.line())
        for part in body:
            file.write(_raw(part))
        file.flush()
        os.fsync(file.fileno())


def _digest(header: _Header, body: Sequence[NDArray[np.generic]]) -> str:
    digest = hashlib.sha256(msgspec.structs.replace(header, sha256="").line())
    for part in body:
        digest.update(_raw(part))
    return digest.hexdigest()


def _raw(part: NDArray[np.generic]) -> memoryview:
    return part.reshape(-1).view(np.uint8).data


def _said(header: _Header) -> str:
    what = f"{header.kind} {header.version}, {header.dim} dimensions, codes of {header.code_size} bytes"
    return f"format {header.format}, {what}"


def _remove_stale(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for path in folder.glob(f"*{_TEMPORARY}"):
        owner = path.name.split(".")[-3:-2]
        if owner and owner[0].isdecimal() and not _alive(int(owner[0])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
