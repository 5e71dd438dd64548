"""Re-ranking of whole datasets, a run of queries at a time."""

from collections.abc import Iterator

import numpy as np

from reidserve.embed import Embeddings
from reidserve.index.build import Progress, no_progress
from reidserve.index.rerank.dense import Distances
from reidserve.index.rerank.reranking import Reranking, check_embeddings


def rerank_in_chunks(
    queries: Embeddings,
    gallery: Embeddings,
    how: Reranking = Reranking(),  # noqa: B008
    *,
    progress: Progress = no_progress,
) -> Iterator[tuple[slice, Distances]]:
    """Runs of queries (Q, dim), in order, and their k-reciprocal distances (q, G) to a gallery (G, dim).

    They are those of `rerank`, which says of whom the formula is: the same neighbours in the same order, found from
    products and settled by vecdot, and distances within 1e-5. Beside a copy of the embeddings memory grows with
    Q + G and not with their product. `progress` hears of images: all when their neighbours are found, queries again.

    Raises:
        QueryError: the two have other dimensions.
        ModuleNotFoundError: numba or scipy is not installed; they come with reidserve[eval].
    """
    check_embeddings(queries, gallery)
    if not len(queries) or not len(gallery):
        return iter([(slice(0, len(queries)), np.empty((len(queries), len(gallery)), np.float32))])
    # A server re-ranks shortlists, and has neither a compiler nor sparse matrices.
    from reidserve.index.rerank.sparse import distances_in_chunks

    return distances_in_chunks(queries, gallery, how, progress)


def rerank_among(
    vectors: Embeddings,
    how: Reranking = Reranking(),  # noqa: B008
    *,
    progress: Progress = no_progress,
) -> Iterator[tuple[slice, Distances]]:
    """Runs of images, in order, and their k-reciprocal distances (n, N) to all of N images (N, dim), themselves too.

    Of two different images it is what `rerank` gives of any division into queries and gallery that parts them, within
    1e-5. Memory and `progress` are those of `rerank_in_chunks`.

    Raises:
        QueryError: they are no matrix.
        ModuleNotFoundError: numba or scipy is not installed; they come with reidserve[eval] and reidserve[train].
    """
    check_embeddings(vectors, vectors)
    if len(vectors) < 2:
        return iter([(slice(0, len(vectors)), np.zeros((len(vectors), len(vectors)), np.float32))])
    from reidserve.index.rerank.sparse import distances_among

    return distances_among(vectors, how, progress)
