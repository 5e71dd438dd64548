"""The whole gallery ranked: by a snapshot, and over the wire."""

import asyncio
import time
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.client import Client, Ranked
from reidserve.client import Filter as Asked
from reidserve.embed import Embedder
from reidserve.errors import IncompleteRankingError, QueryError, RequestError
from reidserve.index import Entry, Filter, Origin, Record, open_gallery, read_kinds, read_snapshot
from reidserve.index.gallery import open_writer
from reidserve.index.search import whole
from reidserve.index.search.blocks import BLOCK_ROWS
from reidserve.index.search.ranking import Ranking, rank_plainly
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.proto.reid.v1.reid_pb2_grpc import SearchServiceStub
from reidserve.server.queries.pipeline import MAX_WHOLE, Pipeline
from reidserve.server.wire.calls import MOST_STALLED, Calls
from reidserve.server.wire.search import PAGE_HITS
from tests.conftest import start_server, stop_server, unit_rows
from tests.plain import Plain, assert_equal
from tests.test_flat import parts_of
from tests.test_service import serving, told
from tests.test_store import ORIGIN

# A window that does not grow, so that a stream stands still when nobody reads it.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    dim=st.integers(1, 70),
    copies=st.integers(0, 40),
    share=st.floats(0, 1),
    size=st.integers(1, 30),
    many=st.sampled_from([0, 7]),
    leaves_out=st.booleans(),
)
def test_a_whole_ranking_equals_brute_force_with_copies_and_gaps(
    seed, count, dim, copies, share, size, many, leaves_out
):
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng, count, dim)
    if count:
        vectors[rng.integers(0, count, copies)] = vectors[0]
        nudged = rng.integers(0, count, copies // 2)
        vectors[nudged] = np.nextafter(vectors[nudged], np.float32(1))
    rows = np.sort(rng.choice(3 * count + 1, count, replace=False)).astype(np.int64)
    accepted = rng.random(count) < share
    queries = np.concatenate([unit_rows(rng, 3, dim), vectors[:2], unit_rows(rng, many, dim)])
    left_out = rng.integers(-1, 3 * count + 1, len(queries)) if leaves_out else None
    ranking = whole.rank(queries, parts_of(rows, vectors, accepted, size), left_out=left_out)
    top_k = int(accepted.sum())
    assert_equal(ranking, rank_plainly(queries, vectors, rows, top_k=top_k, accepted=accepted, left_out=left_out))


@pytest.mark.parametrize("share", [1, 0.9, 0.3])
def test_tiles_of_long_embeddings_give_what_brute_force_gives(share):
    rng = np.random.default_rng(3)
    vectors = unit_rows(rng, 3000, 600)
    vectors[rng.integers(0, 3000, 500)] = vectors[7]
    rows, accepted = np.arange(3000) * 3 + 1, rng.random(3000) < share
    queries = np.concatenate([vectors[5:9], unit_rows(rng, 3, 600)])
    assert whole._TILE_BYTES < 4 * 600 * 1024
    ranking = whole.rank(queries, parts_of(rows, vectors, accepted, 2000))
    assert_equal(ranking, rank_plainly(queries, vectors, rows, top_k=int(accepted.sum()), accepted=accepted))


def test_scores_of_both_zeros_stand_in_row_order():
    vectors = np.array([[0, -1], [0, 1], [-1, 0], [0, 1], [1, 0], [0, -1]], np.float32)
    rows = np.arange(6, dtype=np.int64)
    query = np.array([[1, 0]], np.float32)
    ranking = whole.rank(query, parts_of(rows, vectors, np.ones(6, np.bool_), 4))
    assert ranking.rows.tolist() == [[4, 0, 1, 3, 5, 2]]
    assert_equal(ranking, rank_plainly(query, vectors, rows, top_k=6))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory):
    """A gallery of three blocks with holes in them, and the plain one that it should be."""
    folder = tmp_path_factory.mktemp("galleries") / "grown.gallery"
    create_store(folder, ORIGIN).close()
    plain = Plain()
    vectors = unit_rows(np.random.default_rng(4), 2 * BLOCK_ROWS + 1500, 8)
    vectors[100::90] = vectors[0]
    records = [
        Record(Entry(f"e{number}", pid=str(number % 7)), number.to_bytes(32, "big"), vector)
        for number, vector in enumerate(vectors)
    ]
    gone = [f"e{number}" for number in np.random.default_rng(5).integers(0, len(records), 700)]
    with closing(open_gallery(folder, write=True, kind="flat")) as gallery:
        for changed in (gallery, plain):
            changed.upsert(records)
            changed.delete(gone)
        # An entry that is written again gets a row behind all others.
        again = [Entry(name, pid="3") for name in list(plain.held)[:40]]
        gallery.update(again)
        plain.update(again)
        yield gallery, plain


