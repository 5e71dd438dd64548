"""The ranker: queries that wait together are ranked in one pass over the gallery."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reidserve.embed import Embedding
from reidserve.index import Filter, Hit, Snapshot
from reidserve.index.search.ranking import NO_ROW


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A query that was checked, on its way to the ranker.

    Attributes:
        snapshot: what to search.
        embedding: what to search for, of unit length and the gallery's dimensions.
        top_k: how many hits.
        where: which entries may be found; None for every one.
        left_out: a row that must not be found, NO_ROW for none.
    """

    snapshot: Snapshot
    embedding: Embedding
    top_k: int
    where: Filter | None = None
    left_out: int = NO_ROW


def rank_together(queries: Sequence[Query]) -> list[list[Hit]]:
    """The hits of each query, which do not depend on its company.

    Queries of one snapshot, top_k and filter share one pass over the embeddings; others would pay for the largest
    top_k, and no two filters let the same rows through.
    """
    groups: dict[tuple[Snapshot, int, Filter | None], list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        groups[query.snapshot, query.top_k, query.where].append(place)
    answers: dict[int, list[Hit]] = {}
    for (snapshot, top_k, where), places in groups.items():
        embeddings = np.stack([queries[place].embedding for place in places])
        left_out = np.array([queries[place].left_out for place in places])
        hits = snapshot.hits(snapshot.search(embeddings, top_k=top_k, where=where, left_out=left_out))
        answers |= dict(zip(places, hits, strict=True))
    return [answers[place] for place in range(len(queries))]
