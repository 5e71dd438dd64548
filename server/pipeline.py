"""A query's way through the server: admission, decoding, the batcher, the gallery. It knows nothing of gRPC."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from reidserve.embed import Embedder, Embedding, Image
from reidserve.errors import GalleryNotFoundError, OverloadedError, QueryError
from reidserve.index import Entry, Filter, Gallery, Hit, Ranking, Snapshot
from reidserve.index.search.ranking import NO_ROW
from reidserve.server.batcher import Batcher
from reidserve.server.pins import Pins
from reidserve.server.ranker import Found, Query, Shortlist, rank_together, rank_whole_together

MAX_IN_FLIGHT = 256
MAX_RANKED_TOGETHER = 32
MAX_RERANKED_TOGETHER = 4
MAX_WHOLE = 8
"""How many whole rankings may be under way: each takes 12 bytes an entry until its reader has it, and as much again,
twice, while up to so many are computed."""

Sought = bytes | Embedding | str
"""What to look for: an encoded image, an embedding (dim,), or the id of an entry, which is left out of its own hits."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a gallery, besides what to look for.

    Attributes:
        gallery: its name; may be empty where there is only one.
        top_k: how many hits.
        where: which entries may be found; None for every one.
        generation: the state to search; None for the newest.
        shortlist: how the best hits are ordered again; None where they are not.
        min_score: hits of a lower score are left out; None for none.

    Raises:
        QueryError: more hits than the shortlist has, or a score that no cosine can be.
    """

    gallery: str = ""
    top_k: int = 10
    where: Filter | None = None
    generation: int | None = None
    shortlist: Shortlist | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.shortlist is not None and self.top_k > self.shortlist.length:
            raise QueryError(
                f"re-ranking: top_k must be 1 to the shortlist's {self.shortlist.length} hits, got {self.top_k}: "
                "ask for fewer hits or a longer shortlist"
            )
        # Written so that NaN fails.
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise QueryError(f"min_score must be -1 to 1, got {self.min_score}")


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
        best: the highest score of all that may be found; None where nothing may be.
    """

    hits: Sequence[Hit]
    generation: int
    stages: Stages
    best: float | None


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries of one state of a gallery, in row order.

    Attributes:
        entries: each with its row.
        generation: of the gallery.
        more: whether there are entries behind these.
    """

    entries: Sequence[tuple[int, Entry]]
    generation: int
    more: bool


class Pipeline:
    """One model and the galleries of its identity, answering queries; at most MAX_IN_FLIGHT at a time.

    Attributes:
        embedder: the model.
        galleries: by name.
        threshold: the score from which on two images are said to be of one identity; None where nobody calibrated it.
    """

    def __init__(self, embedder: Embedder, galleries: Mapping[str, Gallery], *, threshold: float | None = None) -> None:
        self.embedder = embedder
        self.galleries = galleries
        self.threshold = threshold
        self._engine: Batcher[Image, Embedding] = Batcher(
            lambda images: embedder.embed_each(np.stack(images)), most=embedder.max_batch, name="engine"
        )
        self._ranker: Batcher[Query, Found] = Batcher(rank_together, most=MAX_RANKED_TOGETHER, name="ranker")
        # Re-ranking and whole rankings take long: plain searches do not wait for them.
        self._reranker: Batcher[Query, Found] = Batcher(rank_together, most=MAX_RERANKED_TOGETHER, name="reranker")
        self._whole: Batcher[Query, Ranking] = Batcher(rank_whole_together, most=MAX_WHOLE, name="whole")
        self._whole_places = asyncio.Semaphore(MAX_WHOLE)
        self._pins = Pins()
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="query")
        self._in_flight = 0

    async def search(self, sought: Sought, question: Question) -> Answer:
        """Rank a gallery, or what of it a filter lets through.

        Raises:
            ImageError, EmbeddingError: the image is none, or the model fails on it.
            EntryNotFoundError: there is no such entry.
            QueryError: the embedding is no unit vector of the gallery's dimensions, or the question cannot be asked.
            OverloadedError: too many queries are under way.
        """
        stages, snapshot = Stages(), self.gallery(question.gallery, question.generation)[1]
        snapshot.check_top_k(question.top_k)
        known, left_out = _known(sought, snapshot)
        with self._admitted():
            embedding = await self._embed(known, stages)
            query = Query(snapshot, embedding, question.top_k, question.where, left_out, question.shortlist)
            with stages.measure("search"):
                found = await (self._ranker if question.shortlist is None else self._reranker).submit(query)
        return Answer(_enough(found.hits, question.min_score), snapshot.generation, stages, found.best)

    @asynccontextmanager
    async def rank(self, sought: Sought, question: Question) -> AsyncIterator[tuple[Ranking, int]]:
        """A whole gallery, or all of it that a filter lets through, ranked (1, n), and its generation.

        The ranking has one of MAX_WHOLE places until the block ends; whoever gets none waits. Of the question, only
        the gallery, the filter and the generation matter.

        Raises:
            IncompleteRankingError: the gallery's index answers its best hits only.
            ImageError, EmbeddingError, EntryNotFoundError, QueryError, OverloadedError: as in `search`.
        """
        snapshot = self.gallery(question.gallery, question.generation)[1]
        snapshot.check_ranks_all()
        known, left_out = _known(sought, snapshot)
        with self._admitted():
            embedding = await self._embed(known, Stages())
            async with self._whole_places:
                query = Query(snapshot, embedding, question.top_k, question.where, left_out)
                yield await self._whole.submit(query), snapshot.generation

    def matches(self, answer: Answer) -> bool | None:
        """Whether an answer's best score reaches the threshold; None where there is none."""
        if self.threshold is None:
            return None
        return answer.best is not None and answer.best >= self.threshold

    async def embed(self, data: bytes) -> tuple[Embedding, Stages]:
        """The embedding (dim,) of an encoded image.

        Raises:
            ImageError, EmbeddingError: the image is none, or the model fails on it.
            OverloadedError: too many queries are under way.
        """
        stages = Stages()
        with self._admitted():
            return await self._embed(data, stages), stages

    def gallery(self, name: str, generation: int | None = None) -> tuple[str, Snapshot]:
        """The name of a gallery and its state at a generation, which is kept for a while, or its newest one.

        Raises:
            GalleryNotFoundError: there is none of that name.
            GenerationGoneError: it is not at that generation, and no such state is kept.
        """
        if not name and len(self.galleries) == 1:
            (name,) = self.galleries
        if name not in self.galleries:
            raise GalleryNotFoundError(
                f"there is no gallery {name!r} here, there is {', '.join(sorted(self.galleries)) or 'none'}"
            )
        newest = self.galleries[name].snapshot
        return name, newest if generation is None else self._pins.at(name, generation, newest=newest)

    async def entries(self, gallery: str, generation: int | None, *, after: int = NO_ROW, most: int) -> Listing:
        """At most so many entries of a gallery behind a row; the state is kept for a while, to be asked for more.

        Raises:
            GalleryNotFoundError, GenerationGoneError: there is no such gallery, or it is not at that generation.
            OverloadedError: too many queries are under way.
        """
        name, snapshot = self.gallery(gallery, generation)
        with self._admitted():
            found = await self._run(lambda: list(islice(snapshot.listed(after=after), most + 1)))
        self._pins.keep(name, snapshot)
        return Listing(found[:most], snapshot.generation, more=len(found) > most)

    async def refresh(self) -> None:
        """Let every gallery catch up with what other processes have written.

        Raises:
            GalleryError: a gallery is damaged; its last good state goes on being served, and the others are fresh.
        """
        self._pins.drop_old()
        results = await asyncio.gather(
            *(self._run(gallery.refresh) for gallery in self.galleries.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def close(self) -> None:
        """Stop the threads and close the galleries; nobody may be waiting any more."""
        await self._engine.close()
        for ranker in (self._ranker, self._reranker, self._whole):
            await ranker.close()
        self._threads.shutdown()
        for gallery in self.galleries.values():
            gallery.close()

    async def _embed(self, known: bytes | Embedding, stages: Stages) -> Embedding:
        if not isinstance(known, bytes):
            return known
        with stages.measure("decode"):
            image = await self._run(lambda: self.embedder.prepare(known))
        with stages.measure("embed"):
            return await self._engine.submit(image)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= MAX_IN_FLIGHT:
            raise OverloadedError(f"{self._in_flight} queries are under way, the most that are taken: try again soon")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


def _known(sought: Sought, snapshot: Snapshot) -> tuple[bytes | Embedding, int]:
    """The image or embedding to look for, and the row that must not be found."""
    if isinstance(sought, bytes):
        return sought, NO_ROW
    if isinstance(sought, str):
        row = snapshot.row(sought)
        return snapshot.vector(row), row
    snapshot.check_queries(sought[np.newaxis])
    return sought, NO_ROW


def _enough(hits: Sequence[Hit], min_score: float | None) -> Sequence[Hit]:
    if min_score is None:
        return hits
    enough = [hit for hit in hits if hit.score >= min_score]
    return [replace(hit, rank=rank) for rank, hit in enumerate(enough, start=1)]