def wholly(plain: Plain, queries, where=None, left_out=None):
    accepted = len(plain.held) if where is None else len(plain.matching(where))
    return plain.search(queries, top_k=accepted, where=where, left_out=left_out)


def test_every_entry_is_ranked_with_tombstones_filters_and_several_blocks(grown):
    gallery, plain = grown
    snapshot = gallery.snapshot
    queries = np.concatenate([unit_rows(np.random.default_rng(6), 5, 8), plain.held["e190"][1].vector[np.newaxis]])
    filters = [
        None,
        Filter(),
        Filter(pids=frozenset("3")),
        Filter(not_camids=frozenset(["x"])),
        Filter(ids=frozenset()),
    ]
    assert [len(block.rows) > block.count > 0 for block in snapshot.blocks] == [True] * 3
    for where in filters:
        ranking = snapshot.rank_all(queries, where=where)
        assert_equal(ranking, wholly(plain, queries, where))
    rows = snapshot.rows()[[0, 77, -1, 5000, 3, 4]]
    assert_equal(snapshot.rank_all(queries, left_out=rows), wholly(plain, queries, left_out=rows))
    with pytest.raises(QueryError, match="must be of unit length"):
        snapshot.rank_all(2 * queries)
    assert list(snapshot.listed()) == [(row, one.entry) for row, one in plain.held.values()]
    assert list(snapshot.listed(after=int(rows[2]))) == []
    behind = [(row, one.entry) for row, one in plain.held.values() if row > rows[3]]
    assert list(snapshot.listed(after=int(rows[3]))) == behind


def test_an_index_that_may_miss_a_row_does_not_rank_the_whole_gallery(grown):
    gallery, plain = grown
    query = unit_rows(np.random.default_rng(7), 1, 8)
    snapshots = read_kinds(gallery.folder, ["flat", "flat-fp16", "rabitq"])
    for kind in ("flat", "flat-fp16"):
        assert (snapshots[kind].kind, snapshots[kind].ranks_all) == (kind, True)
        assert_equal(snapshots[kind].rank_all(query), wholly(plain, query))
    with pytest.raises(
        IncompleteRankingError, match="searched by rabitq, which finds the best hits and may miss a row"
    ):
        snapshots["rabitq"].rank_all(query)


def ranking_of(ranked: Ranked) -> Ranking:
    return Ranking(np.array(ranked.scores, np.float32)[np.newaxis], np.array(ranked.rows, np.int64)[np.newaxis])


def asked_for(vector: np.ndarray, **fields) -> reid_pb2.RankRequest:
    return reid_pb2.RankRequest(embedding=vector.astype("<f4").tobytes(), **fields)


async def read_all(stream) -> list[reid_pb2.RankResponse]:
    return [page async for page in stream]


async def nothing_in_flight(calls: Calls, pipeline: Pipeline) -> None:
    deadline = time.monotonic() + 10
    while (calls.deployment.under_way, pipeline.in_flight, pipeline._whole_places._value) != (0, 0, MAX_WHOLE):
        assert time.monotonic() < deadline, (calls.deployment.under_way, pipeline.in_flight)
        await asyncio.sleep(0.01)


