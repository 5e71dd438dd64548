"""The service over real gRPC, on a gallery whose entries have times and attributes."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from reidserve.client import Client, Hit, Rerank
from reidserve.client import Filter as Asked
from reidserve.client.filters import filter_message
from reidserve.embed import Check, Flavour
from reidserve.errors import ReloadError
from reidserve.index import Entry, Filter, Gallery, Origin, Record, Snapshot, open_gallery, read_snapshot
from reidserve.index.rerank import Reranking, rerank
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.proto.reid.v1.reid_pb2_grpc import GalleryServiceStub, SearchServiceStub
from reidserve.server.call import Call, Caller
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.gate import Gate
from reidserve.server.queries.pipeline import Pipeline
from reidserve.server.telemetry import Telemetry
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.handlers import handlers
from reidserve.server.wire.messages import read_filter
from reidserve.server.wire.methods import SERVICE, Method
from reidserve.server.wire.model import parity_of
from reidserve.server.wire.service import methods
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
        source=known(f"photographs/{number}.jpg"),
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


async def no_reload(served: Served, request: reid_pb2.ReloadRequest, call: Call) -> reid_pb2.ReloadResponse:
    raise ReloadError("this server has one model")


@asynccontextmanager
async def serving(
    galleries: dict[str, Gallery],
    embedder,
    *,
    patience: float = 30.0,
    threshold: float | None = None,
    gate: Gate | None = None,
    table: Sequence[Method] | None = None,
    **told: Any,
):
    """A server in this process: its target, pipeline and calls."""
    deployment = Deployment()
    calls, server = Calls(deployment, gate or Gate(), Telemetry(), **told), grpc.aio.server()
    server.add_generic_rpc_handlers(handlers(calls, table or methods(no_reload), patience=patience))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        pipeline = Pipeline(embedder, galleries, threshold=threshold)
        await deployment.replace(Served(pipeline, {}, 0))
        yield f"127.0.0.1:{port}", pipeline, calls
    finally:
        await server.stop(None)
        await deployment.close()


@pytest.fixture
async def target(gallery, embedder):
    async with serving({"labelled": open_gallery(gallery)}, embedder) as (target, _, _):
        yield target


async def with_client(target: str, ask):
    """What `ask` gets from a client, which blocks, and so on a thread."""

    def work():
        with Client(target) as client:
            return ask(client)

    return await asyncio.to_thread(work)


def told(error: grpc.RpcError) -> tuple[str, str]:
    """The status and the reason of a refusal."""
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return error.code().name, info.reason


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
    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await SearchServiceStub(channel).Search(request)
    assert told(refusal.value) == ("INVALID_ARGUMENT", "QUERY_INVALID")
    assert reason in str(refusal.value.details())


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


def plainly_reranked(snapshot: Snapshot, query: np.ndarray, top_k: int, shortlist: int, how: Reranking) -> list[tuple]:
    """Entry, score, distance and rank: the best by score, sorted by distance, score and row."""
    best = [(entry, score) for entry, score, _ in brute_force(snapshot, query, shortlist, Filter())]
    vectors = np.stack([snapshot.vector(snapshot.row(entry.id)) for entry, _ in best])
    distances = rerank(query[np.newaxis], vectors, how)[0].tolist()
    order = sorted(range(len(best)), key=lambda place: (distances[place], place))[:top_k]
    return [(best[place][0].id, best[place][1], distances[place], rank) for rank, place in enumerate(order, start=1)]


def reranked(hits: Iterable[Hit]) -> list[tuple]:
    return [(hit.entry_id, hit.score, hit.reranked_distance, hit.rank) for hit in hits]


async def test_a_reranked_search_orders_the_shortlist_by_distance(target: str, snapshot: Snapshot):
    queries = unit_rows(np.random.default_rng(9), 5, DIM)
    asked = [Rerank(), Rerank(k1=5, k2=3, weight=0.0), Rerank(k1=8, k2=1, weight=0.7, shortlist=250)]

    def ask(client: Client):
        return [
            [client.search_embedding(query.tolist(), 10, rerank=how).hits for query in queries]
            for how in (*asked, None)
        ]

    *found, plain = await with_client(target, ask)
    for how, answers in zip(asked, found, strict=True):
        expected = Reranking(how.k1, how.k2, how.weight)
        for query, hits in zip(queries, answers, strict=True):
            assert reranked(hits) == plainly_reranked(snapshot, query, 10, how.shortlist, expected)
    assert {hit.reranked_distance for hits in plain for hit in hits} == {None}
    assert [[hit.entry_id for hit in hits] for hits in found[0]] != [[hit.entry_id for hit in hits] for hits in plain]


async def test_hits_below_a_score_are_left_out_and_the_best_score_stays(target: str, snapshot: Snapshot):
    query = unit_rows(np.random.default_rng(10), 1, DIM)[0].tolist()

    def ask(client: Client):
        everything = client.search_embedding(query, 100)
        limit = everything.hits[30].score
        return (
            everything,
            client.search_embedding(query, 100, min_score=limit),
            client.search_embedding(query, 100, min_score=1.0),
            client.search_embedding(query, 100, rerank=Rerank()),
            client.search_embedding(query, 100, min_score=limit, rerank=Rerank()),
            client.search_embedding(query, 100, where=Asked(ids=[])),
        )

    everything, some, none, again, some_again, empty = await with_client(target, ask)
    limit = everything.hits[30].score
    assert some.hits == [hit for hit in everything.hits if hit.score >= limit]
    assert len(some.hits) >= 31
    assert (none.hits, none.best_score, none.match, none.threshold) == ([], everything.hits[0].score, None, None)
    kept = [hit for hit in again.hits if hit.score >= limit]
    assert reranked(some_again.hits) == [
        (hit.entry_id, hit.score, hit.reranked_distance, rank) for rank, hit in enumerate(kept, start=1)
    ]
    assert some_again.best_score == everything.best_score == everything.hits[0].score
    assert (empty.hits, empty.best_score) == ([], None)


async def test_a_server_with_a_threshold_says_whether_the_best_score_reaches_it(gallery, embedder, snapshot: Snapshot):
    query = unit_rows(np.random.default_rng(11), 1, DIM)[0]
    best = float(brute_force(snapshot, query, 1, Filter())[0][1])

    def ask(client: Client):
        return (
            client.search_embedding(query.tolist(), 5),
            client.search_embedding(query.tolist(), 5, rerank=Rerank(), min_score=1.0),
            client.search_embedding(query.tolist(), 5, where=Asked(ids=[])),
        )

    answers = []
    for threshold in (best, np.nextafter(best, 1)):
        async with serving({"labelled": open_gallery(gallery)}, embedder, threshold=threshold) as (target, _, _):
            answers.append(await with_client(target, ask))
        assert {result.threshold for result in answers[-1]} == {threshold}
    assert [[result.match for result in results] for results in answers] == [[True, True, False], [False, False, False]]
    assert [result.best_score for result in answers[1]] == [best, best, None]
    assert len(answers[1][0].hits) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rerank": {"k1": 0}}, "k1 must be at least 1, got 0"),
        ({"rerank": {"k1": 1001}}, "k1 must be 1 to 1,000, got 1001"),
        ({"rerank": {"k2": -1}}, "k2 must be at least 1, got -1"),
        ({"rerank": {"k2": 5000}}, "k2 must be 1 to 1,000, got 5000"),
        ({"rerank": {"weight": 1.5}}, "weight must be 0 to 1, got 1.5"),
        ({"rerank": {"weight": float("nan")}}, "weight must be 0 to 1, got nan"),
        ({"rerank": {"shortlist": 0}}, "shortlist must be 1 to 1,000 hits, got 0"),
        ({"rerank": {"shortlist": 1001}}, "shortlist must be 1 to 1,000 hits, got 1001"),
        ({"rerank": {}, "top_k": 101}, "top_k must be 1 to the shortlist's 100 hits, got 101"),
        ({"min_score": 1.5}, "min_score must be -1 to 1, got 1.5"),
        ({"min_score": float("nan")}, "min_score must be -1 to 1, got nan"),
    ],
)
async def test_a_way_of_searching_that_cannot_be_is_refused(target: str, fields, message):
    request = reid_pb2.SearchRequest(entry_id="n1", **fields)
    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await SearchServiceStub(channel).Search(request)
    assert told(refusal.value) == ("INVALID_ARGUMENT", "QUERY_INVALID")
    assert message in str(refusal.value.details())


async def test_a_gallery_is_described(target: str, snapshot: Snapshot):
    described = await with_client(target, lambda client: [client.gallery(), client.gallery("labelled", generation=1)])
    assert described[0] == described[1]
    assert (described[0].name, described[0].entries, described[0].dim, described[0].generation) == (
        "labelled",
        400,
        DIM,
        1,
    )
    assert (described[0].index, described[0].model, described[0].engine) == ("flat", "0" * 64, "fp32/onnxruntime-cpu")


async def test_entries_are_listed_as_they_were_written(target: str, snapshot: Snapshot):
    listed = await with_client(target, lambda client: list(client.entries()))
    assert [
        (one.row, *(one.entry_id, one.pid, one.camid, 0.0, 0), one.timestamp, one.attributes, one.source)
        for one in listed
    ] == [
        (row, *said[:6], entry.attributes, entry.source)
        for (row, entry), said in zip(
            snapshot.listed(), as_asked((one, 0.0, 0) for one in snapshot.entries()), strict=True
        )
    ]


@pytest.mark.parametrize("page_size", [1, 7, 399, 400, 401, 10**6, 0])
async def test_pages_say_together_what_one_says(target: str, snapshot: Snapshot, page_size):
    rows: list[int] = []
    token, pages = "", 0
    async with grpc.aio.insecure_channel(target) as channel:
        stub = GalleryServiceStub(channel)
        while not pages or token:
            page = await stub.ListEntries(reid_pb2.ListEntriesRequest(page_size=page_size, page_token=token))
            rows += [entry.row for entry in page.entries]
            token, pages = page.next_page_token, pages + 1
            assert page.generation == 1
    assert rows == snapshot.rows().tolist()
    assert pages == -(-400 // min(page_size or 1000, 400))


async def test_a_page_of_long_entries_fits_a_message_and_the_rest_follows(tmp_path, embedder):
    vectors = unit_rows(np.random.default_rng(12), 900, DIM)
    with closing(create_store(tmp_path / "long.gallery", Origin("0" * 64, "fp32/onnxruntime-cpu", DIM))) as store:
        store.upsert(
            [
                Record(Entry(f"{number:04}" + "x" * 4000), number.to_bytes(32, "big"), vector)
                for number, vector in enumerate(vectors)
            ]
        )
    async with serving({"long": open_gallery(tmp_path / "long.gallery")}, embedder) as (target, _, _):
        async with grpc.aio.insecure_channel(target) as channel:
            page = await GalleryServiceStub(channel).ListEntries(reid_pb2.ListEntriesRequest(page_size=900))
        listed = await with_client(target, lambda client: list(client.entries()))
    assert 2**20 <= page.ByteSize() < 2**20 + 5000
    assert page.next_page_token
    assert [int(one.entry_id[:4]) for one in listed] == list(range(900))


@pytest.mark.parametrize(
    ("fields", "code", "reason", "message"),
    [
        ({"page_size": -1}, "INVALID_ARGUMENT", "QUERY_INVALID", "page_size must be 0, for 1,000, or more, got -1"),
        ({"page_token": "x"}, "INVALID_ARGUMENT", "QUERY_INVALID", "a next_page_token that ListEntries gave, got 'x'"),
        ({"page_token": "MODEL.1." + "9" * 30}, "INVALID_ARGUMENT", "QUERY_INVALID", "a next_page_token that"),
        (
            {"page_token": "MODEL.1.5", "generation": 2},
            "INVALID_ARGUMENT",
            "QUERY_INVALID",
            "is of generation 1, and generation 2",
        ),
        (
            {"page_token": "MODEL.7.5"},
            "FAILED_PRECONDITION",
            "GENERATION_GONE",
            "generation 7 of gallery 'labelled' is not",
        ),
        (
            {"page_token": f"{'0' * 12}.1.5"},
            "FAILED_PRECONDITION",
            "GENERATION_GONE",
            "is of a gallery of model 000000",
        ),
        ({"generation": -5}, "FAILED_PRECONDITION", "GENERATION_GONE", "generation -5 of gallery 'labelled' is not"),
        ({"gallery": "mall"}, "NOT_FOUND", "GALLERY_NOT_FOUND", "there is no gallery 'mall' here, there is labelled"),
    ],
)
async def test_a_listing_that_cannot_be_is_refused(target: str, embedder, fields, code, reason, message):
    if "page_token" in fields:
        fields = fields | {"page_token": fields["page_token"].replace("MODEL", embedder.contract.identity[:12])}
    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await GalleryServiceStub(channel).ListEntries(reid_pb2.ListEntriesRequest(**fields))
    assert told(refusal.value) == (code, reason)
    assert message in str(refusal.value.details())


@pytest.mark.parametrize("method", ["SearchService/Rank", "GalleryService/GetGallery", "GalleryService/ListEntries"])
async def test_bytes_that_are_no_message_are_refused_by_every_call(target, method):
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_stream if method.endswith("Rank") else channel.unary_unary
        answer = call(f"/reid.v1.{method}")(b"\xff\xff\xff garbage")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await (answer.read() if method.endswith("Rank") else answer)
    assert told(refusal.value) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


class Restricted(Gate):
    """Lets in a caller who may search one gallery and do nothing else."""

    def admit(self, arrival):
        return Caller("guest", {"search": frozenset({"labelled"})})


async def ask(target, method, request, **options):
    """The answer to a call of one message for one, asked by its name."""
    service, name = method.split("/")
    response = getattr(reid_pb2, f"{name}Response")
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.unary_unary(
            f"/reid.v1.{service}/{name}", lambda sent: sent.SerializeToString(), response.FromString
        )
        return await call(request, **options)


async def refused(target: str, method: str, request, **options) -> tuple[str, str, str]:
    """The status, reason and message that a call is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await ask(target, method, request, **options)
    return *told(refusal.value), str(refusal.value.details())


