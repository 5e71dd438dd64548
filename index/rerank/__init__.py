"""Re-ranking: which neighbours two images have in common says more than their cosine.

One formula, computed in two ways: `rerank` is dense and plain, for the shortlist of a search, and needs NumPy alone;
`rerank_in_chunks` is sparse, for all queries of a dataset and its whole gallery, and `rerank_among` for all of a set
with each other; both need numba and scipy.
"""

from reidserve.index.rerank.chunked import rerank_among, rerank_in_chunks
from reidserve.index.rerank.dense import Distances, rerank
from reidserve.index.rerank.reranking import Reranking

__all__ = ["Distances", "Reranking", "rerank", "rerank_among", "rerank_in_chunks"]
