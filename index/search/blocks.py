"""Blocks: the embeddings of a gallery in memory, in runs that never change once they are full."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.index.entry import Entry
from reidserve.index.search.columns import Codes, Columns
from reidserve.index.search.ranking import Rows
from reidserve.index.storage.rows import PIECE_ROWS, Changes, Piece

BLOCK_ROWS = PIECE_ROWS

ENTRY_BYTES = 1000
"""What an entry takes in memory besides its embedding: its texts as Python objects and its place in the columns
(measured by benchmarks/gallery.py)."""


STALE_ROWS = 65_536
"""Texts of deleted entries stay in the codes of columns: after so many rows, and four times those that live, further
blocks begin new codes, and the old ones go with their blocks."""


def entry_bytes(dim: int) -> int:
    """What an entry of a gallery with that many dimensions takes in memory, bytes, quantised codes included."""
    return 4 * dim + 2 * (dim // 8 + 10) + ENTRY_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A run of rows; whoever holds one sees the same for ever.

    Attributes:
        rows: int64 (n,), ascending row numbers.
        vectors: float32 (n, dim), rows of unit length.
        crc32s: uint32 (n,), the store's checksum of each row.
        columns: what is said of the rows, of which this block sees the first n.
        live: bool (n,), False where the entry has been deleted.
        count: how many are live.
    """

    rows: Rows
    vectors: Embeddings
    crc32s: NDArray[np.uint32]
    columns: Columns
    live: NDArray[np.bool_]
    count: int

    @property
    def entries(self) -> Sequence[Entry]:
        """The entry of each row; only the first n are this block's."""
        return self.columns.entries

    def without(self, rows: Rows) -> "Block":
        """The same block after ascending `rows` were deleted."""
        low, high = np.searchsorted(rows, (self.rows[0], self.rows[-1] + 1))
        places = np.searchsorted(self.rows, rows[low:high])
        gone = places[(places < len(self.rows)) & (self.rows[np.minimum(places, len(self.rows) - 1)] == rows[low:high])]
        if not len(gone):
            return self
        live = self.live.copy()
        live[gone] = False
        return replace(self, live=live, count=int(live.sum()))


class Growth:
    """The blocks of a gallery as it grows: the only thing about them that changes, by one thread at a time.

    Full blocks are shared by all snapshots. The last block's arrays have room for BLOCK_ROWS: new rows are written
    behind those that a snapshot sees, so growing copies nothing.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._codes = Codes()
        self._coded = 0
        self._sealed: list[Block] = []
        self._tail = _Tail(dim, self._codes)

    @property
    def sealed(self) -> Sequence[Block]:
        """The full blocks."""
        return tuple(self._sealed)

    def apply(self, changes: Changes) -> tuple[Block, ...]:
        """The blocks after changes."""
        if changes.anew:
            self._codes, self._coded = Codes(), 0
            self._sealed, self._tail = [], _Tail(self._dim, self._codes)
        if len(changes.deleted):
            self._sealed = _merged([block.without(changes.deleted) for block in self._sealed], self._dim, self._codes)
            self._tail.delete(changes.deleted)
        for piece in changes.pieces:
            self._append(piece)
        tail = self._tail.block()
        return (*self._sealed, *((tail,) if tail is not None else ()))

    def _append(self, piece: Piece) -> None:
        self._coded += len(piece.rows)
        if len(piece.rows) == BLOCK_ROWS and not self._tail.used:
            self._forget_codes()
            self._sealed.append(_block(piece, self._codes))
            return
        start = 0
        while start < len(piece.rows):
            start += self._tail.append(piece, start)
            if self._tail.used == BLOCK_ROWS:
                block = self._tail.block()
                if block is not None:
                    self._sealed.append(block)
                self._forget_codes()
                self._tail = _Tail(self._dim, self._codes)

    def _forget_codes(self) -> None:
        if self._coded > STALE_ROWS + 4 * sum(block.count for block in self._sealed):
            self._codes, self._coded = Codes(), 0


class _Tail:
    """The block that still grows."""

    def __init__(self, dim: int, codes: Codes) -> None:
        self.used = 0
        self._rows = np.empty(BLOCK_ROWS, np.int64)
        self._vectors = np.empty((BLOCK_ROWS, dim), np.float32)
        self._crc32s = np.empty(BLOCK_ROWS, np.uint32)
        self._live = np.empty(BLOCK_ROWS, np.bool_)
        self._columns = Columns(codes, BLOCK_ROWS)

    def append(self, piece: Piece, start: int) -> int:
        """Take as many rows of a piece from `start` on as there is room for; returns how many."""
        taken = min(len(piece.rows) - start, BLOCK_ROWS - self.used)
        here, there = slice(self.used, self.used + taken), slice(start, start + taken)
        self._rows[here] = piece.rows[there]
        self._vectors[here] = piece.vectors[there]
        self._crc32s[here] = piece.crc32s[there]
        self._live[here] = True
        self._columns.append(piece.entries[there])
        self.used += taken
        return taken

    def delete(self, rows: Rows) -> None:
        self._live[: self.used][np.isin(self._rows[: self.used], rows)] = False

    def block(self) -> Block | None:
        """What it holds by now, None if nothing."""
        live = self._live[: self.used].copy()
        count = int(live.sum())
        if not count:
            return None
        part = slice(self.used)
        return Block(self._rows[part], self._vectors[part], self._crc32s[part], self._columns, live, count)


def _block(piece: Piece, codes: Codes) -> Block:
    columns = Columns(codes, len(piece.rows))
    columns.append(piece.entries)
    live = np.ones(len(piece.rows), np.bool_)
    return Block(piece.rows, piece.vectors, piece.crc32s, columns, live, len(piece.rows))


def _merged(blocks: Sequence[Block], dim: int, codes: Codes) -> list[Block]:
    """Full blocks after deletions: neighbours that are less than half live share new blocks, so memory comes back."""
    merged: list[Block] = []
    sparse: list[Block] = []
    for block in (*blocks, None):
        if block is not None and 2 * block.count < BLOCK_ROWS:
            sparse.append(block)
            continue
        merged += _packed(sparse, dim, codes)
        sparse = []
        if block is not None:
            merged.append(block)
    return merged


def _packed(blocks: Sequence[Block], dim: int, codes: Codes) -> Sequence[Block]:
    count = sum(block.count for block in blocks)
    if 2 * count >= sum(len(block.rows) for block in blocks) and len(blocks) < 2:
        return blocks
    packed: list[Block] = []
    tail = _Tail(dim, codes)
    for block in blocks:
        live = np.flatnonzero(block.live)
        entries = [block.entries[place] for place in live.tolist()]
        part = Piece(block.rows[live], entries, block.vectors[live], block.crc32s[live])
        start = 0
        while start < len(live):
            start += tail.append(part, start)
            if tail.used == BLOCK_ROWS:
                packed += [full for full in (tail.block(),) if full is not None]
                tail = _Tail(dim, codes)
    return [*packed, *(rest for rest in (tail.block(),) if rest is not None)]
