import asyncio
import inspect
import subprocess
import sys
import threading
from array import array
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import pytest

from reidserve.client import (
    AsyncClient,
    Client,
    Filter,
    NewEntry,
    QueryError,
    RefusedError,
    RequestError,
    Search,
    SearchResult,
    UnavailableError,
)
from reidserve.client.asks import delete, update, upsert
from reidserve.client.galleries import read_entry, write_entry
from reidserve.client.searches import search_message
from reidserve.proto.reid.v1 import reid_pb2
from tests.conftest import Server
from tests.scripted import scripted


def test_importing_the_client_pulls_in_no_ml_package():
    script = (
        "import sys, reidserve.client\n"
        "heavy = {'numpy', 'PIL', 'onnxruntime', 'onnx', 'torch', 'faiss', 'msgspec', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_server_that_is_not_there_is_said_to_be():
    with (
        Client("127.0.0.1:1", timeout=5, retries=0) as client,
        pytest.raises(UnavailableError, match="is reid-serve running") as failure,
    ):
        client.search(b"image")
    assert (failure.value.code, failure.value.reason) == ("UNAVAILABLE", "UNAVAILABLE")


def test_the_servers_reason_reaches_the_caller(server: Server):
    with Client(server.target) as client, pytest.raises(RequestError, match="expected a JPEG") as failure:
        client.search(b"no image")
    assert (failure.value.code, failure.value.reason) == ("INVALID_ARGUMENT", "IMAGE_INVALID")


@pytest.mark.parametrize(("entry_id", "top_k"), [("a\udcff", 1), ("a", 10**10)])
def test_a_query_that_does_not_fit_the_protocol_is_refused_before_it_is_sent(entry_id, top_k):
    with Client("127.0.0.1:1") as client, pytest.raises(QueryError, match="does not fit the protocol"):
        client.search_entry(entry_id, top_k)


@pytest.mark.parametrize(
    "ask", [Client.rank_entry, Client.search_entry, lambda client, _: client.gallery("", generation=2**63)]
)
def test_a_request_that_does_not_fit_the_protocol_is_refused_by_every_method(ask):
    with Client("127.0.0.1:1") as client, pytest.raises(QueryError, match="does not fit the protocol"):
        ask(client, "a\udcff")


def test_a_filter_is_heeded_by_each_way_of_searching(server: Server, crops):
    where = Filter(camids=["2"], pids=["0003", "0004", "nobody"])
    path = sorted(crops.iterdir())[0]
    with Client(server.target) as client:
        results = [
            client.search(path, where=where),
            client.search_embedding(client.embed(path), where=where),
            client.search_entry(path.name, where=where),
            client.search(path, where=Filter(ids=[])),
            client.search(path, 40, where=Filter()),
        ]
    assert [{(hit.pid, hit.camid) for hit in result.hits} for result in results[:4]] == [
        *[{("0003", "2"), ("0004", "2")}] * 3,
        set(),
    ]
    assert len(results[4].hits) == 40


def test_a_whole_ranking_is_arrays_of_rows_and_scores(server: Server, crops):
    path = sorted(crops.iterdir())[0]
    with Client(server.target) as client:
        by_image, by_embedding = client.rank(path), client.rank_embedding(client.embed(path))
        by_entry = client.rank_entry(path.name, where=Filter(camids=["1"]))
        names = {entry.row: entry.entry_id for entry in client.entries()}
    assert (by_image.rows.typecode, by_image.scores.typecode) == ("q", "f")
    assert by_image == by_embedding
    assert [names[row] for row in by_image.rows][:1] == [path.name]
    assert len(by_image.rows) == len(by_image.scores) == 40
    assert {names[row] for row in by_entry.rows} == {one.name for one in crops.iterdir() if "_c1" in one.name} - {
        path.name
    }


def test_an_embedding_is_a_float_array_of_unit_length(server: Server, crops):
    path = sorted(crops.iterdir())[0]
    with Client(server.target) as client:
        embedding = client.embed(path)
    assert isinstance(embedding, array)
    assert embedding.typecode == "f"
    assert sum(number * number for number in embedding) == pytest.approx(1, abs=1e-6)


def test_both_clients_have_the_same_methods_that_take_the_same():
    def methods(kind: type) -> dict[str, list[tuple]]:
        public = {name: found for name, found in vars(kind).items() if not name.startswith("_")}
        return {
            name: [(one.name, one.kind, one.default) for one in inspect.signature(found).parameters.values()]
            for name, found in public.items()
        }

    assert methods(Client) == methods(AsyncClient)
    assert len(methods(Client)) == 21
    init = inspect.signature(Client.__init__)
    assert init.parameters == inspect.signature(AsyncClient.__init__).parameters


def test_the_asyncio_client_gets_what_the_other_gets(server: Server, crops):
    path = sorted(crops.iterdir())[0]

    async def ask():
        async with AsyncClient(server.target) as client:
            found, ranked, embedding = await asyncio.gather(
                client.search(path, 5), client.rank(path), client.embed(path)
            )
            entries = [entry async for entry in client.entries()]
            with pytest.raises(RefusedError, match="expected a JPEG"):
                await client.search(b"no image")
            return found.hits, ranked, embedding, entries, await client.gallery()

    with Client(server.target) as client:
        expected = (
            client.search(path, 5).hits,
            client.rank(path),
            client.embed(path),
            list(client.entries()),
            client.gallery(),
        )
    assert asyncio.run(ask()) == expected


def test_a_cancelled_call_ends_at_once():
    async def ask(target: str):
        async with AsyncClient(target, timeout=60) as client:
            asking = asyncio.ensure_future(client.search(b"image"))
            await asyncio.sleep(0.3)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asking, 5)

    ended = threading.Event()
    with scripted({"Search": lambda raw, context: ended.wait(20)}) as server:
        asyncio.run(ask(server.target))
        ended.set()