def floats(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, "<f4")


async def test_a_track_is_searched_by_the_mean_of_its_images(target: str, snapshot: Snapshot, embedder, crops: Path):
    images = [path.read_bytes() for path in sorted(crops.iterdir())[:3]]
    mean = embedder.embed_encoded(images).mean(axis=0)
    expected = brute_force(snapshot, mean / np.linalg.norm(mean), 10, Filter())
    answer = await ask(target, "SearchService/Search", reid_pb2.SearchRequest(track=reid_pb2.Track(images=images)))
    assert [hit.entry_id for hit in answer.hits] == [entry.id for entry, _, _ in expected]
    np.testing.assert_allclose([hit.score for hit in answer.hits], [score for _, score, _ in expected], atol=1e-6)
    assert answer.batch_size >= 1
    for count in (0, 65):
        wrong = reid_pb2.SearchRequest(track=reid_pb2.Track(images=images[:1] * count))
        assert await refused(target, "SearchService/Search", wrong) == (
            *("INVALID_ARGUMENT", "QUERY_INVALID"),
            f"a track must have 1 to 64 images, got {count}",
        )


async def test_of_each_identity_only_the_best_hit_is_found_where_that_is_asked(target: str, snapshot: Snapshot):
    query = unit_rows(np.random.default_rng(20), 1, DIM)[0]
    request = reid_pb2.SearchRequest(embedding=query.tobytes(), top_k=25, group_by_pid=True)
    seen: set[str] = set()
    expected = []
    for one, score, _ in brute_force(snapshot, query, 400, Filter()):
        if one.pid is None or one.pid not in seen:
            expected.append((one.id, score))
            seen |= {one.pid} - {None}
    found = [(hit.entry_id, hit.score) for hit in (await ask(target, "SearchService/Search", request)).hits]
    assert found == expected[:25]


