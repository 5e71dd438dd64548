"""What every call goes through, over real gRPC, with methods of the tests' own in the table."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from reidserve.errors import DeadlineError, RateLimitedError, UnauthenticatedError
from reidserve.index import open_gallery
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import ANYONE, REQUEST_ID, Arrival, Call, Caller
from reidserve.server.guard.gate import Gate
from reidserve.server.wire.calls import MOST_METADATA
from reidserve.server.wire.methods import GALLERY_SERVICE, MODEL_SERVICE, SERVICE, Method
from tests.test_service import serving, told

SEARCH, IMPORT = f"/{SERVICE}/Search", f"/{GALLERY_SERVICE}/ImportEntries"
RANK = f"/{SERVICE}/Rank"


def unary(answer) -> Method:
    return Method(SERVICE, "Search", reid_pb2.SearchRequest, reid_pb2.SearchResponse, "search", "unary", answer)


def stream(answer) -> Method:
    return Method(SERVICE, "Rank", reid_pb2.RankRequest, reid_pb2.RankResponse, "search", "stream", answer)


def duplex(answer) -> Method:
    return Method(
        *(GALLERY_SERVICE, "ImportEntries", reid_pb2.ImportEntriesRequest, reid_pb2.ImportEntriesResponse),
        *("write", "duplex", answer),
    )


class Kept:
    """Calls that came, and what became of them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.ended: list[str] = []

    async def at_once(self, served, request, call: Call):
        self.calls.append(call)
        return reid_pb2.SearchResponse(generation=7)

    async def never(self, served, request, call: Call):
        self.calls.append(call)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise

    async def one_then_never(self, served, request, call: Call):
        self.calls.append(call)
        yield reid_pb2.RankResponse(generation=1)
        await asyncio.sleep(60)

    async def count(self, served, requests: AsyncIterator[reid_pb2.ImportEntriesRequest], call: Call):
        self.calls.append(call)
        async for request in requests:
            yield reid_pb2.ImportEntriesResponse(acknowledged_sequence=request.sequence)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def a_server(gallery, embedder, *table: Method, **options):
    return serving({"labelled": open_gallery(gallery)}, embedder, table=table, **options)


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value


def details_of(error: grpc.RpcError) -> list:
    status = rpc_status.from_call(error)
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)}
    return [kinds[detail.TypeName()].FromString(detail.value) for detail in status.details]


@pytest.mark.parametrize("given", ["job-17/a", "x" * 64])
async def test_a_callers_own_id_comes_back_with_the_answer_and_with_an_error(gallery, embedder, kept, given):
    async with (
        a_server(gallery, embedder, unary(kept.at_once)) as (target, _, _),
        grpc.aio.insecure_channel(target) as channel,
    ):
        call = channel.unary_unary(SEARCH)(b"", metadata=((REQUEST_ID, given),))
        await call
        assert dict(await call.trailing_metadata())[REQUEST_ID] == given
        error = await refused(channel.unary_unary(SEARCH)(b"\xff", metadata=((REQUEST_ID, given),)))
        assert dict(error.trailing_metadata())[REQUEST_ID] == given
        assert details_of(error)[0].metadata == {"request_id": given}
    assert [call.request_id for call in kept.calls] == [given]


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", "a%b", "'; drop"])
async def test_an_id_that_is_not_sane_is_replaced(gallery, embedder, kept, given):
    async with (
        a_server(gallery, embedder, unary(kept.at_once)) as (target, _, _),
        grpc.aio.insecure_channel(target) as channel,
    ):
        for _ in range(2):
            await channel.unary_unary(SEARCH)(b"", metadata=((REQUEST_ID, given),))
    ids = [call.request_id for call in kept.calls]
    assert len(set(ids)) == 2
    assert given not in ids
    assert {len(name) for name in ids} == {32}


async def test_a_call_without_a_deadline_gets_the_servers_and_is_told_when_it_misses_it(gallery, embedder, kept):
    async with (
        a_server(gallery, embedder, unary(kept.never), default_deadline=0.1) as (target, _, calls),
        grpc.aio.insecure_channel(target) as channel,
    ):
        started = time.monotonic()
        error = await refused(channel.unary_unary(SEARCH)(b""))
        assert 0.1 <= time.monotonic() - started < 5
        assert told(error) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        assert "give it longer" in str(error.details())
        assert calls.deployment.under_way == 0
    assert kept.ended == ["cancelled"]


