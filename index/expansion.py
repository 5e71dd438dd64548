"""Query expansion: a query becomes the mean of itself and what it found, and is asked again."""

from collections.abc import Callable

import numpy as np

from reidserve.embed import Embedding, Embeddings
from reidserve.errors import QueryError
from reidserve.index.search.ranking import NO_ROW, Ranking


def expand(
    queries: Embeddings, ranking: Ranking, vector: Callable[[int], Embedding], *, alpha: float = 0
) -> Embeddings:
    """Queries (Q, dim) averaged with what each found, to unit length again.

    The ranking (Q, k) says what: the k best of a search, of which `vector` gives a row's embedding. That is
    `snapshot.search(queries, top_k=k)` with `snapshot.vector`, or a ranking of a plain array with its `__getitem__`.
    A query weighs 1 and what it found score ** alpha: with 0 all alike (average query expansion, Chum et al., 2007,
    "Total Recall"), with more the nearer the more (alpha query expansion, Radenović et al., 2018, "Fine-tuning CNN
    Image Retrieval with No Human Annotation", who take 3). What has no positive score weighs nothing.

    Raises:
        QueryError: alpha is negative or not finite, or the ranking is of other queries.
    """
    # Written so that NaN fails.
    if not 0 <= alpha < np.inf:
        raise QueryError(f"query expansion: alpha must be 0 or more, got {alpha}")
    if len(ranking.rows) != len(queries):
        raise QueryError(f"query expansion: {len(queries)} queries, and a ranking of {len(ranking.rows)}")
    expanded = np.array(queries, np.float32)
    for query, rows, scores in zip(expanded, ranking.rows, ranking.scores, strict=True):
        near = (rows != NO_ROW) & (scores > 0)
        if near.any():
            weights = np.power(scores[near], np.float32(alpha))
            query += weights @ np.stack([vector(row) for row in rows[near].tolist()])
        query /= np.linalg.norm(query)
    return expanded
