"""The service over real gRPC, on a gallery whose entries have times and attributes."""

import asyncio
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from reidserve.client import Client
from reidserve.client import Filter as Asked
from reidserve.client.filters import filter_message
from reidserve.errors import RequestError
from reidserve.index import Entry, Filter, Origin, Record, Snapshot, open_gallery, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.messages import read_filter
from reidserve.server.pipeline import Pipeline
from reidserve.server.service import SERVICE, SearchService
from tests.conftest import DIM, unit_rows
from tests.test_messages import WRONG

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
MICROSECONDS = int(NOON.timestamp()) * 1_000_000


def entry(number: int, rng: np.random.Generator) -> Entry:
    """An entry of which each thing may be unknown."""

    def known(value):
        return value if rng.random() < 0.8 else None

    attributes = {
        "speed": known(int(rng.integers(0, 60))),
        "height": known(float(rng.normal(1.7, 0.1))),
        "colour": known(str(rng.choice(["red", "blue", "green"]))),
        "parked": known(bool(rng.integers(2))),
        "mixed": known([1, True, 1.0, "1"][rng.integers(4)]),
    }
    return Entry(
        f"n{number}",
        pid=known(f"{rng.integers(30):04}"),
        camid=known(f"c{rng.integers(5)}"),
        timestamp=known(MICROSECONDS + int(rng.integers(-3600, 3600)) * 1_000_001),
        attributes={name: value for name, value in attributes.items() if value is not None},
    )


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("galleries") / "labelled.gallery"
    with closing(create_store(folder, Origin("0" * 64, "fp32/onnxruntime-cpu", DIM))) as store:
        store.upsert(
            [Record(entry(number, rng), bytes(32), vector) for number, vector in enumerate(unit_rows(rng, 400, DIM))]
        )
    return folder


@pytest.fixture(scope="module")
def snapshot(gallery: Path) -> Snapshot:
    return read_snapshot(gallery)


@pytest.fixture
async def target(gallery, embedder):
    service, server = SearchService(), grpc.aio.server()
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    service.pipeline = Pipeline(embedder, {"labelled": open_gallery(gallery)})
    yield f"127.0.0.1:{port}"
    await server.stop(None)
    await service.pipeline.close()


def random_filter(rng: np.random.Generator) -> Asked:
    def some(*values):
        return [values[place] for place in rng.choice(len(values), rng.integers(len(values) + 1), replace=False)]

    tests = [
        ("speed", str(rng.choice(["==", "<", "<=", ">", ">="])), int(rng.integers(0, 60))),
        ("height", str(rng.choice(["<", "<=", ">", ">="])), float(rng.normal(1.7, 0.1))),
        ("colour", "in", some("red", "blue", "green", "black")),
        ("parked", "==", bool(rng.integers(2))),
        ("mixed", "in", some(1, True, "1")),
        ("nothing", "==", 0),
    ]
    fields = {
        "ids": [f"n{number}" for number in rng.integers(0, 410, 200)],
        "pids": [f"{number:04}" for number in rng.integers(0, 40, 15)],
        "camids": some("c0", "c1", "c2", "c3", "c4", "c5"),
        "not_camids": some("c0", "c1", "c9"),
        "since": NOON + timedelta(microseconds=int(rng.integers(-(10**9), 10**9))),
        "until": NOON + timedelta(microseconds=int(rng.integers(-(10**9), 10**10))),
        "attributes": [tests[place] for place in rng.choice(len(tests), rng.integers(1, 3), replace=False)],
    }
    kept = rng.choice(list(fields), rng.integers(1, 4), replace=False)
    return Asked(**{name: fields[name] for name in kept})


EVERY_ENTRY = [None, Asked(), Asked(not_camids=["nowhere"])]
NO_ENTRY = [Asked(ids=[]), Asked(camids=["nowhere"]), Asked(attributes=[("speed", "in", [])])]


