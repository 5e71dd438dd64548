"""The ranker: queries that wait together are ranked in one pass over the gallery."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reidserve.embed import Embedding
from reidserve.index import Hit, Snapshot

NO_ROW = -1


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A query that was checked, on its way to the ranker.

    Attributes:
        snapshot: what to search.
        embedding: what to search for, of unit length and the gallery's dimensions.
        top_k: how many hits.
        left_out: a row that must not be found, NO_ROW for none.
    """

    snapshot: Snapshot
    embedding: Embedding
    top_k: int
    left_out: int = NO_ROW


def rank_together(queries: Sequence[Query]) -> list[list[Hit]]:
    """The hits of each query, which do not depend on its company.

    Queries of one snapshot and top_k share one pass over the embeddings; others would pay for the largest top_k.
    """
    groups: dict[tuple[Snapshot, int], list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        groups[query.snapshot, query.top_k].append(place)
    answers: dict[int, list[Hit]] = {}
    for (snapshot, top_k), places in groups.items():
        embeddings = np.stack([queries[place].embedding for place in places])
        left_out = np.array([queries[place].left_out for place in places])
        hits = snapshot.hits(snapshot.search(embeddings, top_k=top_k, left_out=left_out))
        answers |= dict(zip(places, hits, strict=True))
    return [answers[place] for place in range(len(queries))]
