import asyncio
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import (
    DeadlineError,
    EngineStuckError,
    EntryNotFoundError,
    GalleryNotFoundError,
    GenerationGoneError,
    ImageError,
    NoThresholdError,
    OverloadedError,
    QueryError,
    ReidError,
)
from reidserve.index import Condition, Entry, Filter, Origin, Record, open_gallery, read_snapshot
from reidserve.index.search.ranking import NO_ROW
from reidserve.index.storage.store import create_store, open_store
from reidserve.index.tracks import pool
from reidserve.server.queries.encoder import Encoded
from reidserve.server.queries.limits import DEFAULTS
from reidserve.server.queries.pipeline import Limits, Pipeline, Question
from reidserve.server.queries.plan import Plan
from reidserve.server.queries.ranker import Query, Shortlist
from tests.conftest import found_together, unit_rows
from tests.test_batcher import Gate
from tests.test_store import record


@pytest.fixture
def gate(model: Path) -> Gate:
    return Gate(OnnxSession((model / MODEL_FILE).read_bytes()))


class Told:
    """A telemetry that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.batches: list[int] = []
        self.reasons: list[str] = []

    def stage(self, name: str, seconds: float) -> None:
        assert seconds >= 0
        self.stages.append(name)

    def batch(self, images: int, seconds: float) -> None:
        assert seconds > 0
        self.batches.append(images)

    def rejected(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def start(model: Path, gallery: Path, gate: Gate, told: Told):
    """Pipelines of `gallery` whose engine waits for the gate, with limits or a threshold of one's own."""
    running = []

    def begin(limits: Limits = DEFAULTS, *, folder: Path = gallery, threshold: float | None = None) -> Pipeline:
        embedder = Embedder(read_artifact(model).contract, gate)
        galleries = {"crops": open_gallery(folder)}
        running.append(Pipeline(embedder, galleries, threshold=threshold, limits=limits, telemetry=told))
        return running[-1]

    yield begin
    gate.opened.set()
    for pipeline in running:
        await pipeline.close()


@pytest.fixture
async def pipeline(start):
    return start()


@pytest.fixture
def images(crops: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(crops.iterdir())]


def found(answer) -> list[tuple[str, float]]:
    return [(hit.entry.id, hit.score) for hit in answer.hits]


async def fill(pipeline: Pipeline, data: bytes, count: int) -> list[asyncio.Task]:
    """Searches that wait: the first in the engine, which is closed, the others before it."""
    waiting = [asyncio.create_task(pipeline.search(data, Question(top_k=3)))]
    await asyncio.sleep(0.05)
    waiting += [asyncio.create_task(pipeline.search(data, Question(top_k=3))) for _ in range(count - 1)]
    await asyncio.sleep(0.1)
    return waiting


