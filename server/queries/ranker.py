"""The ranker: queries that wait together are ranked in one pass over the gallery."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from reidserve.embed import Embedding, Embeddings
from reidserve.errors import QueryError, ReidError
from reidserve.index import MAX_TOP_K, Filter, Hit, Ranking, Snapshot
from reidserve.index.rerank import Reranking, rerank
from reidserve.index.search.ranking import NO_ROW, Rows

MAX_SHORTLIST = 1000
MAX_NEIGHBOURS = 1000
DEEPER = 4
"""How many times as deep it is looked where a search did not find enough identities."""

_HITS_AT_ONCE = 1024


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
        min_score: hits of a lower score are left out.
        group_by_pid: of each identity only its best hit is found; entries of unknown identity are each their own.
    """

    snapshot: Snapshot
    embedding: Embedding
    top_k: int
    where: Filter | None = None
    left_out: int = NO_ROW
    shortlist: Shortlist | None = None
    min_score: float = -math.inf
    group_by_pid: bool = False

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


def rank_together(queries: Sequence[Query]) -> list[Found | ReidError]:
    """What each query finds, or why it finds nothing, which does not depend on its company.

    Queries of one snapshot, depth and filter share one pass over the embeddings; others would pay for the largest
    depth, and no two filters let the same rows through. Where a query groups by identity and finds too few of them,
    it is ranked deeper, alone.
    """
    answers: dict[int, Found | ReidError] = {}
    for group in _groups(queries):
        one = group.first
        try:
            ranking = one.snapshot.search(group.embeddings, top_k=one.depth, where=one.where, left_out=group.left_out)
            for place, hits, rows in zip(group.places, one.snapshot.hits(ranking), ranking.rows, strict=True):
                answers[place] = _found(queries[place], hits, rows)
        except ReidError as error:
            # The gallery's own: others that were asked for at once are answered.
            answers |= dict.fromkeys(group.places, error)
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


def _found(query: Query, hits: Sequence[Hit], rows: Rows) -> Found:
    best = hits[0].score if hits else None
    if query.shortlist is not None:
        hits = _again(query, hits, rows)
    chosen = _grouped(query, hits) if query.group_by_pid else _chosen(query, hits)
    return Found([replace(hit, rank=rank) for rank, hit in enumerate(chosen, start=1)], best)


def _chosen(query: Query, hits: Iterable[Hit]) -> list[Hit]:
    """The first `top_k` hits of those with score enough, or those of `top_k` identities."""
    enough = (hit for hit in hits if hit.score >= query.min_score)
    return list(islice(_first_of_each(enough) if query.group_by_pid else enough, query.top_k))


def _again(query: Query, hits: Sequence[Hit], rows: Rows) -> Sequence[Hit]:
    """The hits of a shortlist, ordered by distance; what is equally far stays by score and row."""
    if query.shortlist is None or not hits:
        return hits
    vectors = query.snapshot.vectors(rows[: len(hits)].tolist())
    distances = rerank(query.embedding[np.newaxis], vectors, query.shortlist.how)[0]
    order = np.argsort(distances, kind="stable")
    return [replace(hits[place], reranked_distance=float(distances[place])) for place in order.tolist()]


def _first_of_each(hits: Iterable[Hit]) -> Iterator[Hit]:
    """Of each identity its first hit; what has none is its own."""
    seen = set[str]()
    for hit in hits:
        pid = hit.entry.pid
        if pid is None or pid not in seen:
            yield hit
        if pid is not None:
            seen.add(pid)


def _grouped(query: Query, hits: Sequence[Hit]) -> list[Hit]:
    """The hits of `top_k` identities, looked for deeper and deeper; what is beyond a shortlist is not found.

    Behind MAX_TOP_K hits comes the whole ranking, of an index that has one; of another they are all there is.
    """
    depth = query.depth
    while True:
        chosen = _chosen(query, hits)
        at_end = len(hits) < depth or hits[-1].score < query.min_score
        if len(chosen) == query.top_k or at_end or query.shortlist is not None:
            return chosen
        if depth == MAX_TOP_K:
            return _chosen(query, _every_hit(query)) if query.snapshot.ranks_all else chosen
        depth = min(DEEPER * depth, MAX_TOP_K)
        (hits,) = query.snapshot.hits(_ranked_alone(query, depth))


def _ranked_alone(query: Query, depth: int) -> Ranking:
    return query.snapshot.search(
        query.embedding[np.newaxis], top_k=depth, where=query.where, left_out=np.array([query.left_out])
    )


def _every_hit(query: Query) -> Iterator[Hit]:
    left_out = np.array([query.left_out])
    ranking = query.snapshot.rank_all(query.embedding[np.newaxis], where=query.where, left_out=left_out)
    for start in range(0, ranking.rows.shape[1], _HITS_AT_ONCE):
        some = slice(start, start + _HITS_AT_ONCE)
        yield from query.snapshot.hits(Ranking(ranking.scores[:, some], ranking.rows[:, some]))[0]