def test_a_search_says_all_that_it_says_and_nothing_else():
    said = Search(
        track=[b"a", b"b"],
        top_k=3,
        gallery="yard",
        where=Filter(pids=["7"]),
        generation=4,
        min_generation=3,
        min_score=0.5,
        only_matches=True,
        group_by_pid=True,
    )
    assert search_message(said) == reid_pb2.SearchRequest(
        track=reid_pb2.Track(images=[b"a", b"b"]),
        top_k=3,
        gallery="yard",
        filter=reid_pb2.Filter(pids=reid_pb2.Choice(any_of=["7"])),
        generation=4,
        min_generation=3,
        min_score=0.5,
        only_matches=True,
        group_by_pid=True,
    )
    assert search_message(Search(entry_id="a")) == reid_pb2.SearchRequest(entry_id="a", top_k=10)


@pytest.mark.parametrize("said", [{}, {"image": b"a", "entry_id": "a"}, {"track": [b"a"], "embedding": [1.0]}])
def test_a_search_is_by_one_thing(said):
    with pytest.raises(QueryError, match="one of them"):
        Search(**said)


def test_several_searches_are_answered_each_for_itself():
    def reply(raw: bytes, context: object) -> bytes:
        asked = reid_pb2.BatchSearchRequest.FromString(raw).requests
        assert [one.entry_id for one in asked] == ["a", "b"]
        model = reid_pb2.Model(identity="m", engine="int8/x", unverified=True)
        answer = reid_pb2.SearchResponse(hits=[reid_pb2.Hit(entry_id="c", rank=1)], batch_size=6, model=model)
        error = reid_pb2.Refusal(code="NOT_FOUND", reason="ENTRY_NOT_FOUND", message="no entry 'b'")
        return reid_pb2.BatchSearchResponse(
            results=[reid_pb2.BatchSearchResult(response=answer), reid_pb2.BatchSearchResult(error=error)]
        ).SerializeToString()

    with scripted({"BatchSearch": reply}) as server, Client(server.target) as client:
        found, missing = client.batch_search([Search(entry_id="a"), Search(entry_id="b")])
    assert isinstance(found, SearchResult)
    assert (found.hits[0].entry_id, found.batch_size, found.unverified) == ("c", 6, True)
    assert isinstance(missing, RefusedError)
    assert (str(missing), missing.code, missing.reason) == ("no entry 'b'", "NOT_FOUND", "ENTRY_NOT_FOUND")
    with pytest.raises(FrozenInstanceError):
        found.batch_size = 1


