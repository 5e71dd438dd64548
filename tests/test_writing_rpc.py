"""The calls that write, over real gRPC."""

import asyncio
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from reidserve.index import Entry, Origin, open_gallery, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.proto.reid.v1 import reid_pb2 as pb
from reidserve.proto.reid.v1.reid_pb2_grpc import GalleryServiceStub, SearchServiceStub
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.gate import Gate
from reidserve.server.queries.pipeline import Pipeline
from reidserve.server.telemetry import Telemetry
from reidserve.server.wire import gallery as gallery_calls
from reidserve.server.wire import search, writing
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.handlers import handlers
from reidserve.server.wire.writing import MAX_DELETED, MAX_ENTRIES, METHODS
from reidserve.server.writes.writer import Writer
from tests.conftest import DIM, unit_rows

VECTORS = unit_rows(np.random.default_rng(8), 300, DIM)


@asynccontextmanager
async def serving(folder: Path, embedder, *, write: bool = True, snapshots: Path | None = None):
    """A server in this process: what calls it, and what it serves."""
    gallery = open_gallery(folder, write=write)
    pipeline = Pipeline(embedder, {"shop": gallery})
    writers = {"shop": Writer(gallery, pipeline.embed_for_import, snapshots=snapshots)} if write else {}
    deployment = Deployment()
    await deployment.replace(Served(pipeline, writers, 0))
    calls = Calls(deployment, Gate(), Telemetry())
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers(calls, [*search.METHODS, *gallery_calls.METHODS, *writing.METHODS]))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GalleryServiceStub(channel), SearchServiceStub(channel), deployment
    await server.stop(None)
    await deployment.close()


@pytest.fixture
def folder(tmp_path: Path, embedder) -> Path:
    create_store(tmp_path / "shop.gallery", Origin(embedder.contract.identity, embedder.engine, DIM)).close()
    return tmp_path / "shop.gallery"


@pytest.fixture
async def calls(folder: Path, embedder, tmp_path: Path):
    async with serving(folder, embedder, snapshots=tmp_path / "snapshots") as (calls, _, _):
        yield calls


def value(of) -> pb.Value:
    kind = {str: "text", bool: "boolean", int: "integer", float: "number"}[type(of)]
    return pb.Value(**{kind: of})


def new(number: int, *, attributes=None, **fields) -> pb.NewEntry:
    content = {} if "image" in fields else {"embedding": VECTORS[number].astype("<f4").tobytes()}
    attributes = {name: value(of) for name, of in (attributes or {}).items()}
    return pb.NewEntry(**{"entry_id": f"n{number}", **content, **fields}, attributes=attributes)


async def upsert(calls, *entries: pb.NewEntry, request_id: str = "") -> pb.BatchUpsertEntriesResponse:
    return await calls.BatchUpsertEntries(pb.BatchUpsertEntriesRequest(entries=entries, request_id=request_id))


