"""Coverage: which index proposes the rows of a gallery's full blocks, kept in step with them as they fill."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.errors import DeviceError
from reidserve.index.search.blocks import Block
from reidserve.index.search.nominated import Covered, Nominator, cover
from reidserve.index.search.ranking import Rows
from reidserve.index.storage.cache import CachedCodes, has_cache, load_codes, save_codes

if TYPE_CHECKING:
    from reidserve.index.search.faiss_cpu import FlatFp16, Frame, RaBitQ
    from reidserve.index.search.faiss_gpu import GpuFlatFp16

IndexKind = Literal["auto", "flat", "flat-fp16", "rabitq"]
IndexDevice = Literal["cpu", "gpu"]

AUTO_BYTES = 64 * 2**20
"""From so many bytes of embeddings on, proposals cost less than products: 8,192 rows of 2048 dimensions, 32,768 of 512
(they are even at about 16 MiB; below this the gain is under a millisecond)."""

SAVED_SHARE = 0.25
"""Codes are saved whenever so large a part of them is new, and at the end."""

_TOGETHER = 8
_STALE = 2
_NO_ROWS: Rows = np.empty(0, np.int64)


class Coverage:
    """Covers the full blocks of one gallery with one kind of index; used by one thread at a time.

    Raises:
        DeviceError: the device was not obtained, or the kind does not run there.
    """

    def __init__(self, folder: Path, dim: int, *, kind: IndexKind, device: IndexDevice) -> None:
        self._new_index = partial(_index, folder, dim, kind=kind, device=device)
        self._index = self._new_index()
        self._least = AUTO_BYTES // (4 * dim) if kind == "auto" else 0
        self._covered: Covered | None = None

    def of(self, blocks: Sequence[Block]) -> Covered | None:
        """What covers the first of these blocks, None where nothing does."""
        nominator = self._index.nominator
        first = [] if nominator is None else [block for block in blocks if block.rows[-1] <= nominator.rows[-1]]
        if nominator is None or not first:
            return None
        if self._covered is not None and _same_rows(self._covered, nominator, first):
            self._covered = replace(self._covered, blocks=first)
        else:
            self._covered = cover(nominator, first)
        return self._covered

    def extend(self, sealed: Sequence[Block]) -> bool:
        """Cover full blocks that are new; returns whether that changed anything."""
        self._index.blocks = sealed
        rows = sum(len(block.rows) for block in sealed)
        if rows < self._least:
            return False
        known = self._index.nominator
        new = _beyond(known, sealed)
        # Most of what it would propose is deleted; or rows were cut into other blocks, by a reader that read all again
        # or where blocks were packed, and one block has rows that are covered and rows that are not.
        if known is not None and (len(known.rows) > _STALE * rows or (new and new[0].rows[0] <= known.rows[-1])):
            self._index.close()
            self._index = self._new_index()
            self._index.blocks = sealed
            new = list(sealed)
        for start in range(0, len(new), _TOGETHER):
            self._index.extend(new[start : start + _TOGETHER])
        return self._index.nominator is not known

    def close(self) -> None:
        """Keep on disk what was computed since the last time, or is there no more."""
        self._index.close()


class _Index(Protocol):
    """One kind of index over full blocks.

    Attributes:
        blocks: the full blocks as they stand: what is kept on disk is of their live rows.
    """

    blocks: Sequence[Block]

    @property
    def nominator(self) -> Nominator | None:
        """What proposes rows of the blocks that were given so far."""

    def extend(self, blocks: Sequence[Block]) -> None:
        """Cover more blocks, which follow those that are covered."""

    def close(self) -> None:
        """Keep what was computed."""


class _NoIndex:
    """Rows are multiplied, all of them."""

    nominator = None
    blocks: Sequence[Block] = ()

    def extend(self, blocks: Sequence[Block]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to keep."""