def test_an_entry_is_sent_as_it_is_said_and_read_as_it_was_sent(tmp_path):
    taken = datetime(2026, 5, 1, 8, 0, 0, 7, tzinfo=UTC)
    attributes = {"speed": 3, "colour": "red", "wet": True, "size": 0.5}
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    message = write_entry(NewEntry("a", tmp_path / "a.jpg", None, "7", "c1", taken, "there", attributes))
    assert (message.image, message.HasField("embedding")) == (b"jpeg", False)
    same = reid_pb2.Entry.FromString(
        reid_pb2.Entry(
            row=9,
            entry_id=message.entry_id,
            pid=message.pid,
            camid=message.camid,
            timestamp=message.timestamp,
            source=message.source,
            attributes=message.attributes,
        ).SerializeToString()
    )
    entry = read_entry(same, array("f", [0.6, 0.8]).tobytes())
    assert (entry.row, entry.entry_id, entry.pid, entry.camid) == (9, "a", "7", "c1")
    assert (entry.timestamp, entry.source, entry.attributes) == (taken, "there", attributes)
    assert entry.embedding == array("f", [0.6, 0.8])
    assert read_entry(same).embedding is None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"attributes": {"speed": object()}}, "speed must be text in Unicode, a finite number or a boolean"),
        ({"timestamp": datetime(2026, 5, 1)}, "an entry's timestamp must be a datetime with a time zone"),
        ({"pid": "a\udcff"}, "does not fit the protocol"),
        ({"pid": 7}, "does not fit the protocol"),
    ],
)
def test_an_entry_that_cannot_be_sent_is_refused(said, message):
    with pytest.raises(QueryError, match=message):
        write_entry(NewEntry("a", embedding=[1.0], **said))


def test_an_entry_has_an_image_or_an_embedding():
    for said in ({}, {"image": b"a", "embedding": [1.0]}):
        with pytest.raises(QueryError, match="an image or an embedding, one of both"):
            NewEntry("a", **said)


def test_an_update_names_what_it_changes_and_what_is_forgotten():
    said = update(
        "a",
        pid="7",
        camid=None,
        timestamp=None,
        source=None,
        attributes={"colour": "red"},
        forget=["camid", "attributes.speed"],
        gallery="yard",
        request_id="r",
    ).request
    assert isinstance(said, reid_pb2.UpdateEntryRequest)
    assert list(said.update_mask.paths) == ["pid", "attributes.colour", "camid", "attributes.speed"]
    assert (said.entry.entry_id, said.entry.pid, said.entry.HasField("camid")) == ("a", "7", False)
    assert said.entry.attributes["colour"].text == "red"
    assert (said.gallery, said.request_id) == ("yard", "r")


def test_a_write_keeps_the_request_id_that_the_caller_gives():
    assert upsert([NewEntry("a", b"image")], gallery="", request_id="mine").request.request_id == "mine"
    deleted = delete(["a", "b"], None, gallery="", request_id="mine").request
    assert deleted == reid_pb2.BatchDeleteEntriesRequest(entry_ids=["a", "b"], request_id="mine")
    chosen = delete((), Filter(camids=["c1"]), gallery="", request_id="mine").request
    assert chosen.filter == reid_pb2.Filter(camids=reid_pb2.Choice(any_of=["c1"]))