async def test_concurrent_whole_rankings_are_brute_force_bit_by_bit(grown, embedder):
    gallery, plain = grown
    queries = unit_rows(np.random.default_rng(8), 24, 8)
    filters = [(None, None), (Asked(pids=["3"]), Filter(pids=frozenset("3"))), (Asked(ids=[]), Filter(ids=frozenset()))]
    async with serving({"grown": gallery}, embedder) as (target, pipeline, calls):
        with Client(target) as client:

            def ask(place: int) -> Ranked:
                return client.rank_embedding(queries[place].tolist(), where=filters[place % 3][0])

            results = await asyncio.gather(*(asyncio.to_thread(ask, place) for place in range(len(queries))))
            name, (row, one) = next(iter(plain.held.items()))
            by_entry = await asyncio.to_thread(client.rank_entry, name)
        await nothing_in_flight(calls, pipeline)
    for place, result in enumerate(results):
        assert_equal(ranking_of(result), wholly(plain, queries[place : place + 1], filters[place % 3][1]))
        assert (result.generation, result.engine) == (plain.generation, embedder.engine)
    assert len(results[0].rows) > PAGE_HITS
    assert row not in by_entry.rows
    expected = wholly(plain, one.vector[np.newaxis], left_out=np.array([row]))
    assert_equal(ranking_of(by_entry), Ranking(expected.scores[:, :-1], expected.rows[:, :-1]))


async def test_a_caller_that_goes_away_in_mid_stream_leaves_nothing_in_flight(grown, embedder):
    gallery, _ = grown
    request = asked_for(unit_rows(np.random.default_rng(9), 1, 8)[0])
    async with serving({"grown": gallery}, embedder) as (target, pipeline, calls):
        async with grpc.aio.insecure_channel(target, options=NARROW) as channel:
            stub = SearchServiceStub(channel)
            cancelled = stub.Rank(request)
            assert len((await cancelled.read()).rows) == 8 * PAGE_HITS
            cancelled.cancel()
            late = stub.Rank(request, timeout=0.2)
            await asyncio.sleep(0.4)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await read_all(late)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            unread = [stub.Rank(request) for _ in range(3)]
            await asyncio.sleep(0.2)
            assert not any(call.done() for call in unread)
        await nothing_in_flight(calls, pipeline)


async def test_more_whole_rankings_than_there_is_room_for_wait(grown, embedder):
    gallery, plain = grown
    request = asked_for(unit_rows(np.random.default_rng(10), 1, 8)[0])
    async with serving({"grown": gallery}, embedder) as (target, pipeline, calls):
        async with grpc.aio.insecure_channel(target, options=NARROW) as channel:
            stub = SearchServiceStub(channel)
            held = [stub.Rank(request) for _ in range(MAX_WHOLE)]
            while pipeline._whole_places._value:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(read_all(stub.Rank(request)))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            held[0].cancel()
            pages = await waiting
            assert [len(page.scores) for page in pages] == [4 * PAGE_HITS, 4 * (len(plain.held) - PAGE_HITS)]
        await nothing_in_flight(calls, pipeline)


