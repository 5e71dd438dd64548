"""The newest state of a gallery in Milvus, searched: Milvus nominates, vecdot settles."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embedding, Embeddings
from reidserve.errors import EntryNotFoundError, GenerationGoneError, IncompleteRankingError
from reidserve.index.entry import Entry, Hit
from reidserve.index.filters import Filter
from reidserve.index.milvus.collection import Collection
from reidserve.index.milvus.conditions import expression
from reidserve.index.milvus.layout import ENTRY_FIELDS
from reidserve.index.milvus.server import MOST_HITS, as_array
from reidserve.index.search import whole
from reidserve.index.search.flat import Bare, Part
from reidserve.index.search.ranking import (
    NO_ROW,
    SETTLED_WITHIN,
    Ranking,
    Rows,
    Scores,
    check_queries,
    check_top_k,
    empty_ranking,
    write_best,
)
from reidserve.index.storage.rows import Damage

_SPARE = 16
_WIDER = 4
_ANSWER_BYTES = 16 * 2**20
"""About as much may one answer of Milvus hold, which sends 64 MiB at most; texts may be long."""


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What Milvus found for one query, best first.

    Attributes:
        nominal: float32 (n,), its own scores.
        rows: int64 (n,).
        scores: float32 (n,), by vecdot.
        accepted: bool (n,), what the filter says.
        all: whether there is nothing else.
    """

    nominal: Scores
    rows: Rows
    scores: Scores
    accepted: NDArray[np.bool_]
    all: bool

    def settles(self, top_k: int, left_out: int) -> bool:
        """Whether what was not found cannot be among the `top_k` best."""
        if self.all:
            return True
        scores = self.scores[self.accepted & (self.rows != left_out)]
        return len(scores) >= top_k and bool(self.nominal[-1] < np.sort(scores)[-top_k] - np.float32(SETTLED_WITHIN))


