"""A snapshot: a gallery as it stood at one generation, in memory, to be searched."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from reidserve.embed import UNIT_TOLERANCE, Embedding, Embeddings
from reidserve.errors import EntryNotFoundError, QueryError
from reidserve.index.entry import Entry, Hit
from reidserve.index.ranking import Block, Ranking, Rows, rank
from reidserve.index.store import Changes

BLOCK_ROWS = 8192
MAX_TOP_K = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A gallery as it stood at one generation; it never changes and may be searched from any thread.

    Attributes:
        generation: how many transactions had been committed.
        dim: dimensions of an embedding.
        blocks: the embeddings, in row order.
        entries: the entry of each live row.
        row_of: the row of each entry id.
    """

    generation: int
    dim: int
    blocks: Sequence[Block] = ()
    entries: dict[int, Entry] = field(default_factory=dict)
    row_of: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries)

    def search(self, queries: Embeddings, *, top_k: int, left_out: Rows | None = None) -> Ranking:
        """The `top_k` best entries for each of Q queries.

        Queries are float32 (Q, dim) of unit length. The ranking is (Q, min(top_k, entries)): best first, by
        vecdot score, then by row, the order in which entries were written. It is the same in any batch.
        `left_out` (Q,) names a row that a query must not find, -1 for none.

        Raises:
            QueryError: `top_k` is not 1 to MAX_TOP_K, or the queries are not such vectors.
        """
        self.check_top_k(top_k)
        self.check_queries(queries)
        return rank(np.ascontiguousarray(queries), self.blocks, top_k=min(top_k, len(self)), left_out=left_out)

    def search_entry(self, name: str, *, top_k: int) -> Ranking:
        """The ranking (1, k) of the entries most like one that the gallery holds, itself left out.

        Raises:
            EntryNotFoundError: no entry of that id.
            QueryError: `top_k` is not 1 to MAX_TOP_K.
        """
        row = self.row(name)
        return self.search(self.vector(row)[np.newaxis], top_k=top_k, left_out=np.array([row]))

    def row(self, name: str) -> int:
        """The row of an entry.

        Raises:
            EntryNotFoundError: no entry of that id.
        """
        if name not in self.row_of:
            raise EntryNotFoundError(f"the gallery has no entry {name!r}")
        return self.row_of[name]

    @staticmethod
    def check_top_k(top_k: int) -> None:
        """See that so many hits may be asked for, before anything is spent on them.

        Raises:
            QueryError: `top_k` is not 1 to MAX_TOP_K.
        """
        if not 1 <= top_k <= MAX_TOP_K:
            raise QueryError(f"top_k must be 1 to {MAX_TOP_K:,}, got {top_k}")

    def check_queries(self, queries: Embeddings) -> None:
        """See that queries (Q, dim) may be searched with.

        Raises:
            QueryError: they have other dimensions than the gallery, or are not of unit length.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise QueryError(f"the gallery's embeddings have {self.dim} dimensions, the query has {queries.shape[-1]}")
        with np.errstate(all="ignore"):  # a caller's numbers may overflow
            norms = np.sqrt(np.vecdot(queries, queries))
        # Written so that NaN fails.
        if not (np.abs(norms - 1) <= UNIT_TOLERANCE).all():
            raise QueryError(f"a query must be of unit length (L2-normalise it), got {norms.tolist()[:3]}")

    def vector(self, row: int) -> Embedding:
        """The embedding (dim,) of a live row."""
        block = next(block for block in self.blocks if block.rows[-1] >= row)
        vector: Embedding = block.vectors[np.searchsorted(block.rows, row)]
        return vector

    def hits(self, ranking: Ranking) -> list[list[Hit]]:
        """The entries that a ranking of this snapshot names, per query, best first."""
        return [
            [
                Hit(self.entries[row], score, place)
                for place, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
                if row >= 0
            ]
            for rows, scores in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        ]

    def after(self, changes: Changes) -> "Snapshot":
        """The next snapshot, with changes applied; sealed blocks are shared, not copied."""
        entries, row_of = dict(self.entries), dict(self.row_of)
        for row in changes.deleted.tolist():
            gone = entries.pop(row, None)
            if gone is not None:
                del row_of[gone.id]
        for row, entry in zip(changes.rows.tolist(), changes.entries, strict=True):
            entries[row] = entry
            row_of[entry.id] = row
        blocks = [_without(block, changes.deleted) for block in self.blocks]
        blocks = _extended(blocks, changes.rows, changes.vectors)
        return Snapshot(changes.generation, self.dim, blocks, entries, row_of)


def _without(block: Block, deleted: Rows) -> Block:
    gone = np.isin(block.rows, deleted)
    return replace(block, live=block.live & ~gone) if gone.any() else block


def _extended(blocks: list[Block], rows: Rows, vectors: Embeddings) -> list[Block]:
    if blocks and len(blocks[-1].rows) < BLOCK_ROWS and len(rows):
        last = blocks.pop()
        rows = np.concatenate([last.rows, rows])
        vectors = np.concatenate([last.vectors, vectors])
        live = np.concatenate([last.live, np.ones(len(rows) - len(last.live), np.bool_)])
    else:
        live = np.ones(len(rows), np.bool_)
    for start in range(0, len(rows), BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        blocks.append(Block(rows[part], vectors[part], live[part]))
    return blocks