async def test_only_matches_are_found_where_there_is_a_threshold(gallery, embedder, snapshot: Snapshot):
    query = unit_rows(np.random.default_rng(21), 1, DIM)[0]
    request = reid_pb2.SearchRequest(embedding=query.tobytes(), top_k=25, only_matches=True)
    scores = [float(score) for _, score, _ in brute_force(snapshot, query, 25, Filter())]
    async with serving({"labelled": open_gallery(gallery)}, embedder, threshold=scores[6]) as (target, _, _):
        answer = await ask(target, "SearchService/Search", request)
    assert [hit.score for hit in answer.hits] == scores[:7]
    async with serving({"labelled": open_gallery(gallery)}, embedder) as (target, _, _):
        code, reason, _ = await refused(target, "SearchService/Search", request)
    assert (code, reason) == ("FAILED_PRECONDITION", "THRESHOLD_MISSING")


async def test_a_state_that_does_not_come_is_waited_for_up_to_the_deadline(target: str):
    request = reid_pb2.SearchRequest(entry_id="n1", min_generation=1)
    assert (await ask(target, "SearchService/Search", request)).generation == 1
    request.min_generation = 2
    code, _, _ = await refused(target, "SearchService/Search", request, timeout=0.3)
    assert code in ("DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "UNAVAILABLE")


async def test_each_search_of_a_batch_is_answered_or_refused_as_it_would_be_alone(target, crops):
    image = sorted(crops.iterdir())[0].read_bytes()
    searches = [
        {"image": image, "top_k": 3},
        {"image": b"no image"},
        {"entry_id": "n3"},
        {"entry_id": "nobody"},
        {"embedding": b"123"},
        {"entry_id": "n4", "gallery": "mall"},
        {"entry_id": "n5", "filter": {"camids": {"any_of": ["c1"]}}, "min_score": 0.1},
        {},
    ]
    requests = [reid_pb2.SearchRequest(**fields) for fields in searches]
    batch = await ask(target, "SearchService/BatchSearch", reid_pb2.BatchSearchRequest(requests=requests))
    assert len(batch.results) == len(requests)
    kinds = []
    for request, result in zip(requests, batch.results, strict=True):
        kinds.append(result.WhichOneof("result"))
        if kinds[-1] == "response":
            alone = await ask(target, "SearchService/Search", request)
            assert list(result.response.hits) == list(alone.hits)
            assert result.response.best_score == alone.best_score
        else:
            said = result.error.code, result.error.reason, result.error.message
            assert said == await refused(target, "SearchService/Search", request)
    assert kinds == ["response", "error", "response", "error", "error", "error", "response", "error"]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "a batch must have 1 to 64 searches, got 0"),
        ([{"entry_id": "n1"}] * 65, "a batch must have 1 to 64 searches, got 65"),
        ([{"entry_id": "n1", "top_k": 5001}] * 2, "may ask for 10,000 hits together, its top_k make 10,002"),
    ],
)
async def test_a_batch_that_cannot_be_is_refused_as_a_whole(target: str, requests, message):
    said = await refused(target, "SearchService/BatchSearch", reid_pb2.BatchSearchRequest(requests=requests))
    assert said[:2] == ("INVALID_ARGUMENT", "QUERY_INVALID")
    assert message in said[2]