async def refused(call) -> tuple[str, str, str]:
    """The status, the reason and the message of a refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told_by(caught.value)


def told_by(error: grpc.aio.AioRpcError) -> tuple[str, str, str]:
    info = error_details_pb2.ErrorInfo()
    (detail, *_) = rpc_status.from_call(error).details
    assert detail.Unpack(info)
    return error.code().name, info.reason, error.details() or ""


def entries_of(folder: Path) -> list[Entry]:
    return list(read_snapshot(folder).entries())


async def test_images_and_embeddings_are_written_and_found_by_the_next_search(folder, embedder, crops):
    image = sorted(crops.iterdir())[0].read_bytes()
    async with serving(folder, embedder) as (calls, search, _):
        one = new(1, pid="7", camid="c1", source="there", attributes={"a": "x", "b": 2, "c": 2.5, "d": True})
        one.timestamp.FromMicroseconds(-1_500_001)
        said = await upsert(calls, one, new(2, image=image, entry_id="crop"))
        assert (said.generation, said.written) == (1, 2)
        found = await search.Search(pb.SearchRequest(image=image, top_k=1))
        assert (found.hits[0].entry_id, found.generation) == ("crop", 1)
        assert found.hits[0].score == pytest.approx(1, abs=1e-6)
        found = await search.Search(pb.SearchRequest(embedding=VECTORS[1].tobytes(), top_k=1))
        assert (found.hits[0].entry_id, found.hits[0].attributes["c"].number) == ("n1", 2.5)
    first, second = entries_of(folder)
    attributes = {"a": "x", "b": 2, "c": 2.5, "d": True}
    assert first == Entry("n1", "7", "c1", timestamp=-1_500_001, source="there", attributes=attributes)
    assert second == Entry("crop")


WRONG_ENTRIES = {
    "no id": (new(1, entry_id=""), "ENTRY_INVALID", "1 to 1,024 characters, got 0"),
    "a long id": (new(1, entry_id="a" * 1025), "ENTRY_INVALID", "got 1025"),
    "nothing": (pb.NewEntry(entry_id="n1"), "ENTRY_INVALID", "'n1': expected an image or an embedding"),
    "no image": (pb.NewEntry(entry_id="n1", image=b"no"), "IMAGE_INVALID", "entry 'n1': "),
    "no floats": (pb.NewEntry(entry_id="n1", embedding=b"12345"), "ENTRY_INVALID", "got 5 bytes"),
    "too short": (pb.NewEntry(entry_id="n1", embedding=b"1234"), "ENTRY_INVALID", "24 dimensions, got 1"),
    "no unit": (pb.NewEntry(entry_id="n1", embedding=bytes(4 * DIM)), "ENTRY_INVALID", "unit length"),
    "a long pid": (new(1, pid="a" * 5000), "ENTRY_INVALID", "4096 characters, got 5000"),
    "nanoseconds": (new(1, timestamp={"nanos": 1001}), "ENTRY_INVALID", "whole microseconds"),
    "the year 0": (new(1, timestamp={"seconds": -(2**40)}), "ENTRY_INVALID", "the years 1 to 9999"),
    "no value": (pb.NewEntry(entry_id="n1", attributes={"a": pb.Value()}, image=b"x"), "ENTRY_INVALID", "got nothing"),
    "a bad name": (new(1, attributes={"a b": 1}), "ENTRY_INVALID", "a word of letters"),
    "twice": (new(2), "ENTRY_INVALID", "entry 'n2' comes twice"),
}


@pytest.mark.parametrize("case", WRONG_ENTRIES)
async def test_a_wrong_entry_refuses_the_whole_upsert(calls, case: str):
    wrong, reason, message = WRONG_ENTRIES[case]
    code, why, text = await refused(upsert(calls, new(2), wrong, new(3)))
    assert (code, why) == ("INVALID_ARGUMENT", reason)
    assert message in text
    assert (await calls.GetGallery(pb.GetGalleryRequest())).gallery.generation == 0


async def test_upserts_have_bounds(calls):
    many = [new(number % 300, entry_id=f"m{number}") for number in range(MAX_ENTRIES + 1)]
    assert (await refused(upsert(calls, *many)))[:2] == ("INVALID_ARGUMENT", "QUERY_INVALID")
    assert (await refused(upsert(calls)))[:2] == ("INVALID_ARGUMENT", "QUERY_INVALID")
    assert (await upsert(calls, *many[:-1])).written == MAX_ENTRIES


async def test_a_request_id_makes_each_write_safe_to_send_again(calls):
    first = await upsert(calls, new(1), request_id="a")
    assert await upsert(calls, new(1), request_id="a") == first
    assert (first.generation, first.written) == (1, 1)
    assert (await refused(upsert(calls, new(2), request_id="a")))[:2] == ("FAILED_PRECONDITION", "REQUEST_ID_REUSED")
    delete = pb.BatchDeleteEntriesRequest(entry_ids=["n1"], request_id="b")
    gone = await calls.BatchDeleteEntries(delete)
    await upsert(calls, new(1))
    assert (await calls.BatchDeleteEntries(delete)) == gone
    assert (gone.generation, gone.deleted) == (2, 1)
    update = pb.UpdateEntryRequest(
        entry=pb.Entry(entry_id="n1", pid="3"), update_mask=FieldMask(paths=["pid"]), request_id="c"
    )
    told = await calls.UpdateEntry(update)
    await upsert(calls, new(1, pid="4"))
    assert (await calls.UpdateEntry(update)) == told
    assert told.entry.pid == "3"
    # Another method's request is another request.
    update.request_id = "a"
    assert (await refused(calls.UpdateEntry(update)))[1] == "REQUEST_ID_REUSED"
    assert (await refused(upsert(calls, new(1), request_id="x" * 129)))[:2] == ("INVALID_ARGUMENT", "QUERY_INVALID")


async def test_what_failed_may_be_sent_again_under_its_id(calls):
    assert (await refused(upsert(calls, pb.NewEntry(entry_id="n1"), request_id="a")))[1] == "ENTRY_INVALID"
    assert (await upsert(calls, new(1), request_id="a")).written == 1


async def test_entries_are_deleted_by_id_or_by_filter_and_never_all_by_mistake(calls, folder: Path):
    await upsert(calls, *(new(number, camid=f"c{number % 3}") for number in range(9)))
    said = await calls.BatchDeleteEntries(pb.BatchDeleteEntriesRequest(entry_ids=["n0", "n8", "nobody"]))
    assert (said.generation, said.deleted) == (2, 2)
    where = pb.Filter(camids=pb.Choice(any_of=["c1"]))
    assert (await calls.BatchDeleteEntries(pb.BatchDeleteEntriesRequest(filter=where))).deleted == 3
    assert [entry.id for entry in entries_of(folder)] == ["n2", "n3", "n5", "n6"]
    for wrong in (
        pb.BatchDeleteEntriesRequest(),
        pb.BatchDeleteEntriesRequest(filter=pb.Filter()),
        pb.BatchDeleteEntriesRequest(filter=where, entry_ids=["n2"]),
        pb.BatchDeleteEntriesRequest(filter=pb.Filter(attributes=[pb.AttributeCondition(name="a")])),
        pb.BatchDeleteEntriesRequest(entry_ids=map(str, range(MAX_DELETED + 1))),
    ):
        assert (await refused(calls.BatchDeleteEntries(wrong)))[:2] == ("INVALID_ARGUMENT", "QUERY_INVALID")
    # One of none is something that is said.
    assert (
        await calls.BatchDeleteEntries(pb.BatchDeleteEntriesRequest(filter=pb.Filter(ids=pb.Choice())))
    ).deleted == 0
    assert len(entries_of(folder)) == 4


def update(*paths: str, attributes=None, **fields) -> pb.UpdateEntryRequest:
    said = pb.Entry(entry_id="n1", **fields, attributes={name: value(of) for name, of in (attributes or {}).items()})
    return pb.UpdateEntryRequest(entry=said, update_mask=FieldMask(paths=paths))


async def test_an_update_changes_what_its_mask_names_and_nothing_else(calls, folder: Path):
    await upsert(calls, new(1, pid="7", camid="c1", attributes={"colour": "red", "speed": 3, "seen": True}))
    said = await calls.UpdateEntry(
        update("camid", "pid", "attributes.speed", "attributes.seen", camid="c2", source="no", attributes={"speed": 4})
    )
    expected = Entry("n1", camid="c2", attributes={"colour": "red", "speed": 4})
    assert entries_of(folder) == [expected]
    assert (said.generation, said.entry.row, said.entry.camid, said.entry.HasField("pid")) == (2, 2, "c2", False)
    assert {name: one.WhichOneof("kind") for name, one in said.entry.attributes.items()} == {
        "colour": "text",
        "speed": "integer",
    }
    said = await calls.UpdateEntry(update("attributes", "timestamp", attributes={"x": 0.5}, timestamp={"seconds": 9}))
    assert entries_of(folder) == [Entry("n1", camid="c2", timestamp=9_000_000, attributes={"x": 0.5})]
    snapshot = read_snapshot(folder)
    assert snapshot.vector(snapshot.row("n1")).tobytes() == VECTORS[1].tobytes()
    assert (await calls.UpdateEntry(update("attributes"))).entry.attributes == {}


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (update(), "INVALID_ARGUMENT", "QUERY_INVALID"),
        (update("row"), "INVALID_ARGUMENT", "QUERY_INVALID"),
        (update("entry_id"), "INVALID_ARGUMENT", "QUERY_INVALID"),
        (update("*"), "INVALID_ARGUMENT", "QUERY_INVALID"),
        (update("attributes."), "INVALID_ARGUMENT", "QUERY_INVALID"),
        (update("pid", pid="a" * 5000), "INVALID_ARGUMENT", "ENTRY_INVALID"),
        (update("attributes.a b", attributes={"a b": 1}), "INVALID_ARGUMENT", "ENTRY_INVALID"),
        (update("timestamp", timestamp={"nanos": -1}), "INVALID_ARGUMENT", "ENTRY_INVALID"),
        (
            pb.UpdateEntryRequest(entry=pb.Entry(entry_id="n9"), update_mask=FieldMask(paths=["pid"])),
            "NOT_FOUND",
            "ENTRY_NOT_FOUND",
        ),
    ],
)
async def test_an_update_that_cannot_be_changes_nothing(calls, request_, code: str, reason: str):
    await upsert(calls, new(1))
    assert (await refused(calls.UpdateEntry(request_)))[:2] == (code, reason)
    assert (await calls.GetGallery(pb.GetGalleryRequest())).gallery.generation == 1


async def test_an_import_acknowledges_and_tells_what_it_leaves_out(calls, folder: Path):
    async def requests():
        for sequence in range(1, 301):
            entry = new(sequence - 1)
            if sequence == 5:
                entry.image = b"no image"
            if sequence == 290:
                entry.entry_id = ""
            yield pb.ImportEntriesRequest(gallery="shop" if sequence == 1 else "", sequence=sequence * 10, entry=entry)

    pieces = [piece async for piece in calls.ImportEntries(requests())]
    assert pieces[-1].acknowledged_sequence == 3000
    numbers = [piece.acknowledged_sequence for piece in pieces]
    assert numbers == sorted(set(numbers))
    assert sum(piece.written for piece in pieces) == 298
    faults = [fault for piece in pieces for fault in piece.faults]
    assert [(fault.sequence, fault.entry_id, fault.error.code, fault.error.reason) for fault in faults] == [
        (50, "n4", "INVALID_ARGUMENT", "IMAGE_INVALID"),
        (2900, "", "INVALID_ARGUMENT", "ENTRY_INVALID"),
    ]
    assert "entry 'n4': " in faults[0].error.message
    assert len(entries_of(folder)) == 298
    assert read_snapshot(folder).generation == pieces[-1].generation


@pytest.mark.parametrize(
    ("sequences", "galleries", "code"),
    [
        ([1, 2, 2], ["", "", ""], "INVALID_ARGUMENT"),
        ([3, 2], ["", ""], "INVALID_ARGUMENT"),
        ([0], [""], "INVALID_ARGUMENT"),
        ([1, 2], ["shop", "other"], "INVALID_ARGUMENT"),
        ([1], ["other"], "NOT_FOUND"),
    ],
)
async def test_an_import_whose_numbers_do_not_rise_or_that_changes_its_gallery_ends(calls, sequences, galleries, code):
    async def requests():
        for number, (sequence, name) in enumerate(zip(sequences, galleries, strict=True)):
            yield pb.ImportEntriesRequest(gallery=name, sequence=sequence, entry=new(number))

    pieces = []

    async def collect():
        async for piece in calls.ImportEntries(requests()):
            pieces.append(piece)

    assert (await refused(collect()))[0] == code
    # What came before it is in, and acknowledged.
    assert [piece.acknowledged_sequence for piece in pieces] == ([] if len(sequences) == 1 else [sequences[-2]])


async def test_an_import_of_nothing_is_answered_with_nothing(calls):
    async def requests():
        return
        yield

    assert [piece async for piece in calls.ImportEntries(requests())] == []


async def test_a_caller_that_hangs_up_keeps_what_was_acknowledged_and_goes_on_from_there(calls, folder: Path):
    async def requests(start: int, *, end: int | None):
        for sequence in range(start, 301):
            if end is not None and sequence > end:
                await asyncio.Event().wait()
            yield pb.ImportEntriesRequest(sequence=sequence, entry=new(sequence - 1))

    acknowledged = 0
    for end in (50, 120, 290):
        call = calls.ImportEntries(requests(acknowledged + 1, end=end))
        async for piece in call:
            acknowledged = piece.acknowledged_sequence
            if acknowledged == end:
                break
        call.cancel()
    assert acknowledged == 290
    assert [entry.id for entry in entries_of(folder)] == [f"n{number}" for number in range(290)]
    pieces = [piece async for piece in calls.ImportEntries(requests(281, end=None))]
    assert (pieces[-1].acknowledged_sequence, sum(piece.written for piece in pieces)) == (300, 10)
    assert [entry.id for entry in entries_of(folder)] == [f"n{number}" for number in range(300)]


async def waiting_requests(start: int, end: int):
    for sequence in range(start, end + 1):
        yield pb.ImportEntriesRequest(sequence=sequence, entry=new(sequence - 1))
    await asyncio.Event().wait()


async def test_an_import_ends_acknowledged_where_the_server_stops(folder: Path, embedder):
    async with serving(folder, embedder) as (calls, _, deployment):
        call = calls.ImportEntries(waiting_requests(1, 40))
        told = [await anext(aiter(call))]
        await deployment.drain(grace=20)
        assert deployment.under_way == 0
        assert (await refused(read_on(call, told)))[:2] == ("UNAVAILABLE", "NOT_SERVING")
    assert len(entries_of(folder)) == told[-1].acknowledged_sequence


async def read_on(call, told: list) -> None:
    async for piece in call:
        told.append(piece)


async def test_an_import_goes_on_with_the_model_that_took_the_place_of_its_first(folder: Path, embedder):
    async with serving(folder, embedder) as (calls, _, deployment):
        before = deployment.served
        assert before is not None
        call = calls.ImportEntries(waiting_requests(1, 40))
        told = [await anext(aiter(call))]
        pipeline = Pipeline(embedder, before.pipeline.galleries)
        writer = Writer(pipeline.galleries["shop"], pipeline.embed_for_import, receipts=before.writers["shop"].receipts)
        first = await upsert(calls, new(200), request_id="a")
        await deployment.replace(Served(pipeline, {"shop": writer}, 1))
        assert await upsert(calls, new(200), request_id="a") == first
        assert (await refused(read_on(call, told)))[1] == "NOT_SERVING"
        assert await deployment.settle(20)

        async def rest():
            for sequence in range(told[-1].acknowledged_sequence + 1, 101):
                yield pb.ImportEntriesRequest(sequence=sequence, entry=new(sequence - 1))

        pieces = [piece async for piece in calls.ImportEntries(rest())]
        assert pieces[-1].acknowledged_sequence == 100
    assert {entry.id for entry in entries_of(folder)} == {f"n{number}" for number in (*range(100), 200)}


async def test_a_snapshot_is_written_below_the_servers_folder(calls, tmp_path: Path):
    await upsert(calls, new(1), new(2))
    said = await calls.CreateSnapshot(pb.CreateSnapshotRequest(name="today"))
    assert (said.name, said.generation, said.entries) == ("today", 1, 2)
    copied = tmp_path / "snapshots" / "today"
    assert said.size == sum(path.stat().st_size for path in copied.iterdir())
    assert [entry.id for entry in entries_of(copied)] == ["n1", "n2"]
    named = await calls.CreateSnapshot(pb.CreateSnapshotRequest())
    assert (tmp_path / "snapshots" / named.name / "gallery.db").is_file()
    for name, code in (("today", "ALREADY_EXISTS"), ("../today", "INVALID_ARGUMENT"), ("..", "INVALID_ARGUMENT")):
        assert (await refused(calls.CreateSnapshot(pb.CreateSnapshotRequest(name=name))))[0] == code
    assert {path.name for path in tmp_path.iterdir()} == {"shop.gallery", "snapshots"}


async def test_a_gallery_that_is_only_read_refuses_every_write(folder: Path, embedder):
    async with serving(folder, embedder, write=False) as (calls, _, _):

        async def requests():
            yield pb.ImportEntriesRequest(sequence=1, entry=new(1))

        for call in (
            upsert(calls, new(1)),
            calls.BatchDeleteEntries(pb.BatchDeleteEntriesRequest(entry_ids=["n1"])),
            calls.UpdateEntry(update("pid")),
            calls.CreateSnapshot(pb.CreateSnapshotRequest()),
            anext(aiter(calls.ImportEntries(requests()))),
        ):
            assert (await refused(call))[:2] == ("FAILED_PRECONDITION", "READ_ONLY")


def test_every_call_that_writes_has_a_scope_and_its_own_messages():
    assert {(method.name, method.scope, method.kind) for method in METHODS} == {
        ("BatchUpsertEntries", "write", "unary"),
        ("BatchDeleteEntries", "write", "unary"),
        ("UpdateEntry", "write", "unary"),
        ("ImportEntries", "write", "duplex"),
        ("CreateSnapshot", "admin", "unary"),
    }
    calls = pb.DESCRIPTOR.services_by_name["GalleryService"].methods_by_name
    for method in METHODS:
        assert calls[method.name].input_type is method.request.DESCRIPTOR
        assert calls[method.name].output_type is method.response.DESCRIPTOR


async def test_a_gallery_that_is_written_to_has_no_other_writer(folder: Path, embedder):
    async with serving(folder, embedder):
        with pytest.raises(Exception, match="is being written to by"), closing(open_gallery(folder, write=True)):
            pass