async def test_a_call_of_the_admin_scope_takes_as_long_as_it_takes(gallery, embedder, kept):
    types = (reid_pb2.ReloadRequest, reid_pb2.ReloadResponse)
    method = Method(MODEL_SERVICE, "Reload", *types, "admin", "unary", kept.at_once)
    async with (
        a_server(gallery, embedder, method, default_deadline=0.1) as (target, _, _),
        grpc.aio.insecure_channel(target) as channel,
    ):
        await channel.unary_unary(f"/{MODEL_SERVICE}/Reload")(b"")
    assert kept.calls[0].deadline == math.inf


@pytest.mark.parametrize("seconds", [1e6, 1e9])
async def test_a_deadline_that_means_none_is_none(gallery, embedder, kept, seconds):
    """Clients that know no "none" send a very large number."""
    method = unary(kept.at_once)
    async with (
        a_server(gallery, embedder, method, default_deadline=3.0) as (target, _, _),
        grpc.aio.insecure_channel(target) as channel,
    ):
        before = time.monotonic()
        await channel.unary_unary(SEARCH)(b"", timeout=seconds)
        await channel.unary_unary(SEARCH)(b"", timeout=60)
    assert before + 3 <= kept.calls[0].deadline <= time.monotonic() + 3
    assert before + 50 <= kept.calls[1].deadline <= before + 60.5


async def test_a_callers_own_deadline_ends_its_call_in_our_words(gallery, embedder, kept):
    async with (
        a_server(gallery, embedder, unary(kept.never)) as (target, _, calls),
        grpc.aio.insecure_channel(target) as channel,
    ):
        error = await refused(channel.unary_unary(SEARCH)(b"", timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while calls.deployment.under_way:
            await asyncio.sleep(0.01)
    assert kept.ended == ["cancelled"]


async def test_a_call_that_comes_too_late_costs_nothing(gallery, embedder, kept):
    method = unary(kept.at_once)
    async with a_server(gallery, embedder, method) as (_, _, calls):
        with pytest.raises(DeadlineError, match="after its deadline"):
            await calls.answer(method, b"", Arrival({}, "here", "http", time.monotonic() - 1))
    assert kept.calls == []


async def test_a_cancelled_call_ends_at_once(gallery, embedder, kept):
    async with (
        a_server(gallery, embedder, unary(kept.never)) as (target, _, calls),
        grpc.aio.insecure_channel(target) as channel,
    ):
        call = channel.unary_unary(SEARCH)(b"")
        while not kept.calls:
            await asyncio.sleep(0.01)
        call.cancel()
        while calls.deployment.under_way:
            await asyncio.sleep(0.01)
    assert kept.ended == ["cancelled"]


async def test_each_answer_of_a_stream_has_the_default_deadline(gallery, embedder, kept):
    async with (
        a_server(gallery, embedder, stream(kept.one_then_never), default_deadline=0.2) as (target, _, _),
        grpc.aio.insecure_channel(target) as channel,
    ):
        call = channel.unary_stream(RANK)(b"")
        assert reid_pb2.RankResponse.FromString(await call.read()).generation == 1
        assert told(await refused(call.read())) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


async def test_a_stream_of_requests_is_answered_while_it_goes_on_and_has_no_deadline(gallery, embedder, kept):
    async with (
        a_server(gallery, embedder, duplex(kept.count), default_deadline=0.1) as (target, _, calls),
        grpc.aio.insecure_channel(target) as channel,
    ):
        call = channel.stream_stream(IMPORT)()
        for number in (3, 5):
            await call.write(reid_pb2.ImportEntriesRequest(sequence=number).SerializeToString())
            said = reid_pb2.ImportEntriesResponse.FromString(await call.read())
            assert said.acknowledged_sequence == number
            await asyncio.sleep(0.15)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert dict(await call.trailing_metadata())[REQUEST_ID] == kept.calls[0].request_id
        assert calls.deployment.under_way == 0
    assert kept.calls[0].deadline == math.inf


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "REQUEST_INVALID"),
        (None, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        (reid_pb2.ImportEntriesRequest(gallery="other").SerializeToString(), "PERMISSION_DENIED", "PERMISSION_DENIED"),
    ],
    ids=["no message", "nothing", "a gallery that it may not write"],
)
async def test_a_stream_of_requests_ends_with_what_was_wrong_in_it(gallery, embedder, kept, sent, code, reason):
    class OnlyOne(Gate):
        def admit(self, arrival):
            return Caller("clerk", {"write": frozenset({"labelled"})})

    async with (
        a_server(gallery, embedder, duplex(kept.count), idle=0.2, gate=OnlyOne()) as (target, _, calls),
        grpc.aio.insecure_channel(target) as channel,
    ):
        call = channel.stream_stream(IMPORT)()
        await call.write(reid_pb2.ImportEntriesRequest(sequence=1).SerializeToString())
        await call.read()
        if sent is not None:
            await call.write(sent)
        assert told(await refused(call.read())) == (code, reason)
        assert calls.deployment.under_way == 0