async def test_an_entry_is_told_with_its_embedding_where_that_is_asked(target: str, snapshot: Snapshot):
    entry, row = snapshot.find("n7"), snapshot.row("n7")
    assert entry is not None
    for with_embedding in (False, True):
        request = reid_pb2.GetEntryRequest(entry_id="n7", with_embedding=with_embedding, generation=1)
        answer = await ask(target, "GalleryService/GetEntry", request)
        assert (answer.entry.row, answer.entry.entry_id, answer.generation) == (row, "n7", 1)
        assert answer.entry.pid == (entry.pid or "")
        assert floats(answer.embedding).tolist() == (snapshot.vector(row).tolist() if with_embedding else [])
    for fields, code, reason in (
        ({"entry_id": "nobody"}, "NOT_FOUND", "ENTRY_NOT_FOUND"),
        ({"entry_id": ""}, "NOT_FOUND", "ENTRY_NOT_FOUND"),
        ({"entry_id": "n7", "gallery": "mall"}, "NOT_FOUND", "GALLERY_NOT_FOUND"),
        ({"entry_id": "n7", "generation": 9}, "FAILED_PRECONDITION", "GENERATION_GONE"),
    ):
        said = await refused(target, "GalleryService/GetEntry", reid_pb2.GetEntryRequest(**fields))
        assert said[:2] == (code, reason), fields


