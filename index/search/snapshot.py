"""A snapshot: a gallery as it stood at one generation, in memory, to be searched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reidserve.embed import Embedding, Embeddings
from reidserve.errors import EntryNotFoundError, IncompleteRankingError
from reidserve.index.entry import Entry, Hit
from reidserve.index.filters import Filter
from reidserve.index.search import flat, nominated, whole
from reidserve.index.search.blocks import Block
from reidserve.index.search.columns import Sought
from reidserve.index.search.flat import Part
from reidserve.index.search.nominated import Covered
from reidserve.index.search.ranking import NO_ROW, Ranking, Rows, check_queries, check_top_k, merged
from reidserve.index.storage.rows import Damage


@dataclass(frozen=True, eq=False)
class FolderSnapshot:
    """A gallery as it stood at one generation; it never changes and may be searched from any thread.

    Attributes:
        generation: how many transactions had changed something.
        dim: dimensions of an embedding.
        blocks: the rows, in row order.
        covered: what proposes rows of the first blocks; None where all are multiplied.
        damaged: rows that were left out because they fail their checksum.
    """

    generation: int
    dim: int
    blocks: Sequence[Block] = ()
    covered: Covered | None = None
    damaged: Sequence[Damage] = field(default=())

    @property
    def in_memory(self) -> bool:
        """Its calls answer at once."""
        return True

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def kind(self) -> str:
        """How rows are searched: "flat", or the kind of index that proposes them."""
        return "flat" if self.covered is None else self.covered.nominator.kind

    def search(
        self, queries: Embeddings, *, top_k: int, where: Filter | None = None, left_out: Rows | None = None
    ) -> Ranking:
        """The `top_k` best entries that `where` accepts for each of Q queries, by the contract of search/ranking.py.

        `left_out` (Q,) names a row that a query must not find, -1 for none.

        Raises:
            QueryError: `top_k` is not 1 to MAX_TOP_K, or the queries are no unit vectors of `dim` dimensions.
        """
        self.check_top_k(top_k)
        self.check_queries(queries)
        queries = np.ascontiguousarray(queries)
        if left_out is not None and (left_out == NO_ROW).all():
            left_out = None
        parts = self._all if where is None else list(self._parts(where))
        top_k = min(top_k, sum(part.count for part in parts))
        covered = 0 if self.covered is None else len(self.covered.blocks)
        rankings = []
        if self.covered is not None and any(part.count for part in parts[:covered]):
            rankings.append(nominated.rank(queries, self.covered, parts[:covered], top_k=top_k, left_out=left_out))
        rankings.append(flat.rank(queries, parts[covered:], top_k=top_k, left_out=left_out))
        return merged(rankings, top_k=top_k)

    def rank_all(self, queries: Embeddings, *, where: Filter | None = None, left_out: Rows | None = None) -> Ranking:
        """Every entry that `where` accepts, ranked for each of Q queries by the contract of search/ranking.py.

        The ranking takes 12 bytes for each query and entry; see search/whole.py.

        Raises:
            IncompleteRankingError: the index answers its best hits only.
            QueryError: the queries are no unit vectors of `dim` dimensions.
        """
        self.check_ranks_all()
        self.check_queries(queries)
        parts = self._all if where is None else list(self._parts(where))
        return whole.rank(np.ascontiguousarray(queries), parts, left_out=left_out)

    def search_entry(self, name: str, *, top_k: int, where: Filter | None = None) -> Ranking:
        """The ranking (1, k) of the entries most like one that the gallery holds, itself left out.

        Raises:
            EntryNotFoundError: no entry of that id.
            QueryError: `top_k` is not 1 to MAX_TOP_K.
        """
        row = self.row(name)
        return self.search(self.vector(row)[np.newaxis], top_k=top_k, where=where, left_out=np.array([row]))

    def find(self, name: str) -> Entry | None:
        """The entry of that id, None if there is none."""
        place = self._place(name)
        return None if place is None else place[0].entries[place[1]]

    def row(self, name: str) -> int:
        """The row of an entry.

        Raises:
            EntryNotFoundError: no entry of that id.
        """
        place = self._place(name)
        if place is None:
            raise EntryNotFoundError(f"the gallery has no entry {name!r}")
        return int(place[0].rows[place[1]])

    def rows(self) -> Rows:
        """All live row numbers, ascending."""
        return np.concatenate([np.empty(0, np.int64), *(block.rows[block.live] for block in self.blocks)])

    def entries(self) -> Iterator[Entry]:
        """All entries, in row order."""
        for block in self.blocks:
            for place in np.flatnonzero(block.live).tolist():
                yield block.entries[place]

    def matching(self, where: Filter) -> Iterator[Entry]:
        """The entries that a filter accepts, in row order."""
        for block, part in zip(self.blocks, self._parts(where), strict=True):
            for place in np.flatnonzero(np.asarray(part.accepted)).tolist():
                yield block.entries[place]

    def listed(self, *, after: int = NO_ROW) -> Iterator[tuple[int, Entry]]:
        """The entries behind a row, each with its own row, in row order."""
        for block in self.blocks[int(np.searchsorted(self._last_rows, after, side="right")) :]:
            for place in np.flatnonzero(block.live & (block.rows > after)).tolist():
                yield int(block.rows[place]), block.entries[place]

    @property
    def ranks_all(self) -> bool:
        """Whether a search finds every row, so that a whole ranking is what it would say."""
        return self.covered is None or self.covered.nominator.window is not None

    def check_ranks_all(self) -> None:
        """See that the whole gallery can be ranked, before anything is spent on it.

        Raises:
            IncompleteRankingError: the index answers its best hits only.
        """
        if not self.ranks_all:
            raise IncompleteRankingError(
                f"the gallery is searched by {self.kind}, which finds the best hits and may miss a row: a whole "
                "ranking would not be its own; ask for top_k hits, or serve the gallery with --index flat"
            )

    @staticmethod
    def check_top_k(top_k: int) -> None:
        """See that so many hits may be asked for, before anything is spent on them.

        Raises:
            QueryError: `top_k` is not 1 to MAX_TOP_K.
        """
        check_top_k(top_k)

    def check_queries(self, queries: Embeddings) -> None:
        """See that queries (Q, dim) may be searched with.

        Raises:
            QueryError: they have other dimensions than the gallery, or are not of unit length.
        """
        check_queries(queries, self.dim)

    def vector(self, row: int) -> Embedding:
        """The embedding (dim,) of a live row."""
        block, place = self._located(row)
        vector: Embedding = block.vectors[place]
        return vector

    def vectors(self, rows: Sequence[int]) -> Embeddings:
        """The embeddings (n, dim) of live rows."""
        return np.stack([self.vector(row) for row in rows]) if len(rows) else np.empty((0, self.dim), np.float32)

    def hits(self, ranking: Ranking) -> list[list[Hit]]:
        """The entries that a ranking of this snapshot names, per query, best first."""
        return [
            [
                Hit(self._entry(row), score, place)
                for place, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
                if row >= 0
            ]
            for rows, scores in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        ]

    @cached_property
    def _all(self) -> Sequence[Part]:
        return [
            Part(block, None if block.count == len(block.rows) else block.live, block.count) for block in self.blocks
        ]

    def _parts(self, where: Filter) -> Iterator[Part]:
        sought = codes = None
        for block in self.blocks:
            if sought is None or block.columns.codes is not codes:
                codes = block.columns.codes
                sought = Sought(codes, where)
            accepted = block.columns.matching(sought, len(block.rows)) & block.live
            yield Part(block, accepted, int(accepted.sum()))

    @cached_property
    def _last_rows(self) -> Rows:
        return np.array([block.rows[-1] for block in self.blocks], np.int64)

    def _entry(self, row: int) -> Entry:
        block, place = self._located(row)
        return block.entries[place]

    def _located(self, row: int) -> tuple[Block, int]:
        block = self.blocks[int(np.searchsorted(self._last_rows, row))]
        return block, int(np.searchsorted(block.rows, row))

    def _place(self, name: str) -> tuple[Block, int] | None:
        for block in reversed(self.blocks):
            for place in block.columns.find(name, len(block.rows)):
                if block.live[place]:
                    return block, place
        return None
