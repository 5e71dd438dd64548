"""The ranker: queries that wait together are ranked in one pass over the gallery."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from reidserve.embed import Embedding, Embeddings
from reidserve.errors import QueryError
from reidserve.index import Filter, Hit, Ranking, Snapshot
from reidserve.index.rerank import Reranking, rerank
from reidserve.index.search.ranking import NO_ROW, Rows

MAX_SHORTLIST = 1000
MAX_NEIGHBOURS = 1000


@dataclass(frozen=True, slots=True)
class Shortlist:
    """How the best hits are ordered again.

    Attributes:
        length: how many they are.
        how: the numbers of re-ranking.

    Raises:
        QueryError: the length is not 1 to MAX_SHORTLIST, or k1 or k2 is above MAX_NEIGHBOURS.
    """

    length: int = 100
    how: Reranking = field(default_factory=Reranking)

    def __post_init__(self) -> None:
        if not 1 <= self.length <= MAX_SHORTLIST:
            raise QueryError(f"re-ranking: the shortlist must be 1 to {MAX_SHORTLIST:,} hits, got {self.length}")
        for name, count in (("k1", self.how.k1), ("k2", self.how.k2)):
            if count > MAX_NEIGHBOURS:
                raise QueryError(f"re-ranking: {name} must be 1 to {MAX_NEIGHBOURS:,}, got {count}")


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A query that was checked, on its way to the ranker.

    Attributes:
        snapshot: what to search.
        embedding: what to search for, of unit length and the gallery's dimensions.
        top_k: how many hits.
        where: which entries may be found; None for every one.
        left_out: a row that must not be found, NO_ROW for none.
        shortlist: how the best are ordered again; None where they are not.
    """

    snapshot: Snapshot
    embedding: Embedding
    top_k: int
    where: Filter | None = None
    left_out: int = NO_ROW
    shortlist: Shortlist | None = None

    @property
    def depth(self) -> int:
        """How many hits are looked for."""
        return self.top_k if self.shortlist is None else self.shortlist.length


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        hits: best first.
        best: the highest score of all that may be found; None where nothing may be.
    """

    hits: Sequence[Hit]
    best: float | None


def rank_together(queries: Sequence[Query]) -> list[Found]:
    """What each query finds, which does not depend on its company.

    Queries of one snapshot, depth and filter share one pass over the embeddings; others would pay for the largest
    depth, and no two filters let the same rows through.
    """
    answers: dict[int, Found] = {}
    for group in _groups(queries):
        one = group.first
        ranking = one.snapshot.search(group.embeddings, top_k=one.depth, where=one.where, left_out=group.left_out)
        for place, hits, rows in zip(group.places, one.snapshot.hits(ranking), ranking.rows, strict=True):
            best = hits[0].score if hits else None
            answers[place] = Found(_again(queries[place], hits, rows), best)
    return [answers[place] for place in range(len(queries))]


def rank_whole_together(queries: Sequence[Query]) -> list[Ranking]:
    """The ranking (1, n) of all that each query may find; their `top_k` does not matter.

    While Q queries are ranked, it takes 24 bytes for each of them and each entry.
    """
    answers: dict[int, Ranking] = {}
    for group in _groups(queries):
        one = group.first
        ranking = one.snapshot.rank_all(group.embeddings, where=one.where, left_out=group.left_out)
        for place, scores, rows in zip(group.places, ranking.scores, ranking.rows, strict=True):
            found = rows != NO_ROW
            # Copies, as one of them would keep the memory of all.
            answers[place] = Ranking(scores[found][np.newaxis], rows[found][np.newaxis])
    return [answers[place] for place in range(len(queries))]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Queries that share a pass.

    Attributes:
        first: one of them, as any.
        places: where they stand among all.
        embeddings: float32 (Q, dim), what they look for.
        left_out: int64 (Q,), what each must not find.
    """

    first: Query
    places: Sequence[int]
    embeddings: Embeddings
    left_out: Rows


def _groups(queries: Sequence[Query]) -> Iterator[_Group]:
    groups: dict[tuple[Snapshot, int, Filter | None], list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        groups[query.snapshot, query.depth, query.where].append(place)
    for places in groups.values():
        some = [queries[place] for place in places]
        embeddings = np.stack([query.embedding for query in some])
        yield _Group(some[0], places, embeddings, np.array([query.left_out for query in some]))


def _again(query: Query, hits: Sequence[Hit], rows: Rows) -> Sequence[Hit]:
    """The best of a shortlist, ordered by distance; what is equally far stays by score and row."""
    if query.shortlist is None or not hits:
        return hits
    vectors = np.stack([query.snapshot.vector(row) for row in rows[: len(hits)].tolist()])
    distances = rerank(query.embedding[np.newaxis], vectors, query.shortlist.how)[0]
    order = np.argsort(distances, kind="stable")[: query.top_k]
    return [
        replace(hits[place], rank=rank, reranked_distance=float(distances[place]))
        for rank, place in enumerate(order.tolist(), start=1)
    ]