async def test_a_caller_is_told_only_of_galleries_that_it_may_search(gallery, embedder):
    galleries = {name: open_gallery(gallery) for name in ("labelled", "secret")}
    entry = {"entry_id": "n1"}
    async with serving(dict(galleries), embedder) as (target, _, _):
        listed = await ask(target, "GalleryService/ListGalleries", reid_pb2.ListGalleriesRequest())
        one = await ask(target, "GalleryService/GetGallery", reid_pb2.GetGalleryRequest(gallery="secret"))
        assert [found.name for found in listed.galleries] == ["labelled", "secret"]
        assert listed.galleries[1] == one.gallery
        assert (one.gallery.writable, one.gallery.damaged) == (False, 0)
    galleries = {name: open_gallery(gallery) for name in ("labelled", "secret")}
    async with serving(galleries, embedder, gate=Restricted()) as (target, _, _):
        listed = await ask(target, "GalleryService/ListGalleries", reid_pb2.ListGalleriesRequest())
        assert [found.name for found in listed.galleries] == ["labelled"]
        await ask(target, "SearchService/Search", reid_pb2.SearchRequest(gallery="labelled", **entry))
        mixed = [{"gallery": "labelled", **entry}, {"gallery": "secret", **entry}]
        # What is not there is refused like what may not be searched: nobody learns which it is.
        for method, request in (
            ("SearchService/Search", reid_pb2.SearchRequest(gallery="secret", **entry)),
            ("SearchService/Search", reid_pb2.SearchRequest(gallery="nowhere", **entry)),
            ("SearchService/Search", reid_pb2.SearchRequest(**entry)),
            ("SearchService/BatchSearch", reid_pb2.BatchSearchRequest(requests=mixed)),
            ("GalleryService/GetGallery", reid_pb2.GetGalleryRequest(gallery="secret")),
            ("GalleryService/GetEntry", reid_pb2.GetEntryRequest(gallery="secret", **entry)),
            ("GalleryService/ListEntries", reid_pb2.ListEntriesRequest(gallery="secret")),
            ("GalleryService/BatchDeleteEntries", reid_pb2.BatchDeleteEntriesRequest(gallery="labelled")),
            ("ModelService/Reload", reid_pb2.ReloadRequest()),
        ):
            code, reason, message = await refused(target, method, request)
            assert (code, reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED"), method
            assert "key 'guest' does not allow scope" in message


async def test_the_model_is_described(gallery, embedder):
    async with serving({"labelled": open_gallery(gallery)}, embedder, threshold=0.5) as (target, _, _):
        said = await ask(target, "ModelService/GetModel", reid_pb2.GetModelRequest())
    contract = embedder.contract
    assert (said.model.identity, said.model.engine) == (contract.identity, embedder.engine)
    assert (said.height, said.width, said.dim) == (contract.height, contract.width, contract.dim)
    assert (said.backbone, said.threshold, said.parity_json, said.reloads) == ("", 0.5, "", 0)


def test_what_the_gate_measured_of_the_flavour_that_runs_is_told():
    check = Check(engine="int8/onnxruntime-cpu", data="d" * 64, queries=20, cosine=0.98, change=-0.1)
    other = Check(engine="int8/openvino-cpu", data="d" * 64, queries=20, cosine=0.97)
    flavour = Flavour(precision="int8", checks=(check, other))

    class Running:
        contract = type("Contract", (), {"flavours": {"model.int8.onnx": flavour}, "plans": {}})
        engine = "int8/onnxruntime-cpu"

    said = json.loads(parity_of(Running))
    assert (said["engine"], said["cosine"], said["change"]) == ("int8/onnxruntime-cpu", 0.98, -0.1)
    Running.engine = "fp32/onnxruntime-cpu"
    assert parity_of(Running) == ""
