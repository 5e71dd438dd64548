"""A query's way through the server: admission, decoding, the engine, the gallery. It knows nothing of gRPC."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from reidserve.embed import Embedder, Embedding, encode_png
from reidserve.errors import DeadlineError, EntryNotFoundError, QueryError, ReidError
from reidserve.index import Gallery, Ranking, Snapshot
from reidserve.index.search.ranking import NO_ROW
from reidserve.server.queries.admission import Admission
from reidserve.server.queries.batcher import settled
from reidserve.server.queries.encoder import Encoded, Encoder
from reidserve.server.queries.limits import DEFAULTS, Limits
from reidserve.server.queries.pins import Pins
from reidserve.server.queries.plan import Plan, plan
from reidserve.server.queries.question import Answer, Kept, Listing, Question, Sought, Stages, Track
from reidserve.server.queries.ranker import Query
from reidserve.server.queries.rankers import MAX_WHOLE, Rankers
from reidserve.server.queries.recent import Figures, Recent
from reidserve.server.queries.states import WAIT_SECONDS, States
from reidserve.server.queries.telemetry import SILENT, Telemetry
from reidserve.server.queries.thumbnails import Thumbnails

__all__ = ["MAX_WHOLE", "Answer", "Limits", "Listing", "Pipeline", "Question", "Sought", "Stages", "Telemetry", "Track"]


class Pipeline:
    """One model and the galleries of its identity, answering queries within limits.

    Queries go ahead of imports in the decoders and in the engine. What is cancelled or past its deadline leaves
    every queue at once. Deadlines are on time.monotonic's clock.

    Attributes:
        embedder: the model.
        galleries: by name.
        threshold: the score from which on two images are said to be of one identity; None where nobody calibrated it.
        limits: how much it takes at once.
        pins: states of the galleries that are kept; another pipeline of the same galleries may have them too.
    """

    def __init__(
        self,
        embedder: Embedder,
        galleries: Mapping[str, Gallery],
        *,
        threshold: float | None = None,
        limits: Limits = DEFAULTS,
        telemetry: Telemetry = SILENT,
        pins: Pins | None = None,
        sources: Path | None = None,
    ) -> None:
        self.embedder = embedder
        self.galleries = galleries
        self.threshold = threshold
        self.limits = limits
        self._recent = telemetry = Recent(telemetry)
        self._encoder = Encoder(embedder, limits, telemetry)
        kinds = {gallery.snapshot.in_memory for gallery in galleries.values()}
        self._rankers = {in_memory: Rankers(in_memory=in_memory) for in_memory in kinds}
        self._whole_places = asyncio.Semaphore(MAX_WHOLE)
        self.pins = Pins() if pins is None else pins
        self._states = States(galleries, self.pins)
        self._thumbnails = Thumbnails(sources)
        self._queries = Admission(
            most=limits.images_in_flight, seconds=limits.queue_seconds, load=self._encoder.at_once, telemetry=telemetry
        )
        self._imports = Admission(
            most=limits.imports_in_flight, seconds=math.inf, load=self._encoder.at_once, telemetry=telemetry
        )

    @property
    def stuck(self) -> bool:
        """Whether the engine does not come back from a batch."""
        return self._encoder.stuck

    @property
    def cut_off(self) -> bool:
        """Whether none of the galleries answers, as their servers are away."""
        return len(self._states.away) == len(self.galleries)

    @property
    def figures(self) -> Figures:
        """What it did in the last seconds."""
        return self._recent.figures()

    @property
    def in_flight(self) -> int:
        """How many images of queries are under way."""
        return self._queries.under_way

    @property
    def waiting(self) -> int:
        """How many images, of queries and imports, wait for a decoder or for the engine."""
        return self._encoder.waiting

    def check_places(self, deadline: float | None = None) -> None:
        """See that a query would be let in now, so that nobody need read one that would not.

        Raises:
            OverloadedError, DeadlineError: as in `search`.
        """
        self._queries.check(1, deadline)

    async def search(self, sought: Sought, question: Question, *, deadline: float | None = None) -> Answer:
        """Rank a gallery, or what of it a filter lets through.

        Raises:
            ImageError, EmbeddingError: the image is none, or the model fails on it.
            EntryNotFoundError: there is no such entry.
            QueryError: the embedding is no unit vector of the gallery's dimensions, or the question cannot be asked.
            NoThresholdError: only matches were asked for, and there is no threshold.
            GenerationGoneError: the state that was asked for is served no more, or was waited for in vain.
            OverloadedError: too many images are under way.
            DeadlineError: there is no answer in time.
            EngineStuckError: the engine does not come back from a batch.
            BackendUnavailableError: another machine computes, and is away or late.
        """
        (answer,) = await self.search_batch([(sought, question)], deadline=deadline)
        if isinstance(answer, ReidError):
            raise answer
        return answer

    async def search_batch(
        self, asked: Sequence[tuple[Sought, Question]], *, deadline: float | None = None
    ) -> list[Answer | ReidError]:
        """What `search` says to each, in order; they are let in together or not at all, and go together.

        Raises:
            QueryError: they are more images than one call may have.
            OverloadedError, DeadlineError, EngineStuckError: as in `search`, for all of them.
        """
        stages = Stages()
        until = min(time.monotonic() + WAIT_SECONDS, math.inf if deadline is None else deadline)
        plans = [await self._plan(sought, question, until) for sought, question in asked]
        good = [one for one in plans if isinstance(one, Plan)]
        images = sum(one.places for one in good)
        if images > self.limits.images_per_call:
            raise QueryError(
                f"a call may have {self.limits.images_per_call} images, got {images}: ask in several calls"
            )
        if not good:
            return [one for one in plans if isinstance(one, ReidError)]
        with self._queries.admitted(images, deadline):
            async with _in_time(deadline):
                answers = iter(await self._answers(good, stages))
        return [one if isinstance(one, ReidError) else next(answers) for one in plans]

    @asynccontextmanager
    async def rank(
        self, sought: Sought, question: Question, *, deadline: float | None = None
    ) -> AsyncIterator[tuple[Ranking, int]]:
        """A whole gallery, or all of it that a filter lets through, ranked (1, n), and its generation.

        The ranking has one of MAX_WHOLE places until the block ends; whoever gets none waits. Of the question, only
        the gallery, the filter and the generation matter. The deadline is that of the ranking, not of the block.

        Raises:
            IncompleteRankingError: the gallery's index answers its best hits only.
            ImageError, EmbeddingError, EntryNotFoundError, QueryError, OverloadedError, DeadlineError,
            EngineStuckError: as in `search`.
        """
        snapshot = self.gallery(question.gallery, question.generation)[1]
        snapshot.check_ranks_all()
        one = await self._planned(sought, question, snapshot)
        async with AsyncExitStack() as held:
            held.enter_context(self._queries.admitted(one.places, deadline))
            async with _in_time(deadline):
                (encoded,) = await self._encoded([one], Stages())
                query = one.query(encoded)
                if isinstance(query, ReidError):
                    raise query
                await held.enter_async_context(self._whole_places)
                ranking = await self._rankers[snapshot.in_memory].rank_whole(query)
            yield ranking, snapshot.generation

    def matches(self, answer: Answer) -> bool | None:
        """Whether an answer's best score reaches the threshold; None where there is none."""
        if self.threshold is None:
            return None
        return answer.best is not None and answer.best >= self.threshold

    async def embed(self, data: bytes, *, deadline: float | None = None) -> tuple[Embedding, Stages]:
        """The embedding (dim,) of an encoded image.

        Raises:
            ImageError, EmbeddingError: the image is none, or the model fails on it.
            OverloadedError, DeadlineError, EngineStuckError: as in `search`.
        """
        stages = Stages()
        with self._queries.admitted(1, deadline):
            async with _in_time(deadline):
                (encoded,) = await self._encoder.encode([data], stages)
        self._tell(stages, answered=not isinstance(encoded, ReidError))
        if isinstance(encoded, ReidError):
            raise encoded
        return encoded.embedding, stages

    async def preview(self, data: bytes, *, deadline: float | None = None) -> bytes:
        """An encoded image as the network sees it, decoded and resized: a PNG.

        Raises:
            ImageError: the image is none.
            OverloadedError, DeadlineError: as in `search`.
        """
        with self._queries.admitted(1, deadline):
            async with _in_time(deadline):
                return await asyncio.to_thread(encode_png, await self._encoder.prepare(data))

    async def embed_for_import(
        self, images: Sequence[bytes], *, deadline: float | None = None
    ) -> list[Embedding | ReidError]:
        """The embedding (dim,) of each encoded image, or what was wrong with it.

        They have places of their own and go behind queries, by the rule of `Batcher`.

        Raises:
            OverloadedError: too many images of imports are under way.
            DeadlineError, EngineStuckError: as in `search`.
        """
        with self._imports.admitted(len(images), deadline):
            async with _in_time(deadline):
                encoded = await self._encoder.encode(images, Stages(), behind=True)
        return [one if isinstance(one, ReidError) else one.embedding for one in encoded]

    def gallery(self, name: str, generation: int | None = None) -> tuple[str, Snapshot]:
        """The name of a gallery and its state at a generation, which is kept for a while, or its newest one.

        Raises:
            GalleryNotFoundError: there is none of that name.
            GenerationGoneError: it is not at that generation, and no such state is kept.
        """
        name = self._states.resolve(name)
        return name, self._states.at(name, generation)

    async def entry(self, gallery: str, generation: int | None, entry_id: str) -> tuple[Kept, int]:
        """An entry with its embedding, and the generation that it is of.

        Raises:
            EntryNotFoundError: there is no such entry.
            GalleryNotFoundError, GenerationGoneError: there is no such gallery, or it is not at that generation.
        """
        _, snapshot = self.gallery(gallery, generation)
        return await self._states.ask(snapshot, partial(_kept, snapshot, entry_id)), snapshot.generation

    async def entries(self, gallery: str, generation: int | None, *, after: int = NO_ROW, most: int) -> Listing:
        """At most so many entries of a gallery behind a row; the state is kept for a while, to be asked for more.

        Raises:
            GalleryNotFoundError, GenerationGoneError: there is no such gallery, or it is not at that generation.
            OverloadedError: too many images are under way.
        """
        with self._queries.admitted(1):
            return await self._states.entries(gallery, generation, after=after, most=most)

    async def thumbnail(self, gallery: str, entry_id: str) -> bytes:
        """The thumbnail of an entry of a gallery, as it is encoded; `sources` of ours may be shown where it has none.

        Raises:
            GalleryNotFoundError, EntryNotFoundError, ThumbnailNotFoundError: there is none.
        """
        return await self._thumbnails.of(self.galleries[self._states.resolve(gallery)], entry_id)

    async def refresh(self) -> None:
        """Let every gallery catch up with what other processes have written.

        Raises:
            GalleryError: a gallery is damaged; its last good state goes on being served, and the others are fresh.
        """
        await self._states.refresh()

    async def close(self, *, galleries: bool = True) -> None:
        """Stop the threads and close the galleries, unless another pipeline goes on with them.

        Nobody may be waiting any more. An engine that is stuck is left behind.
        """
        await self._encoder.close()
        for rankers in self._rankers.values():
            await rankers.close()
        self._states.close()
        self._thumbnails.close()
        for gallery in self.galleries.values() if galleries else ():
            gallery.close()

    async def _plan(self, sought: Sought, question: Question, until: float) -> Plan | ReidError:
        try:
            name = self._states.resolve(question.gallery)
            if question.generation is None and question.min_generation is not None:
                snapshot = await self._states.reach(name, question.min_generation, until=until)
            else:
                snapshot = self._states.at(name, question.generation)
            return await self._planned(sought, question, snapshot)
        except ReidError as error:
            return error

    async def _planned(self, sought: Sought, question: Question, snapshot: Snapshot) -> Plan:
        work = partial(plan, sought, question, snapshot, threshold=self.threshold, most_hits=self.limits.top_k)
        return await self._states.ask(snapshot, work)

    async def _answers(self, plans: Sequence[Plan], stages: Stages) -> list[Answer | ReidError]:
        encoded = await self._encoded(plans, stages)
        queries = [one.query(mine) for one, mine in zip(plans, encoded, strict=True)]
        with stages.measure("search"):
            asked = [query for query in queries if isinstance(query, Query)]
            ranking = [self._rankers[query.snapshot.in_memory].rank(query) for query in asked]
            ranked = await settled(ranking)
        found = iter(ranked)
        self._tell(stages, answered=bool(ranking))
        return [
            query if isinstance(query, ReidError) else one.answer(next(found), mine, stages)
            for query, one, mine in zip(queries, plans, encoded, strict=True)
        ]

    async def _encoded(self, plans: Sequence[Plan], stages: Stages) -> list[list[Encoded | ReidError]]:
        """What became of each plan's images, which go together."""
        images = [image for one in plans for image in one.images]
        encoded = iter(await self._encoder.encode(images, stages) if images else ())
        return [list(islice(encoded, len(one.images))) for one in plans]

    def _tell(self, stages: Stages, *, answered: bool) -> None:
        for name, seconds in stages.seconds.items():
            self._recent.stage(name, seconds)
        if answered:
            self._recent.answered(stages.total)


def _kept(snapshot: Snapshot, entry_id: str) -> Kept:
    row, entry = snapshot.row(entry_id), snapshot.find(entry_id)
    if entry is None:
        raise EntryNotFoundError(f"the gallery has no entry {entry_id!r}")
    return Kept(row, entry, snapshot.vector(row))


@asynccontextmanager
async def _in_time(deadline: float | None) -> AsyncIterator[None]:
    """What is not done by then, on time.monotonic's clock, is cancelled."""
    try:
        # asyncio's loop has the same clock.
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise DeadlineError("the call was not answered before its deadline: give it more time") from error