class _RaBitQIndex:
    """Codes of one bit per dimension, which are kept in the gallery's cache."""

    blocks: Sequence[Block] = ()

    def __init__(self, folder: Path, dim: int) -> None:
        self.nominator: RaBitQ | None = None
        self._folder = folder
        self._dim = dim
        self._frame: Frame | None = None
        self._kept: CachedCodes | None = None
        self._crc32s: list[NDArray[np.uint32]] = []
        self._unsaved = 0

    def extend(self, blocks: Sequence[Block]) -> None:
        from reidserve.index.search.faiss_cpu import RaBitQ, encode

        frame = self._frame = self._frame or self._first_frame(blocks[0])
        parts, unsaved = [], 0
        for block in blocks:
            codes = np.empty((len(block.rows), frame.code_size), np.uint8)
            held = np.zeros(len(block.rows), np.bool_)
            if self._kept is not None:
                held, kept = self._kept.pick(block.rows, block.crc32s)
                codes[held] = kept
            codes[~held] = encode(frame, block.vectors[~held])
            unsaved += int((~held).sum())
            parts.append(codes)
        rows, codes = np.concatenate([block.rows for block in blocks]), np.concatenate(parts)
        self.nominator = RaBitQ(frame, rows, codes) if self.nominator is None else self.nominator.extended(rows, codes)
        # Only now: where memory ran out before, these blocks come again.
        self._crc32s += [block.crc32s for block in blocks]
        self._unsaved += unsaved
        if self._unsaved >= SAVED_SHARE * len(self.nominator.rows):
            self._save()

    def close(self) -> None:
        if self._unsaved or not has_cache(self._folder):
            self._save()

    def _first_frame(self, block: Block) -> "Frame":
        from reidserve.index.search.faiss_cpu import VERSION, Frame, fit_frame

        frame = fit_frame(block.vectors)
        kept = load_codes(self._folder, kind="rabitq", version=VERSION, dim=self._dim, code_size=frame.code_size)
        if kept is None or not kept.pick(block.rows, block.crc32s)[0].any():
            # Another gallery's centre would cost recall in this one, and be saved with its codes.
            return frame
        self._kept = kept
        return Frame(kept.centre, kept.seed)

    def _save(self) -> None:
        from reidserve.index.search.faiss_cpu import VERSION

        if self.nominator is None:
            return
        frame = self.nominator.frame
        # A code is a likeness too: of what was removed none may come back to the disk.
        live = np.isin(
            self.nominator.rows, np.concatenate([_NO_ROWS, *(block.rows[block.live] for block in self.blocks)])
        )
        rows, crc32s, codes = self.nominator.rows, np.concatenate(self._crc32s), self.nominator.codes
        kept = CachedCodes(rows[live], crc32s[live], codes[live], frame.centre, frame.seed)
        # Where they cannot be saved they are made anew next time, and that has been said.
        save_codes(self._folder, kept, kind="rabitq", version=VERSION)
        self._unsaved = 0


class _HalvesIndex:
    """Embeddings in half precision on the CPU."""

    blocks: Sequence[Block] = ()

    def __init__(self) -> None:
        self.nominator: FlatFp16 | None = None

    def extend(self, blocks: Sequence[Block]) -> None:
        from reidserve.index.search.faiss_cpu import FlatFp16

        rows, vectors = _together(blocks)
        known = self.nominator
        self.nominator = FlatFp16(rows, vectors) if known is None else known.extended(rows, vectors)

    def close(self) -> None:
        """Nothing is kept: halves are made faster than read."""


class _GpuIndex:
    """Embeddings in half precision on a GPU."""

    blocks: Sequence[Block] = ()

    def __init__(self) -> None:
        from reidserve.index.search.faiss_gpu import check_gpu

        check_gpu()
        self.nominator: GpuFlatFp16 | None = None

    def extend(self, blocks: Sequence[Block]) -> None:
        from reidserve.index.search.faiss_gpu import gpu_flat_fp16

        rows, vectors = _together(blocks)
        known = self.nominator
        self.nominator = gpu_flat_fp16(rows, vectors) if known is None else known.extended(rows, vectors)

    def close(self) -> None:
        """Nothing is kept."""


def _together(blocks: Sequence[Block]) -> tuple[Rows, Embeddings]:
    return np.concatenate([block.rows for block in blocks]), np.concatenate([block.vectors for block in blocks])


def _index(folder: Path, dim: int, *, kind: IndexKind, device: IndexDevice) -> _Index:
    match kind, device:
        case "flat", "cpu":
            return _NoIndex()
        case (("auto" | "rabitq"), "cpu"):
            return _RaBitQIndex(folder, dim)
        case "flat-fp16", "cpu":
            return _HalvesIndex()
        case (("auto" | "flat-fp16"), "gpu"):
            return _GpuIndex()
    raise DeviceError(f"an index of kind {kind} runs on the CPU only, got device {device!r}: take flat-fp16 on a GPU")


def _beyond(nominator: Nominator | None, blocks: Sequence[Block]) -> list[Block]:
    """The blocks with rows that follow all that are covered."""
    return [block for block in blocks if nominator is None or block.rows[-1] > nominator.rows[-1]]


def _same_rows(covered: Covered, nominator: Nominator, blocks: Sequence[Block]) -> bool:
    return (
        covered.nominator is nominator
        and len(covered.blocks) == len(blocks)
        and all(old.rows is new.rows for old, new in zip(covered.blocks, blocks, strict=True))
    )
