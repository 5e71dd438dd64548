import asyncio
import threading
from pathlib import Path

import grpc
import pytest

from reidserve.client import AsyncClient, Client, NewEntry, RefusedError, TimedOutError
from reidserve.proto.reid.v1 import reid_pb2
from tests.scripted import refuse, scripted

CODE = grpc.StatusCode


def entries(count: int):
    return [NewEntry(f"e{number}", embedding=[1.0], pid=f"{number}") for number in range(1, count + 1)]


def import_by_sync(target, given, **options):
    with Client(target) as client:
        return client.import_entries(given, **options)


def import_by_asyncio(target, given, **options):
    async def go():
        async with AsyncClient(target) as client:
            return await client.import_entries(given, **options)

    return asyncio.run(go())


async def one_by_one(given):
    for entry in given:
        await asyncio.sleep(0)
        yield entry


def import_asynchronous(target, given, **options):
    async def go():
        async with AsyncClient(target) as client:
            return await client.import_entries(one_by_one(given), **options)

    return asyncio.run(go())


@pytest.fixture(params=[import_by_sync, import_asynchronous])
def send(request):
    return request.param


class Taker:
    """Takes entries and acknowledges every `piece`-th; a stream breaks where `breaks` says, before it acknowledges."""

    def __init__(self, piece: int, breaks: dict[int, grpc.StatusCode] | None = None) -> None:
        self.piece, self.breaks = piece, dict(breaks or {})
        self.streams: list[list[int]] = []
        self.galleries: set[str] = set()

    def __call__(self, requests, context):
        taken: list[int] = []
        self.streams.append(taken)
        waiting = 0
        for raw in requests:
            request = reid_pb2.ImportEntriesRequest.FromString(raw)
            assert request.entry.entry_id == f"e{request.sequence}"
            assert request.entry.pid == f"{request.sequence}"
            self.galleries.add(request.gallery)
            taken.append(request.sequence)
            waiting += 1
            if code := self.breaks.pop(request.sequence, None):
                refuse(context, code, "WHY", retry_after=0.01 if code is CODE.RESOURCE_EXHAUSTED else None)
            if waiting == self.piece:
                yield self.acknowledge(request.sequence, waiting)
                waiting = 0
        if waiting:
            yield self.acknowledge(taken[-1], waiting)

    def acknowledge(self, sequence: int, written: int) -> bytes:
        return reid_pb2.ImportEntriesResponse(
            acknowledged_sequence=sequence, generation=sequence, written=written
        ).SerializeToString()


def test_the_asyncio_client_takes_a_plain_iterable_too():
    taker, told = Taker(4, {7: CODE.DEADLINE_EXCEEDED}), []
    with scripted({"ImportEntries": taker}) as server:
        done = import_by_asyncio(server.target, entries(10), progress=told.append)
    assert (done.entries, done.written, told) == (10, 10, [4, 8, 10])
    assert taker.streams == [list(range(1, 8)), list(range(5, 11))]


def test_entries_are_sent_in_order_and_told_as_they_are_acknowledged(send):
    taker, told = Taker(4), []
    with scripted({"ImportEntries": taker}) as server:
        done = send(server.target, entries(10), gallery="yard", progress=told.append)
    assert (done.entries, done.written, done.generation, done.faults) == (10, 10, 10, ())
    assert taker.streams == [list(range(1, 11))]
    assert taker.galleries == {"yard"}
    assert told == [4, 8, 10]


def test_a_broken_stream_is_begun_again_behind_the_last_acknowledged_entry(send):
    taker, told = Taker(3, {8: CODE.UNAVAILABLE, 9: CODE.RESOURCE_EXHAUSTED}), []
    with scripted({"ImportEntries": taker}) as server:
        done = send(server.target, iter(entries(20)), progress=told.append)
    first, second, third = taker.streams
    assert first == list(range(1, 9))
    # 1 to 6 were acknowledged, and nothing since.
    assert second == [7, 8, 9]
    assert third == list(range(7, 21))
    assert (done.entries, done.written) == (20, 20)
    assert told == [3, 6, 9, 12, 15, 18, 20]


def test_a_stream_that_the_server_ends_early_is_begun_again(send):
    streams = []

    def reply(requests, context):
        streams.append([])
        for raw in requests:
            sequence = reid_pb2.ImportEntriesRequest.FromString(raw).sequence
            streams[-1].append(sequence)
            if len(streams) == 1 and sequence == 3:
                return
            yield reid_pb2.ImportEntriesResponse(acknowledged_sequence=sequence, written=1).SerializeToString()

    with scripted({"ImportEntries": reply}) as server:
        done = send(server.target, entries(5))
    assert [stream[0] for stream in streams] == [1, 3]
    assert (done.entries, done.written) == (5, 5)