async def test_whoever_begins_an_import_and_sends_nothing_keeps_no_server_from_ending(gallery, embedder, kept):
    async with (
        a_server(gallery, embedder, duplex(kept.count)) as (target, _, calls),
        grpc.aio.insecure_channel(target) as channel,
    ):
        call = channel.stream_stream(IMPORT)()
        while not kept.calls:
            await asyncio.sleep(0.01)
        started = time.monotonic()
        await calls.deployment.drain(grace=30)
        assert time.monotonic() - started < 10
        assert told(await refused(call.read())) == ("UNAVAILABLE", "NOT_SERVING")


async def test_metadata_beyond_the_limits_is_refused_in_words(gallery, embedder, kept):
    async with (
        a_server(gallery, embedder, unary(kept.at_once)) as (target, _, _),
        grpc.aio.insecure_channel(target) as channel,
    ):
        for metadata in (
            tuple((f"x-{place}", "y") for place in range(MOST_METADATA + 1)),
            (("x-large", "y" * 6200),),
        ):
            error = await refused(channel.unary_unary(SEARCH)(b"", metadata=metadata))
            assert told(error) == ("INVALID_ARGUMENT", "METADATA_TOO_LARGE")
            assert "a call may have 64 names of metadata and 6,144 bytes" in str(error.details())
        await channel.unary_unary(SEARCH)(b"", metadata=(("x-some", "y" * 5000),))
    assert len(kept.calls) == 1


async def test_the_gate_is_asked_before_a_request_is_parsed_and_told_its_images(gallery, embedder, kept):
    class Strict(Gate):
        spent: list[int] = []  # noqa: RUF012  # one gate, one test

        def admit(self, arrival):
            if "authorization" not in arrival.metadata:
                raise UnauthenticatedError("this server asks for a key")
            return ANYONE

        def spend(self, caller, images):
            self.spent.append(images)
            if images > 2:
                raise RateLimitedError("too fast", retry_after=0.5)

    def track(count: int) -> bytes:
        return reid_pb2.SearchRequest(track=reid_pb2.Track(images=[b"x"] * count)).SerializeToString()

    async with (
        a_server(gallery, embedder, unary(kept.at_once), gate=Strict()) as (target, _, _),
        grpc.aio.insecure_channel(target) as channel,
    ):
        ask = channel.unary_unary(SEARCH)
        assert told(await refused(ask(b"\xff\xff"))) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        key = (("authorization", "Bearer x"),)
        assert told(await refused(ask(b"\xff\xff", metadata=key))) == ("INVALID_ARGUMENT", "REQUEST_INVALID")
        await ask(track(2), metadata=key)
        error = await refused(ask(track(3), metadata=key))
    info, retry = details_of(error)
    assert (error.code().name, info.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert retry.retry_delay.ToMilliseconds() == 500
    assert Strict.spent == [2, 3]
    assert len(kept.calls) == 1


async def test_what_nobody_planned_is_logged_once_and_does_not_leave(gallery, embedder, caplog):
    async def fail(served, request, call):
        raise ValueError("/secret/path")

    async with (
        a_server(gallery, embedder, unary(fail)) as (target, _, calls),
        grpc.aio.insecure_channel(target) as channel,
    ):
        with caplog.at_level(logging.ERROR, logger="reidserve.server.wire"):
            error = await refused(channel.unary_unary(SEARCH)(b""))
        assert calls.deployment.under_way == 0
    assert told(error) == ("INTERNAL", "INTERNAL")
    assert "secret" not in str(error.details())
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info] == [("/secret/path",)]


async def test_a_transport_that_is_not_grpc_gets_the_same_answer(gallery, embedder, kept):
    method = unary(kept.at_once)
    async with a_server(gallery, embedder, method) as (_, _, calls):
        answer = await calls.answer(method, b"", Arrival({REQUEST_ID: "h-1"}, "127.0.0.1", "http"))
    assert answer == reid_pb2.SearchResponse(generation=7)
    assert (kept.calls[0].method, kept.calls[0].request_id) == (f"{SERVICE}/Search", "h-1")
