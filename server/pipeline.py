"""A query's way through the server: admission, decoding, the batcher, the gallery. It knows nothing of gRPC."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from reidserve.embed import Embedder, Embedding, Image
from reidserve.errors import GalleryNotFoundError, OverloadedError
from reidserve.index import Filter, Gallery, Hit, Snapshot
from reidserve.server.batcher import Batcher
from reidserve.server.ranker import Query, rank_together

MAX_IN_FLIGHT = 256
MAX_RANKED_TOGETHER = 32

_Result = TypeVar("_Result")


@dataclass(slots=True)
class Stages:
    """Wall-clock seconds of each stage a query went through, in order; `total` from its birth.

    Attributes:
        seconds: by stage: decode, embed, search.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _born: float = field(default_factory=time.perf_counter)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds since the query came in."""
        return time.perf_counter() - self._born


@dataclass(frozen=True, slots=True)
class Answer:
    """A ranking and what it was computed from.

    Attributes:
        hits: best first.
        generation: of the gallery.
        stages: where the time went.
    """

    hits: Sequence[Hit]
    generation: int
    stages: Stages


class Pipeline:
    """One model and the galleries of its identity, answering queries; at most MAX_IN_FLIGHT at a time.

    Attributes:
        embedder: the model.
        galleries: by name.
    """

    def __init__(self, embedder: Embedder, galleries: Mapping[str, Gallery]) -> None:
        self.embedder = embedder
        self.galleries = galleries
        self._engine: Batcher[Image, Embedding] = Batcher(
            lambda images: embedder.embed_each(np.stack(images)), most=embedder.max_batch, name="engine"
        )
        self._ranker: Batcher[Query, list[Hit]] = Batcher(rank_together, most=MAX_RANKED_TOGETHER, name="ranker")
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="query")
        self._in_flight = 0

    async def search_image(self, data: bytes, *, gallery: str, top_k: int, where: Filter | None = None) -> Answer:
        """Rank a gallery, or what of it a filter lets through, against an encoded image.

        Raises:
            ImageError, EmbeddingError: the image is none, or the model fails on it.
            QueryError: `top_k` or the gallery's name is wrong.
            OverloadedError: too many queries are under way.
        """
        stages, snapshot = Stages(), self._snapshot(gallery)
        snapshot.check_top_k(top_k)
        with self._admitted():
            embedding = await self._embed(data, stages)
            return await self._rank(Query(snapshot, embedding, top_k, where), stages)

    async def search_embedding(
        self, embedding: Embedding, *, gallery: str, top_k: int, where: Filter | None = None
    ) -> Answer:
        """Rank a gallery, or what of it a filter lets through, against an embedding (dim,).

        Raises:
            QueryError: it is no unit vector of the gallery's dimensions, or `top_k` or the name is wrong.
            OverloadedError: too many queries are under way.
        """
        stages, snapshot = Stages(), self._snapshot(gallery)
        snapshot.check_top_k(top_k)
        snapshot.check_queries(embedding[np.newaxis])
        with self._admitted():
            return await self._rank(Query(snapshot, embedding, top_k, where), stages)

    async def search_entry(self, entry_id: str, *, gallery: str, top_k: int, where: Filter | None = None) -> Answer:
        """Rank a gallery, or what of it a filter lets through, against one of its entries, itself left out.

        Raises:
            EntryNotFoundError: there is no such entry.
            QueryError: `top_k` or the gallery's name is wrong.
            OverloadedError: too many queries are under way.
        """
        stages, snapshot = Stages(), self._snapshot(gallery)
        snapshot.check_top_k(top_k)
        row = snapshot.row(entry_id)
        with self._admitted():
            return await self._rank(Query(snapshot, snapshot.vector(row), top_k, where, left_out=row), stages)

    async def embed(self, data: bytes) -> tuple[Embedding, Stages]:
        """The embedding (dim,) of an encoded image.

        Raises:
            ImageError, EmbeddingError: the image is none, or the model fails on it.
            OverloadedError: too many queries are under way.
        """
        stages = Stages()
        with self._admitted():
            return await self._embed(data, stages), stages

    async def refresh(self) -> None:
        """Let every gallery catch up with what other processes have written.

        Raises:
            GalleryError: a gallery is damaged; its last good state goes on being served, and the others are fresh.
        """
        results = await asyncio.gather(
            *(self._run(gallery.refresh) for gallery in self.galleries.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def close(self) -> None:
        """Stop the threads and close the galleries; nobody may be waiting any more."""
        await self._engine.close()
        await self._ranker.close()
        self._threads.shutdown()
        for gallery in self.galleries.values():
            gallery.close()

    async def _embed(self, data: bytes, stages: Stages) -> Embedding:
        with stages.measure("decode"):
            image = await self._run(lambda: self.embedder.prepare(data))
        with stages.measure("embed"):
            return await self._engine.submit(image)

    async def _rank(self, query: Query, stages: Stages) -> Answer:
        with stages.measure("search"):
            hits = await self._ranker.submit(query)
        return Answer(hits, query.snapshot.generation, stages)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _snapshot(self, name: str) -> Snapshot:
        if not name and len(self.galleries) == 1:
            (gallery,) = self.galleries.values()
            return gallery.snapshot
        if name not in self.galleries:
            raise GalleryNotFoundError(
                f"there is no gallery {name!r} here, there is {', '.join(sorted(self.galleries)) or 'none'}"
            )
        return self.galleries[name].snapshot

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= MAX_IN_FLIGHT:
            raise OverloadedError(f"{self._in_flight} queries are under way, the most that are taken: try again soon")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