def test_a_stream_that_the_server_ends_with_all_acknowledged_and_more_to_come_is_begun_again(send):
    streams, ended = [], threading.Event()

    def given():
        yield from entries(3)
        assert ended.wait(20)
        yield from entries(5)[3:]

    def reply(requests, context):
        streams.append([])
        for raw in requests:
            sequence = reid_pb2.ImportEntriesRequest.FromString(raw).sequence
            streams[-1].append(sequence)
            yield reid_pb2.ImportEntriesResponse(acknowledged_sequence=sequence, written=1).SerializeToString()
            if len(streams) == 1 and sequence == 3:
                ended.set()
                return

    with scripted({"ImportEntries": reply}) as server:
        done = send(server.target, given())
    assert streams == [[1, 2, 3], [4, 5]]
    assert (done.entries, done.written) == (5, 5)


def test_a_number_that_was_never_sent_acknowledges_what_was(send):
    def reply(requests, context):
        for _ in requests:
            pass
        yield reid_pb2.ImportEntriesResponse(acknowledged_sequence=2**60, generation=1, written=3).SerializeToString()

    told = []
    with scripted({"ImportEntries": reply}) as server:
        done = send(server.target, entries(3), progress=told.append)
    assert (done.entries, done.written, told) == (3, 3, [3])


def test_an_import_that_is_cancelled_ends_though_its_entries_never_would():
    async def never():
        for entry in entries(3):
            yield entry
        await asyncio.Event().wait()

    async def go(target: str) -> list[int]:
        told: list[int] = []
        async with AsyncClient(target) as client:
            importing = asyncio.ensure_future(client.import_entries(never(), progress=told.append))
            while told != [1, 2, 3]:
                await asyncio.sleep(0.01)
            importing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(importing, 5)
        return told

    with scripted({"ImportEntries": Taker(1)}) as server:
        assert asyncio.run(go(server.target)) == [1, 2, 3]


def test_an_import_that_is_refused_ends_with_that(send):
    taker = Taker(2, {4: CODE.FAILED_PRECONDITION})
    with scripted({"ImportEntries": taker}) as server, pytest.raises(RefusedError) as failure:
        send(server.target, entries(9))
    assert failure.value.reason == "WHY"
    assert len(taker.streams) == 1


def test_what_is_never_acknowledged_ends_an_import(send):
    ended = threading.Event()

    def reply(requests, context):
        next(requests)
        ended.wait(20)
        yield from ()

    with scripted({"ImportEntries": reply}) as server:
        with pytest.raises(TimedOutError):
            send(server.target, entries(2), timeout=0.5)
        ended.set()


def test_an_image_that_cannot_be_read_is_left_out_and_named(send, tmp_path: Path):
    given = [*entries(2), NewEntry("gone", image=tmp_path / "gone.jpg"), *entries(3)[2:]]
    taker = Taker(2)
    with scripted({"ImportEntries": taker}) as server:
        done = send(server.target, given)
    assert (done.entries, done.written) == (4, 3)
    (fault,) = done.faults
    assert fault.entry_id == "gone"
    assert isinstance(fault.error, FileNotFoundError)


def test_what_the_server_leaves_out_is_named(send):
    def reply(requests, context):
        last = [reid_pb2.ImportEntriesRequest.FromString(raw).sequence for raw in requests][-1]
        error = reid_pb2.Refusal(code="INVALID_ARGUMENT", reason="IMAGE_INVALID", message="expected a JPEG")
        fault = reid_pb2.ImportFault(sequence=2, entry_id="e2", error=error)
        yield reid_pb2.ImportEntriesResponse(
            acknowledged_sequence=last, generation=5, written=2, faults=[fault]
        ).SerializeToString()

    with scripted({"ImportEntries": reply}) as server:
        done = send(server.target, entries(3))
    assert (done.entries, done.written, done.generation) == (3, 2, 5)
    assert [(fault.entry_id, type(fault.error), fault.error.reason) for fault in done.faults] == [
        ("e2", RefusedError, "IMAGE_INVALID")
    ]


def test_where_the_entries_end_in_an_error_what_came_before_is_written_and_the_error_raised(send):
    def given():
        yield from entries(5)
        raise KeyError("my own")

    taker = Taker(2)
    with scripted({"ImportEntries": taker}) as server, pytest.raises(KeyError, match="my own"):
        send(server.target, given())
    assert taker.streams == [[1, 2, 3, 4, 5]]


def test_an_error_of_the_callers_progress_ends_the_import():
    def told(count: int) -> None:
        raise KeyError(count)

    with scripted({"ImportEntries": Taker(2)}) as server, pytest.raises(KeyError, match="2"):
        import_by_sync(server.target, entries(9), progress=told)


def test_nothing_is_imported_of_no_entries(send):
    with scripted({"ImportEntries": Taker(2)}) as server:
        done = send(server.target, [])
    assert (done.entries, done.written, done.faults) == (0, 0, ())