async def test_a_caller_that_does_not_read_loses_its_place_and_is_told_when_it_reads(grown, embedder):
    gallery, plain = grown
    request = asked_for(unit_rows(np.random.default_rng(11), 1, 8)[0])
    async with serving({"grown": gallery}, embedder, patience=0.05) as (target, pipeline, calls):
        async with grpc.aio.insecure_channel(target, options=NARROW) as channel:
            stub = SearchServiceStub(channel)
            stalled = [stub.Rank(request) for _ in range(MOST_STALLED)]
            deadline = time.monotonic() + 20
            while calls._stalled < MOST_STALLED:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            await nothing_in_flight(calls, pipeline)
            with pytest.raises(grpc.aio.AioRpcError, match=f"{MOST_STALLED} callers do not read") as refusal:
                await stub.Rank(request).read()
            assert told(refusal.value) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            with pytest.raises(grpc.aio.AioRpcError, match="a message was not read within") as cut:
                await read_all(stalled[0])
            assert told(cut.value) == ("DEADLINE_EXCEEDED", "READER_STALLED")
            assert sum(len(page.rows) for page in await read_all(stub.Rank(request))) == 8 * len(plain.held)
        deadline = time.monotonic() + 10
        while calls._stalled:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_a_drain_finishes_the_streams_that_are_read_and_waits_for_no_other(grown, embedder):
    gallery, plain = grown
    request = asked_for(unit_rows(np.random.default_rng(14), 1, 8)[0])
    async with (
        serving({"grown": gallery}, embedder, patience=1.0) as (target, pipeline, calls),
        grpc.aio.insecure_channel(target, options=NARROW) as channel,
    ):
        stub = SearchServiceStub(channel)
        read, unread = stub.Rank(request), stub.Rank(request)
        while pipeline._whole_places._value != MAX_WHOLE - 2:
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(calls.deployment.drain(grace=60))
        await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError, match="loading or draining"):
            await stub.Rank(request).read()
        assert sum(len(page.rows) for page in await read_all(read)) == 8 * len(plain.held)
        await asyncio.wait_for(draining, 30)
        assert not unread.done()


async def test_a_quantised_gallery_refuses_to_be_ranked_wholly_and_answers_searches(grown, embedder):
    query = unit_rows(np.random.default_rng(12), 1, 8)[0].tolist()

    def ask(target):
        with Client(target) as client:
            hits = client.search_embedding(query, 5).hits
            with pytest.raises(RequestError, match="serve the gallery with --index flat") as refusal:
                client.rank_embedding(query)
            return client.gallery().index, len(hits), refusal.value.code, refusal.value.reason

    with closing(open_gallery(grown[0].folder, kind="rabitq")) as gallery:
        async with serving({"grown": gallery}, embedder) as (target, pipeline, calls):
            answer = await asyncio.to_thread(ask, target)
            await nothing_in_flight(calls, pipeline)
    assert answer == ("rabitq", 5, "FAILED_PRECONDITION", "RANKING_INCOMPLETE")


def test_a_state_that_was_asked_for_is_ranked_and_listed_while_others_write(tmp_path: Path, model, embedder: Embedder):
    folder = tmp_path / "live.gallery"
    vectors = unit_rows(np.random.default_rng(13), 60, 24)
    records = [Record(Entry(f"e{number}"), bytes([number]) * 32, vector) for number, vector in enumerate(vectors)]
    with closing(create_store(folder, Origin(embedder.contract.identity, embedder.engine, 24))) as store:
        store.upsert(records[:40])
    before = read_snapshot(folder)
    query = vectors[50]
    running = start_server("--model", model, "--gallery", folder, "--read-only")
    try:
        with Client(running.target) as client:
            listed = list(client.entries())
            with open_writer(folder) as store:
                store.upsert(records[40:])
                store.delete(["e0", "e7"])
            deadline = time.monotonic() + 20
            while (now := client.gallery()).entries != 58:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            old = client.rank_embedding(query.tolist(), generation=before.generation)
            assert_equal(ranking_of(old), before.rank_all(query[np.newaxis]))
            again = list(client.entries(generation=before.generation))
            found = client.search_entry("e0", 100, generation=before.generation)
            with pytest.raises(
                RequestError, match=f"generation 77 of gallery 'live' .* at generation {now.generation}"
            ):
                client.rank_embedding(query.tolist(), generation=77)
            with pytest.raises(RequestError, match="begin again with the newest") as refusal:
                client.search_entry("e1", generation=0)
            new = client.rank_embedding(query.tolist())
    finally:
        assert stop_server(running) == 0
    assert again == listed
    assert [entry.entry_id for entry in listed] == [f"e{number}" for number in range(40)]
    assert (len(found.hits), found.generation, old.generation) == (39, before.generation, before.generation)
    assert (refusal.value.code, refusal.value.reason) == ("FAILED_PRECONDITION", "GENERATION_GONE")
    assert_equal(ranking_of(new), read_snapshot(folder).rank_all(query[np.newaxis]))
