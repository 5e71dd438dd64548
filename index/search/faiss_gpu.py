"""The GPU nominator on FAISS. Nothing else uses faiss's GPU classes.

One thread speaks to the GPU for the whole process: a GPU index must not be searched from two threads, nor may two
share what they allocate from. Calls are divided at FAISS's limits. No selectors are used: a FAISS built without
cuVS ignores them in silence.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np

from reidserve.embed import Embeddings
from reidserve.errors import DeviceError
from reidserve.index.search.faiss_cpu import Nominated, half_window, numbered
from reidserve.index.search.ranking import Rows

MOST = 2048
"""The most neighbours that FAISS's own kernels return for a query."""

CALL_QUERIES = 1024
"""Queries of one call: bounds the scratch memory on the GPU."""

INSTALL = "install the GPU build (reidserve[gpu], in an environment without faiss-cpu) or search on the CPU"

Answer = TypeVar("Answer")


class Growing(Protocol):
    """The methods of a FAISS index that are used."""

    def add(self, vectors: Embeddings, /) -> None:
        """Take more embeddings (n, dim), at the next places."""

    def search(self, queries: Embeddings, count: int, /) -> Nominated:
        """Scores (Q, count), best first, and places in the index; -1 where there are fewer."""
        ...


class GpuFlatFp16:
    """Nominates by exact products with embeddings rounded to half precision on a GPU.

    It may be searched from any thread: the calls queue for the one thread that speaks to the GPU.

    Attributes:
        rows: int64 (n,), ascending: what it covers.
        window: its scores lie within so much of vecdot; queries are rounded too.
        most: the most candidates one query may ask for.
    """

    kind = "flat-fp16"

    def __init__(self, rows: Rows, index: Growing, *, dim: int) -> None:
        self.rows = rows
        self.window = half_window(dim, rounded_queries=True)
        self.most = MOST
        self._index = index

    def extended(self, rows: Rows, vectors: Embeddings) -> "GpuFlatFp16":
        """The nominator of these rows too, which follow all that are here.

        Both share what is on the GPU, where one thread adds and searches in turn.

        Raises:
            DeviceError: the embeddings do not fit the GPU.
        """
        _dispatched(functools.partial(self._index.add, np.ascontiguousarray(vectors, np.float32)))
        return GpuFlatFp16(np.concatenate([self.rows, rows]), self._index, dim=vectors.shape[1])

    def nominate(self, queries: Embeddings, count: int) -> Nominated:
        """Approximate scores (Q, count) of float32 queries (Q, dim), best first, then by row, and their rows.

        `count` is 1 to `most`; -inf and -1 stand where there are fewer rows.

        Raises:
            DeviceError: the GPU failed.
        """
        if not 1 <= count <= self.most:
            raise ValueError(f"count must be 1 to {self.most}, got {count}")
        scores = np.full((len(queries), count), -np.inf, np.float32)
        rows = np.full((len(queries), count), -1, np.int64)
        width = min(count, len(self.rows))
        for start in range(0, len(queries) if width else 0, CALL_QUERIES):
            part = slice(start, start + CALL_QUERIES)
            chunk = np.ascontiguousarray(queries[part], np.float32)
            found = _dispatched(functools.partial(self._index.search, chunk, width))
            some_scores, some_rows = numbered(found[1], found[0], self.rows)
            order = np.lexsort((some_rows, -some_scores), axis=1)
            scores[part, :width] = np.take_along_axis(some_scores, order, axis=1)
            rows[part, :width] = np.take_along_axis(some_rows, order, axis=1)
        return scores, rows


def gpu_flat_fp16(rows: Rows, vectors: Embeddings, *, device: int = 0) -> GpuFlatFp16:
    """Copy embeddings (n, dim) to a GPU in half precision.

    Raises:
        DeviceError: this FAISS has no GPU code, no such GPU is there, or the embeddings do not fit it.
    """
    check_gpu(device)
    index = _dispatched(functools.partial(_gpu_index, np.ascontiguousarray(vectors, np.float32), device))
    return GpuFlatFp16(rows, index, dim=vectors.shape[1])


def check_gpu(device: int = 0) -> None:
    """See that FAISS can use a GPU.

    Raises:
        DeviceError: this FAISS has no GPU code, or no such GPU is there.
    """
    if not hasattr(faiss, "StandardGpuResources"):
        raise DeviceError(f"--index-device gpu: faiss {faiss.__version__} here is a CPU build; {INSTALL}")
    count = faiss.get_num_gpus()
    if not 0 <= device < count:
        raise DeviceError(f"--index-device gpu: expected GPU {device}, FAISS sees {count}; {INSTALL}")


def _gpu_index(vectors: Embeddings, device: int) -> Growing:
    config = faiss.GpuIndexFlatConfig()
    config.device = device
    config.useFloat16 = True
    if hasattr(config, "use_cuvs"):
        # One kernel everywhere: its limits and its arithmetic are what the window was derived for.
        config.use_cuvs = False
    index = faiss.GpuIndexFlatIP(_resources(device), vectors.shape[1], config)
    index.add(vectors)
    growing: Growing = index
    return growing


@functools.cache
def _resources(device: int) -> Any:  # noqa: ANN401, FAISS has no types
    # Shared by all indexes of a GPU, as each set reserves scratch memory of its own.
    return faiss.StandardGpuResources()


@functools.cache
def _dispatcher() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="faiss-gpu")


def _dispatched(call: Callable[[], Answer]) -> Answer:
    try:
        return _dispatcher().submit(call).result()
    except RuntimeError as error:  # what FAISS's own exceptions become
        raise DeviceError(f"the GPU failed: {str(error).strip().splitlines()[-1]}") from error