@dataclass(frozen=True, eq=False)
class MilvusSnapshot:
    """A gallery as Milvus holds it, with the generation at which it was last looked at.

    Milvus keeps no old states: what is asked is answered of the newest one, which holds all writes up to
    `generation` and may hold later ones.

    Attributes:
        generation: how many writes had changed something.
        dim: dimensions of an embedding.
        count: how many entries there were.
        collection: where they are.
    """

    generation: int
    dim: int
    count: int
    collection: Collection

    def __len__(self) -> int:
        return self.count

    @property
    def in_memory(self) -> bool:
        """Its calls ask Milvus."""
        return False

    @property
    def kind(self) -> str:
        """How Milvus searches: "milvus-flat", or its kind of index."""
        return f"milvus-{self.collection.kind}"

    @property
    def damaged(self) -> Sequence[Damage]:
        """Nothing is known to be; reid-index verify looks."""
        return ()

    @property
    def ranks_all(self) -> bool:
        """Whether a search finds every row."""
        return self.collection.kind == "flat"

    def search(
        self, queries: Embeddings, *, top_k: int, where: Filter | None = None, left_out: Rows | None = None
    ) -> Ranking:
        """The `top_k` best entries that `where` accepts for each of Q queries, by the contract of search/ranking.py.

        `left_out` (Q,) names a row that a query must not find, -1 for none.

        Raises:
            QueryError: `top_k` is not 1 to MAX_TOP_K, or the queries are no unit vectors of `dim` dimensions.
            BackendUnavailableError: Milvus does not answer.
        """
        self.check_top_k(top_k)
        self.check_queries(queries)
        queries = np.ascontiguousarray(queries)
        omitted = np.full(len(queries), NO_ROW) if left_out is None else left_out
        top_k = min(top_k, max(self.count, 1))
        ranking = empty_ranking(len(queries), top_k)
        width = 0
        open_places = np.arange(len(queries))
        limit = min(top_k + _SPARE, MOST_HITS)
        while len(open_places):
            unsettled = []
            for place, found in zip(open_places.tolist(), self._found(queries[open_places], limit, where), strict=True):
                if not found.settles(top_k, int(omitted[place])):
                    unsettled.append(place)
                    continue
                kept = found.accepted & (found.rows != omitted[place])
                write_best(ranking, place, found.rows[kept], found.scores[kept])
                width = max(width, min(top_k, int(found.accepted.sum())))
            open_places = np.array(unsettled, np.intp)
            if limit == MOST_HITS:
                break
            limit = min(_WIDER * limit, MOST_HITS)
        if len(open_places):
            # So many rows score alike, or so few of the best are accepted, that every one is looked at.
            every = self._rank_all(queries[open_places], where, omitted[open_places])
            width = max(width, min(top_k, every.rows.shape[1]))
            part = slice(min(top_k, every.rows.shape[1]))
            ranking.scores[open_places, part], ranking.rows[open_places, part] = (
                every.scores[:, part],
                every.rows[:, part],
            )
        return Ranking(ranking.scores[:, :width], ranking.rows[:, :width])

    def rank_all(self, queries: Embeddings, *, where: Filter | None = None, left_out: Rows | None = None) -> Ranking:
        """Every entry that `where` accepts, ranked for each of Q queries: the whole gallery is read for it.

        Raises:
            IncompleteRankingError: Milvus' index may miss a row.
            QueryError: the queries are no unit vectors of `dim` dimensions.
            BackendUnavailableError: Milvus does not answer.
        """
        self.check_ranks_all()
        self.check_queries(queries)
        return self._rank_all(np.ascontiguousarray(queries), where, left_out)

    def search_entry(self, name: str, *, top_k: int, where: Filter | None = None) -> Ranking:
        """The ranking (1, k) of the entries most like one that the gallery holds, itself left out.

        Raises:
            EntryNotFoundError: no entry of that id.
            QueryError: `top_k` is not 1 to MAX_TOP_K.
        """
        self.check_top_k(top_k)
        row = self.row(name)
        return self.search(self.vector(row)[np.newaxis], top_k=top_k, where=where, left_out=np.array([row]))

    def find(self, name: str) -> Entry | None:
        """The entry of that id, None if there is none."""
        return next(map(self.collection.entry, self.collection.of_ids([name], ENTRY_FIELDS)), None)

    def row(self, name: str) -> int:
        """The row of an entry.

        Raises:
            EntryNotFoundError: no entry of that id.
        """
        for entity in self.collection.of_ids([name], ["row"]):
            return int(entity["row"])
        raise EntryNotFoundError(f"the gallery has no entry {name!r}")

    def rows(self) -> Rows:
        """All live row numbers, ascending."""
        return np.array([entity["row"] for page in self.collection.scan(["row"]) for entity in page], np.int64)

    def entries(self) -> Iterator[Entry]:
        """All entries, in row order."""
        for _, entry in self.listed():
            yield entry

    def matching(self, where: Filter) -> Iterator[Entry]:
        """The entries that a filter accepts, in row order."""
        for page in self.collection.scan(ENTRY_FIELDS, where=where):
            yield from filter(where.accepts, map(self.collection.entry, page))

    def listed(self, *, after: int = NO_ROW) -> Iterator[tuple[int, Entry]]:
        """The entries behind a row, each with its own row, in row order."""
        for page in self.collection.scan(ENTRY_FIELDS, after=after):
            for entity in page:
                yield int(entity["row"]), self.collection.entry(entity)

    def check_ranks_all(self) -> None:
        """See that the whole gallery can be ranked, before anything is spent on it.

        Raises:
            IncompleteRankingError: Milvus' index may miss a row.
        """
        if not self.ranks_all:
            raise IncompleteRankingError(
                f"the gallery is searched by {self.kind}, which finds the best hits and may miss a row: a whole "
                "ranking would not be its own; ask for top_k hits, or give its collection an index FLAT in Milvus"
            )

    def check_top_k(self, top_k: int) -> None:
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
        """The embedding (dim,) of a row.

        Raises:
            GenerationGoneError: the row is there no more.
        """
        vector: Embedding = self.vectors([row])[0]
        return vector

    def vectors(self, rows: Sequence[int]) -> Embeddings:
        """The embeddings (n, dim) of rows.

        Raises:
            GenerationGoneError: one is there no more.
        """
        found = self.collection.of_rows(rows, ["vector"])
        return as_array([found[row] if row in found else _gone(row) for row in rows], self.dim)

    def hits(self, ranking: Ranking) -> list[list[Hit]]:
        """The entries that a ranking of this snapshot names, per query, best first.

        Raises:
            GenerationGoneError: one was found too long ago, and is there no more.
        """
        entries = {row: self.collection.remembered(row) for row in ranking.rows[ranking.rows != NO_ROW].tolist()}
        missing = [row for row, entry in entries.items() if entry is None]
        if missing:
            entities = self.collection.of_rows(missing, ENTRY_FIELDS)
            entries |= {row: self.collection.entry(entity) for row, entity in entities.items()}
        return [
            [
                Hit(entries[row] or _gone(row), score, place)
                for place, (row, score) in enumerate(zip(rows, scores, strict=True), start=1)
                if row != NO_ROW
            ]
            for rows, scores in zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        ]

    def _found(self, queries: Embeddings, limit: int, where: Filter | None) -> Iterator[_Found]:
        """What Milvus finds for queries, up to a limit for each."""
        fields = [*ENTRY_FIELDS, "vector"]
        most = max(1, _ANSWER_BYTES // self.collection.entity_bytes(fields))
        step = max(1, most // limit)
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            answers = self.collection.server.search(
                self.collection.name, some, expression(where), limit=limit, fields=fields if limit <= most else ["row"]
            )
            for query, answer in zip(some, answers, strict=True):
                entities = [hit["entity"] for hit in answer]
                if limit > most:
                    rows = [int(entity["row"]) for entity in entities]
                    read = self.collection.of_rows(rows, fields)
                    entities = [read[row] if row in read else _gone(row) for row in rows]
                entries = [self.collection.entry(entity) for entity in entities]
                yield _Found(
                    np.array([hit["distance"] for hit in answer], np.float32),
                    np.array([entity["row"] for entity in entities], np.int64),
                    np.vecdot(as_array(entities, self.dim), query),
                    np.array([where is None or where.accepts(entry) for entry in entries], np.bool_),
                    len(answer) < limit,
                )

    def _rank_all(self, queries: Embeddings, where: Filter | None, left_out: Rows | None) -> Ranking:
        parts = []
        for page in self.collection.scan([*ENTRY_FIELDS, "vector"], where=where):
            kept = [entity for entity in page if where is None or where.accepts(self.collection.entry(entity))]
            if kept:
                rows = np.array([entity["row"] for entity in kept], np.int64)
                parts.append(Part(Bare(rows, as_array(kept, self.dim)), None, len(kept)))
        return whole.rank(queries, parts, left_out=left_out)


def _gone(row: int) -> NoReturn:
    raise GenerationGoneError(
        f"row {row} was changed or removed since it was found, and Milvus keeps no old states: ask again"
    )