def brute_force(snapshot: Snapshot, query: np.ndarray, top_k: int, where: Filter) -> list[tuple]:
    found = {
        row: one for row, one in zip(snapshot.rows().tolist(), snapshot.entries(), strict=True) if where.accepts(one)
    }
    scored = sorted((-np.vecdot(snapshot.vector(row), query), row) for row in found)
    return [(found[row], -score, rank) for rank, (score, row) in enumerate(scored[:top_k], start=1)]


def as_asked(hits: Iterable[tuple]) -> list[tuple]:
    """Hits as the client has them."""
    return [
        (
            *(one.id, one.pid, one.camid, score, rank),
            None if one.timestamp is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=one.timestamp),
            {name: (type(value), value) for name, value in one.attributes.items()},
        )
        for one, score, rank in hits
    ]


def answers_of(result) -> list[tuple]:
    return [
        (
            *(hit.entry_id, hit.pid, hit.camid, hit.score, hit.rank, hit.timestamp),
            {name: (type(value), value) for name, value in hit.attributes.items()},
        )
        for hit in result.hits
    ]


async def test_a_filtered_search_is_brute_force_over_what_the_filter_accepts(target: str, snapshot: Snapshot):
    rng = np.random.default_rng(8)
    asked = [*EVERY_ENTRY, *NO_ENTRY, *(random_filter(rng) for _ in range(120))]
    queries = unit_rows(rng, len(asked), DIM)
    with Client(target) as client:
        # Asked together, so that queries of several filters stand before the ranker at once.
        results = await asyncio.gather(
            *(
                asyncio.to_thread(client.search_embedding, query.tolist(), 25, where=where)
                for query, where in zip(queries, asked, strict=True)
            )
        )
    sizes = []
    for query, where, result in zip(queries, asked, results, strict=True):
        accepted = Filter() if where is None else read_filter(filter_message(where))
        assert answers_of(result) == as_asked(brute_force(snapshot, query, 25, accepted)), where
        sizes.append(len(result.hits))
    assert sizes[: len(EVERY_ENTRY)] == [25] * len(EVERY_ENTRY)
    assert sizes[len(EVERY_ENTRY) :][: len(NO_ENTRY)] == [0] * len(NO_ENTRY)
    assert len(set(sizes)) > 10, "the filters are all too broad or too narrow to say anything"


async def test_an_entry_outside_the_filter_may_be_searched_with(target: str, snapshot: Snapshot):
    def ask():
        with Client(target) as client:
            return client.search_entry("n7", 400, where=Asked(not_camids=["c1"])), client.search_entry(
                "n7", 5, where=Asked(ids=["n8"])
            )

    broad, narrow = await asyncio.to_thread(ask)
    accepted = {one.id for one in snapshot.entries() if one.camid != "c1"} - {"n7"}
    assert {hit.entry_id for hit in broad.hits} == accepted
    assert [hit.entry_id for hit in narrow.hits] == ["n8"]


@pytest.mark.parametrize(("message", "reason"), WRONG.values(), ids=WRONG)
async def test_a_wrong_filter_is_an_invalid_argument_with_its_reason(target: str, message, reason):
    request = reid_pb2.SearchRequest(entry_id="n1", filter=message)

    def ask():
        with Client(target) as client:
            client._search(request)

    with pytest.raises(RequestError) as refusal:
        await asyncio.to_thread(ask)
    assert (refusal.value.code, refusal.value.reason) == ("INVALID_ARGUMENT", "QUERY_INVALID")
    assert reason in str(refusal.value)


async def test_a_text_that_is_not_unicode_is_no_message(target):
    raw = reid_pb2.SearchRequest(entry_id="n1", filter={"camids": {"any_of": ["c1"]}}).SerializeToString()
    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await channel.unary_unary(f"/{SERVICE}/Search")(raw.replace(b"c1", b"\xff\xff"))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message of reid.v1" in refusal.value.details()


async def test_a_wrong_filter_is_refused_before_the_query_is_looked_at(target):
    """So that a wrong filter costs no decoding and no run of the model."""
    raw = reid_pb2.SearchRequest(image=b"no image", filter={"since": Timestamp(nanos=1)}).SerializeToString()
    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="whole microseconds"):
            await channel.unary_unary(f"/{SERVICE}/Search")(raw)
