import asyncio
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import GalleryNotFoundError, OverloadedError, QueryError
from reidserve.index import Condition, Entry, Filter, Origin, Record, open_gallery, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.server.pipeline import MAX_IN_FLIGHT, Pipeline, Question
from reidserve.server.ranker import Query, Shortlist, rank_together
from tests.conftest import unit_rows
from tests.test_batcher import Gate
from tests.test_store import record


@pytest.fixture
def gate(model: Path) -> Gate:
    return Gate(OnnxSession((model / MODEL_FILE).read_bytes()))


@pytest.fixture
async def pipeline(model: Path, gallery: Path, gate: Gate):
    running = Pipeline(Embedder(read_artifact(model).contract, gate), {"crops": open_gallery(gallery)})
    yield running
    gate.opened.set()
    await running.close()


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
    for query, found in zip(queries, rank_together(queries), strict=True):
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
    answers = rank_together([Query(snapshot, vector, 3, where) for where in asked])
    assert [len(found.hits) for found in answers] == [3, 0, 3, 0, 0]


def numbered(number: int):
    return record(f"n{number}", number)


async def test_more_queries_than_are_admitted_are_refused_at_once_and_the_rest_answered(pipeline, gate, crops: Path):
    data = sorted(crops.iterdir())[0].read_bytes()
    waiting = [asyncio.create_task(pipeline.search(data, Question(top_k=3))) for _ in range(MAX_IN_FLIGHT)]
    await asyncio.sleep(0.5)
    with pytest.raises(OverloadedError, match=f"{MAX_IN_FLIGHT} queries are under way"):
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
    assert pipeline._in_flight == 1
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert pipeline._in_flight == 0


def test_shortlists_of_other_lengths_ranked_together_are_each_its_own(gallery: Path):
    snapshot = read_snapshot(gallery, identity=None)
    vector = snapshot.vector(int(snapshot.rows()[0]))
    queries = [Query(snapshot, vector, 3, shortlist=Shortlist(length)) for length in (3, len(snapshot))]
    together = rank_together(queries)
    for query, found in zip(queries, together, strict=True):
        assert found == rank_together([query])[0]
    short, long = ([hit.reranked_distance for hit in found.hits] for found in together)
    assert short != long


async def test_a_refresh_lets_go_of_states_that_nobody_asks_for(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    name, snapshot = pipeline.gallery("")
    pipeline.gallery(name, snapshot.generation)
    await pipeline.refresh()
    assert len(pipeline._pins._kept) == 1
    monkeypatch.setattr("reidserve.server.pins.KEPT_SECONDS", -1.0)
    await pipeline.refresh()
    assert not pipeline._pins._kept