def test_queries_ranked_together_get_what_each_gets_alone(gallery: Path, tmp_path: Path, model: Path):
    other = create_store(
        tmp_path / "other.gallery", Origin(read_artifact(model).contract.identity, "fp32/onnxruntime-cpu", 24)
    )
    rows = unit_rows(np.random.default_rng(1), 30, 24)
    other.upsert(
        [type(one)(one.entry, one.content_sha256, row) for one, row in zip(map(numbered, range(30)), rows, strict=True)]
    )
    snapshots = [read_snapshot(gallery), read_snapshot(other.folder)]
    embeddings = unit_rows(np.random.default_rng(2), 20, 24)
    queries = [Query(snapshots[place % 2], row, 1 + place // 4 * 9) for place, row in enumerate(embeddings)]
    for query, found in zip(queries, found_together(queries), strict=True):
        (alone,) = query.snapshot.hits(query.snapshot.search(query.embedding[np.newaxis], top_k=query.top_k))
        assert (found.hits, found.best) == (alone, alone[0].score)
        assert len(found.hits) == min(query.top_k, len(query.snapshot))
    other.close()


def test_filters_that_python_takes_for_equal_are_kept_apart(tmp_path: Path):
    """1 is True to Python, and a filter's 1 is not."""
    vectors = unit_rows(np.random.default_rng(3), 4, 24)
    entries = [Entry(f"n{place}", attributes={"gate": True}) for place in range(4)]
    with closing(create_store(tmp_path / "gates.gallery", Origin("0" * 64, "fp32/onnxruntime-cpu", 24))) as store:
        store.upsert([Record(one, bytes(32), vector) for one, vector in zip(entries, vectors, strict=True)])
    snapshot = read_snapshot(tmp_path / "gates.gallery")
    vector = vectors[0]
    asked = [None, *(Filter(attributes=(Condition("gate", "==", (value,)),)) for value in (1, True, 1.0, False))]
    answers = found_together([Query(snapshot, vector, 3, where) for where in asked])
    assert [len(found.hits) for found in answers] == [3, 0, 3, 0, 0]


def numbered(number: int):
    return record(f"n{number}", number)


async def test_more_queries_than_are_admitted_are_refused_at_once_and_the_rest_answered(pipeline, gate, crops: Path):
    data = sorted(crops.iterdir())[0].read_bytes()
    most = pipeline.limits.images_in_flight
    waiting = [asyncio.create_task(pipeline.search(data, Question(top_k=3))) for _ in range(most)]
    await asyncio.sleep(0.5)
    with pytest.raises(OverloadedError, match=f"{most} images are under way and 1 came"):
        await pipeline.search(data, Question(top_k=3))
    gate.opened.set()
    answers = await asyncio.gather(*waiting)
    assert {tuple(hit.entry.id for hit in answer.hits) for answer in answers} == {
        tuple(hit.entry.id for hit in answers[0].hits)
    }
    assert len((await pipeline.search(data, Question(top_k=3))).hits) == 3


async def test_a_wrong_query_is_refused_before_the_model_is_run(pipeline, gate, crops: Path):
    gate.opened.set()
    data = sorted(crops.iterdir())[0].read_bytes()
    with pytest.raises(QueryError, match="top_k"):
        await pipeline.search(data, Question(top_k=0))
    with pytest.raises(GalleryNotFoundError, match="no gallery 'mall' here, there is crops"):
        await pipeline.search(data, Question(gallery="mall", top_k=1))
    assert gate.batches == []


async def test_a_caller_that_gives_up_frees_its_place(pipeline, gate, crops: Path):
    data = sorted(crops.iterdir())[0].read_bytes()
    asking = asyncio.create_task(pipeline.search(data, Question(top_k=3)))
    await asyncio.sleep(0.1)
    assert pipeline.in_flight == 1
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert pipeline.in_flight == 0


def test_shortlists_of_other_lengths_ranked_together_are_each_its_own(gallery: Path):
    snapshot = read_snapshot(gallery, identity=None)
    vector = snapshot.vector(int(snapshot.rows()[0]))
    queries = [Query(snapshot, vector, 3, shortlist=Shortlist(length)) for length in (3, len(snapshot))]
    together = found_together(queries)
    for query, found in zip(queries, together, strict=True):
        assert found == found_together([query])[0]
    short, long = ([hit.reranked_distance for hit in found.hits] for found in together)
    assert short != long


async def test_a_refresh_lets_go_of_states_that_nobody_asks_for(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    name, snapshot = pipeline.gallery("")
    pipeline.gallery(name, snapshot.generation)
    await pipeline.refresh()
    assert len(pipeline._states.pins._kept) == 1
    monkeypatch.setattr("reidserve.server.queries.pins.KEPT_SECONDS", -1.0)
    await pipeline.refresh()
    assert not pipeline._states.pins._kept


async def test_a_call_of_many_images_is_admitted_as_many_and_whole_or_not_at_all(start, gate, images, told):
    pipeline = start(Limits(images_in_flight=20, images_per_call=12))
    waiting = await fill(pipeline, images[0], 10)
    batch = [(data, Question()) for data in images[:12]]
    with pytest.raises(OverloadedError, match="10 images are under way and 12 came, the most that are taken is 20"):
        await pipeline.search_batch(batch)
    with pytest.raises(OverloadedError, match="10 images are under way and 11 came"):
        await pipeline.search(tuple(images[:11]), Question())
    with pytest.raises(QueryError, match="a call may have 12 images, got 13"):
        await pipeline.search_batch([*batch, (images[0], Question())])
    assert told.reasons == ["OVERLOADED"] * 2
    allowed = asyncio.create_task(pipeline.search_batch(batch[:10]))
    await asyncio.sleep(0.05)
    assert pipeline.in_flight == 20
    gate.opened.set()
    assert len(await allowed) == 10
    await asyncio.gather(*waiting)
    assert pipeline.in_flight == 0


async def test_searches_of_a_batch_are_answered_as_each_alone_and_go_together(start, gate, images):
    gate.opened.set()
    pipeline = start()
    vector = await pipeline.embed(images[5])
    gate.batches.clear()
    asked = [
        (images[0], Question(top_k=4)),
        (b"no image", Question()),
        ("0003_c1s1_000000_00.png", Question(top_k=2)),
        (images[1], Question(gallery="mall")),
        (vector[0], Question(top_k=3)),
        ((images[2], images[3]), Question(top_k=5, group_by_pid=True)),
        ("nobody", Question()),
        (images[4], Question(top_k=0)),
    ]
    answers = await pipeline.search_batch(asked)
    assert gate.batches == [3]
    kinds = [type(answer) if isinstance(answer, ReidError) else answer.batch_size for answer in answers]
    assert kinds == [3, ImageError, 0, GalleryNotFoundError, 0, 3, EntryNotFoundError, QueryError]
    for (sought, question), answer in zip(asked, answers, strict=True):
        if isinstance(answer, ReidError):
            with pytest.raises(type(answer), match=str(answer)):
                await pipeline.search(sought, question)
        else:
            alone = await pipeline.search(sought, question)
            assert (found(alone), alone.best) == (found(answer), answer.best)


async def test_a_track_is_searched_for_by_the_mean_of_its_images(start, gate, images, embedder: Embedder):
    gate.opened.set()
    pipeline = start()
    track = tuple(images[:3])
    answer = await pipeline.search(track, Question(top_k=40))
    assert (gate.batches, answer.batch_size, len(answer.hits)) == ([3], 3, 40)
    (pooled,), _ = pool(embedder.embed_encoded(track), ["one"] * 3)
    assert found(answer) == found(await pipeline.search(pooled, Question(top_k=40)))
    plain = embedder.embed_encoded(track).mean(axis=0)
    np.testing.assert_allclose(answer.best, max(pipeline.gallery("")[1].vector(int(row)) @ plain for row in
        pipeline.gallery("")[1].rows()) / np.linalg.norm(plain), rtol=1e-5)  # fmt: skip
    one = await pipeline.search((images[7],), Question(top_k=5))
    assert found(one) == found(await pipeline.search(images[7], Question(top_k=5)))


async def test_a_track_that_cannot_be_pooled_is_refused_in_words(start, gate, images):
    gate.opened.set()
    pipeline = start()
    with pytest.raises(ImageError, match="image 2 of the track: expected a JPEG"):
        await pipeline.search((images[0], b"no image"), Question())
    with pytest.raises(QueryError, match="a track must have images, got none"):
        await pipeline.search((), Question())
    vector = (await pipeline.embed(images[0]))[0]
    nothing = Plan(Question(), pipeline.gallery("")[1], (b"", b""), None, NO_ROW, -1.0)
    refused = nothing.query([Encoded(vector, 1, 0.0), Encoded(-vector, 1, 0.0)])
    assert isinstance(refused, QueryError)
    assert "the images of the track have nothing in common" in str(refused)


async def test_what_is_late_is_told_so_and_costs_no_batch(start, gate, images, told):
    pipeline = start()
    first = await fill(pipeline, images[0], 1)
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match="not answered before its deadline"):
        await pipeline.search(images[1], Question(), deadline=begun + 0.1)
    assert 0.1 <= time.monotonic() - begun < 2
    with pytest.raises(DeadlineError):
        await pipeline.embed(images[1], deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineError):
        await pipeline.embed_for_import(images[:3], deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineError):
        async with pipeline.rank(images[1], Question(), deadline=time.monotonic() + 0.05):
            raise AssertionError("not ranked")
    with pytest.raises(DeadlineError, match="after its deadline"):
        await pipeline.search(images[1], Question(), deadline=time.monotonic() - 1)
    assert pipeline.in_flight == 1
    gate.opened.set()
    await asyncio.gather(*first)
    assert gate.batches == [1]
    assert told.reasons == ["DEADLINE_EXCEEDED"]


async def test_what_cannot_be_in_time_at_the_measured_pace_is_refused_at_once(start, gate, images):
    pipeline = start()
    waiting = await fill(pipeline, images[0], 9)
    pipeline._queries._pace.add(1.0, 10)
    with pytest.raises(DeadlineError, match="9 images are under way, which takes 1.0 s, and the call has 0.[45] s"):
        await pipeline.search(images[1], Question(), deadline=time.monotonic() + 0.5)
    allowed = asyncio.create_task(pipeline.search(images[1], Question(), deadline=time.monotonic() + 20))
    await asyncio.sleep(0.05)
    gate.opened.set()
    await asyncio.gather(*waiting, allowed)


async def test_an_image_that_nobody_waits_for_is_not_decoded(model: Path, gallery: Path, gate: Gate, images):
    go, decoded = threading.Event(), []

    class Slow(Embedder):
        def prepare(self, data):
            go.wait(10)
            decoded.append(data)
            return super().prepare(data)

    embedder = Slow(read_artifact(model).contract, gate)
    pipeline = Pipeline(embedder, {"crops": open_gallery(gallery)}, limits=Limits(decoders=1))
    gate.opened.set()
    asking = [asyncio.create_task(pipeline.embed(data)) for data in images[:6]]
    await asyncio.sleep(0.05)
    for task in asking[2:]:
        task.cancel()
    await asyncio.sleep(0.01)
    go.set()
    await asyncio.gather(*asking, return_exceptions=True)
    assert sorted(decoded) == sorted(images[:2])
    await pipeline.close()


async def test_imports_have_places_of_their_own_and_go_behind_queries(start, gate, images, embedder: Embedder):
    pipeline = start(Limits(images_in_flight=5, images_per_call=5, imports_in_flight=20))
    first = await fill(pipeline, images[0], 1)
    importing = asyncio.create_task(pipeline.embed_for_import([*images[:19], b"no image"]))
    await asyncio.sleep(0.2)
    with pytest.raises(OverloadedError, match="20 images are under way and 1 came, the most that are taken is 20"):
        await pipeline.embed_for_import(images[:1])
    asking = [asyncio.create_task(pipeline.search(data, Question(top_k=3))) for data in images[:4]]
    await asyncio.sleep(0.1)
    assert pipeline.in_flight == 5
    gate.opened.set()
    await asyncio.gather(*asking, *first)
    embedded = await importing
    np.testing.assert_array_equal(np.stack(embedded[:19]), embedder.embed_encoded(images[:19]))
    assert isinstance(embedded[19], ImageError)
    # Of those behind, one goes at a time: the four are the queries.
    assert gate.batches[:2] == [1, 4]
    assert sum(gate.batches) == 1 + 4 + 19


async def test_a_stuck_engine_is_told_of_and_queries_without_images_go_on(start, gate, images):
    pipeline = start(Limits(stuck_seconds=0.2))
    vector = pipeline.gallery("")[1].vector(1)
    waiting = await fill(pipeline, images[0], 6)
    assert not pipeline.stuck
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in answers} == {EngineStuckError}
    assert pipeline.stuck
    begun = time.monotonic()
    for ask in (pipeline.search(images[0], Question()), pipeline.embed(images[0]), pipeline.embed_for_import(images)):
        with pytest.raises(EngineStuckError, match="the engine has been computing one batch for more than 0.2 s"):
            await ask
    assert time.monotonic() - begun < 0.1
    assert len((await pipeline.search(vector, Question(top_k=3))).hits) == 3
    gate.opened.set()
    async with asyncio.timeout(10):
        while pipeline.stuck:
            await asyncio.sleep(0.01)
    assert len((await pipeline.search(images[0], Question(top_k=3))).hits) == 3


async def test_a_pipeline_whose_engine_is_stuck_can_be_closed(start, gate, images):
    pipeline = start(Limits(stuck_seconds=0.1))
    waiting = await fill(pipeline, images[0], 2)
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(5):
        await pipeline.close()


async def test_only_matches_are_hits_that_reach_the_threshold(start, gate, images):
    gate.opened.set()
    with pytest.raises(NoThresholdError, match="no calibrated threshold: ask with a min_score"):
        await start().search(images[0], Question(only_matches=True))
    every = await start(threshold=0.5).search(images[0], Question(top_k=40))
    scores = [hit.score for hit in every.hits]
    pipeline = start(threshold=scores[6])
    answer = await pipeline.search(images[0], Question(top_k=40, only_matches=True))
    assert found(answer) == found(every)[:7]
    assert answer.best == scores[0]
    higher = await pipeline.search(images[0], Question(top_k=40, only_matches=True, min_score=scores[2]))
    assert found(higher) == found(every)[:3]
    lower = await pipeline.search(images[0], Question(top_k=40, only_matches=True, min_score=scores[9]))
    assert found(lower) == found(every)[:7]


async def test_a_generation_is_waited_for_until_the_deadline(start, gate, tmp_path: Path, model: Path):
    folder = tmp_path / "growing.gallery"
    origin = Origin(read_artifact(model).contract.identity, "fp32/onnxruntime-cpu", 24)
    rows = unit_rows(np.random.default_rng(4), 2, 24)
    with closing(create_store(folder, origin)) as store:
        store.upsert([Record(Entry("n0"), bytes(32), rows[0])])
    pipeline = start(folder=folder)
    now = pipeline.gallery("")[1].generation
    assert (await pipeline.search(rows[0], Question(min_generation=now))).generation == now
    with pytest.raises(
        GenerationGoneError, match=f"'crops' is at generation {now}, and {now + 1} was waited for in vain"
    ):
        await pipeline.search(rows[0], Question(min_generation=now + 1), deadline=time.monotonic() + 0.1)
    asking = asyncio.create_task(pipeline.search(rows[1], Question(min_generation=now + 1)))
    await asyncio.sleep(0.1)
    assert not asking.done()
    with closing(open_store(folder, write=True)) as store:
        store.upsert([Record(Entry("n1"), bytes(32), rows[1])])
    answer = await asking
    assert (answer.generation, answer.hits[0].entry.id) == (now + 1, "n1")
    with pytest.raises(QueryError, match=f"generation {now} was asked for, and min_generation {now + 1}"):
        Question(generation=now, min_generation=now + 1)


async def test_stages_batches_and_nothing_else_are_told(start, gate, images, told):
    gate.opened.set()
    pipeline = start()
    answer = await pipeline.search(images[0], Question())
    assert list(answer.stages.seconds) == told.stages == ["decode", "embed", "search"]
    assert all(seconds > 0 for seconds in answer.stages.seconds.values())
    assert (told.batches, told.reasons, answer.batch_size) == ([1], [], 1)
    await pipeline.search_batch([(data, Question()) for data in images[:2]])
    assert told.stages == ["decode", "embed", "search"] * 2
    assert told.batches == [1, 2]
    await pipeline.search("0003_c1s1_000000_00.png", Question())
    assert told.stages[6:] == ["search"]


async def test_a_pipeline_may_be_closed_without_its_galleries_and_another_go_on(start, gate, images, gallery: Path):
    gate.opened.set()
    first = start()
    opened = first.galleries
    await first.close(galleries=False)
    second = Pipeline(first.embedder, opened)
    await second.refresh()
    assert len((await second.search(images[0], Question(top_k=3))).hits) == 3
    await second.close()


async def test_the_engine_is_given_no_more_at_once_than_the_limit(start, gate, images):
    pipeline = start(Limits(images_per_batch=3))
    waiting = await fill(pipeline, images[0], 8)
    gate.opened.set()
    answers = await asyncio.gather(*waiting)
    assert gate.batches == [1, 3, 3, 1]
    assert sorted(answer.batch_size for answer in answers) == [1, 1, 3, 3, 3, 3, 3, 3]


class Lanes:
    """A session of two lanes, whose first calls wait until both are under way."""

    engine = "fp32/onnxruntime-cpu"
    max_batch = 6
    lanes = 2

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self._both = threading.Barrier(2, timeout=10)
        self.batches: list[int] = []

    def __call__(self, batch, /):
        self.batches.append(len(batch))
        if len(self.batches) <= 2:
            self._both.wait()
        return self._session(batch)


async def test_each_lane_of_an_engine_computes_a_share_of_what_waits(model: Path, gallery: Path, images):
    lanes = Lanes(OnnxSession((model / MODEL_FILE).read_bytes()))
    pipeline = Pipeline(Embedder(read_artifact(model).contract, lanes), {"mall": open_gallery(gallery)})
    asked = [pipeline.embed(images[place % len(images)]) for place in range(8)]
    found = await asyncio.gather(*asked)
    for (embedding, _), data in zip(found, [images[place % len(images)] for place in range(8)], strict=True):
        np.testing.assert_array_equal(embedding, lanes._session(pipeline.embedder.prepare(data)[np.newaxis])[0])
    assert sum(lanes.batches) == 8
    assert max(lanes.batches) <= 3
    await pipeline.close()


async def test_hits_may_be_as_many_as_the_limit(start, gate, images):
    gate.opened.set()
    pipeline = start(Limits(top_k=5))
    assert len((await pipeline.search(images[0], Question(top_k=5))).hits) == 5
    with pytest.raises(QueryError, match="top_k must be 1 to 5, got 6"):
        await pipeline.search(images[0], Question(top_k=6))
