import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from reidserve.client import (
    AccessError,
    AsyncClient,
    BusyError,
    Client,
    NewEntry,
    NotFoundError,
    RefusedError,
    RequestError,
    TimedOutError,
    UnavailableError,
)
from reidserve.client.refusals import refusal
from reidserve.client.retries import Attempts, Budget, Resuming, backoff
from reidserve.proto.reid.v1 import reid_pb2
from tests.scripted import free_port, refuse, scripted, serve

CODE = grpc.StatusCode
ENTRY = NewEntry("a", embedding=[1.0])


@pytest.fixture(params=["sync", "asyncio"])
def ask(request):
    """Asks a server by either client: ask(target, method, *arguments, **options of the client)."""

    def by_sync(target, method, *arguments, **options):
        with Client(target, **options) as client:
            return getattr(client, method)(*arguments)

    def by_asyncio(target, method, *arguments, **options):
        async def go():
            async with AsyncClient(target, **options) as client:
                return await getattr(client, method)(*arguments)

        return asyncio.run(go())

    return by_sync if request.param == "sync" else by_asyncio


def refusing(times: int, code: grpc.StatusCode, answer: Any, **said):
    """An answer that is refused so many times before it is given; and what was asked."""
    asked = []

    def reply(raw: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(raw)
        if len(asked) <= times:
            refuse(context, code, **said)
        return answer.SerializeToString()

    return reply, asked


def unavailable() -> RequestError:
    return refusal("down", code="UNAVAILABLE", reason="NOT_SERVING")


@pytest.mark.parametrize(
    ("code", "retry_after", "kind"),
    [
        ("INVALID_ARGUMENT", None, RefusedError),
        ("FAILED_PRECONDITION", None, RefusedError),
        ("UNIMPLEMENTED", None, RefusedError),
        ("NOT_FOUND", None, NotFoundError),
        ("UNAUTHENTICATED", None, AccessError),
        ("PERMISSION_DENIED", None, AccessError),
        ("RESOURCE_EXHAUSTED", 2.5, BusyError),
        ("RESOURCE_EXHAUSTED", None, RefusedError),
        ("UNAVAILABLE", None, UnavailableError),
        ("UNAVAILABLE", 2.5, UnavailableError),
        ("DEADLINE_EXCEEDED", None, TimedOutError),
        ("INTERNAL", None, RequestError),
        ("UNKNOWN", None, RequestError),
    ],
)
def test_a_failure_is_of_the_kind_that_says_what_to_do(code, retry_after, kind):
    failure = refusal("no", code=code, reason="WHY", request_id="7", retry_after=retry_after)
    assert type(failure) is kind
    assert (str(failure), failure.code, failure.reason) == ("no", code, "WHY")
    assert (failure.request_id, failure.retry_after) == ("7", retry_after)


def test_what_the_server_says_of_a_failure_reaches_the_caller(ask):
    reply, _ = refusing(9, CODE.NOT_FOUND, None, reason="ENTRY_NOT_FOUND", message="no entry 'a'", request_id="r-1")
    with scripted({"GetEntry": reply}) as server, pytest.raises(NotFoundError, match="no entry 'a'") as failure:
        ask(server.target, "entry", "a")
    assert (failure.value.reason, failure.value.request_id) == ("ENTRY_NOT_FOUND", "r-1")
    assert isinstance(failure.value.__cause__, grpc.RpcError)


def test_a_busy_server_is_asked_again_after_the_time_that_it_says(ask):
    answer = reid_pb2.SearchResponse(generation=7)
    reply, asked = refusing(2, CODE.RESOURCE_EXHAUSTED, answer, reason="OVERLOADED", retry_after=0.2)
    began = time.monotonic()
    with scripted({"Search": reply}) as server:
        assert ask(server.target, "search", b"image").generation == 7
    assert len(asked) == 3
    # Twice the hint, and 0.8 of what is due besides: 0.2 s, then 0.4 s.
    assert time.monotonic() - began >= 2 * 0.2 + 0.8 * (0.2 + 0.4)


def test_a_write_keeps_its_request_id_when_it_is_sent_again_and_another_write_has_another(ask):
    reply, asked = refusing(1, CODE.UNAVAILABLE, reid_pb2.BatchUpsertEntriesResponse(generation=3, written=1))
    with scripted({"BatchUpsertEntries": reply}) as server:
        written = ask(server.target, "upsert", [ENTRY])
        ask(server.target, "upsert", [ENTRY])
    assert (written.generation, written.written) == (3, 1)
    first, again, other = (reid_pb2.BatchUpsertEntriesRequest.FromString(raw).request_id for raw in asked)
    assert first == again != other
    assert len(first) == len(other) == 32


@pytest.mark.parametrize(
    ("method", "arguments", "call"),
    [("snapshot", (), "CreateSnapshot"), ("reload", (), "Reload")],
)
def test_what_must_not_be_done_twice_is_asked_once(ask, method, arguments, call):
    reply, asked = refusing(9, CODE.UNAVAILABLE, None, reason="NOT_SERVING")
    with scripted({call: reply}) as server, pytest.raises(UnavailableError):
        ask(server.target, method, *arguments)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (CODE.DEADLINE_EXCEEDED, TimedOutError),
        (CODE.RESOURCE_EXHAUSTED, RefusedError),
        (CODE.INTERNAL, RequestError),
        (CODE.FAILED_PRECONDITION, RefusedError),
    ],
)
def test_what_asking_again_does_not_help_is_asked_once(ask, code, kind):
    reply, asked = refusing(9, code, None, reason="WHY")
    with scripted({"BatchUpsertEntries": reply}) as server, pytest.raises(kind) as failure:
        ask(server.target, "upsert", [ENTRY])
    assert (len(asked), failure.value.code) == (1, code.name)


def test_a_hint_beyond_the_deadline_ends_the_call_at_once(ask):
    reply, asked = refusing(9, CODE.RESOURCE_EXHAUSTED, None, reason="RATE_LIMITED", retry_after=60)
    began = time.monotonic()
    with scripted({"Search": reply}) as server, pytest.raises(BusyError) as failure:
        ask(server.target, "search", b"image", timeout=20)
    assert (len(asked), failure.value.retry_after) == (1, 60)
    assert time.monotonic() - began < 15


def test_a_call_ends_at_its_deadline_though_the_server_does_not(ask):
    ended = threading.Event()
    with scripted({"Search": lambda raw, context: ended.wait(20)}) as server:
        began = time.monotonic()
        with pytest.raises(TimedOutError):
            ask(server.target, "search", b"image", timeout=0.3)
        assert time.monotonic() - began < 10
        ended.set()


def test_no_retry_is_begun_beyond_the_deadline_or_the_number_of_them():
    attempts = Attempts(0.6, retries=9, budget=Budget())
    assert 0.16 <= attempts.pause(unavailable()) <= 0.24
    assert 0.32 <= attempts.pause(unavailable()) <= 0.48
    with pytest.raises(UnavailableError):  # 0.8 s are due, a fifth less at least
        attempts.pause(unavailable())
    attempts = Attempts(60, retries=1, budget=Budget())
    attempts.pause(unavailable())
    with pytest.raises(UnavailableError):
        attempts.pause(unavailable())


def test_a_client_whose_calls_fail_asks_nothing_again_until_some_were_answered():
    budget = Budget()
    assert [budget.failed() for _ in range(12)] == [True] * 9 + [False] * 3
    for _ in range(30):
        budget.answered()
    assert budget.failed() is False  # 8 + 3 - 1 are not above 10
    for _ in range(11):
        budget.answered()
    assert budget.failed() is True
    for _ in range(1000):
        budget.answered()
    assert [budget.failed() for _ in range(10)] == [True] * 9 + [False]


def test_pauses_differ_and_hold_to_their_bounds():
    pauses = {backoff(1.0, unavailable()) for _ in range(200)}
    assert len(pauses) > 100
    assert min(pauses) >= 0.8
    assert max(pauses) <= 1.2
    assert backoff(500.0, unavailable()) <= 12
    busy = refusal("busy", code="RESOURCE_EXHAUSTED", reason="OVERLOADED", retry_after=3.0)
    assert 3.8 <= backoff(1.0, busy) <= 4.2


def test_an_import_goes_on_as_long_as_something_is_acknowledged():
    resuming = Resuming(1.2, retries=1)
    assert 0.16 <= resuming.pause(unavailable()) <= 0.24
    with pytest.raises(UnavailableError):  # nothing was acknowledged yet, and it had one retry
        resuming.pause(unavailable())
    resuming.acknowledged()
    assert 0.16 <= resuming.pause(unavailable()) <= 0.24
    assert 0.32 <= resuming.pause(unavailable()) <= 0.48
    assert 0.64 <= resuming.pause(unavailable()) <= 0.96
    with pytest.raises(UnavailableError):  # 1.6 s are due
        resuming.pause(unavailable())
    resuming.acknowledged()
    assert 0.16 <= resuming.pause(unavailable()) <= 0.24
    with pytest.raises(AccessError):
        resuming.pause(refusal("no", code="UNAUTHENTICATED", reason="UNAUTHENTICATED"))
    with pytest.raises(UnavailableError):
        Resuming(0.1, retries=9).pause(unavailable())


def test_an_import_to_no_server_ends_soon(ask):
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="is reid-serve running there"):
        ask("127.0.0.1:1", "import_entries", [ENTRY], retries=1)
    assert time.monotonic() - began < 15


def test_a_server_that_was_killed_and_started_again_is_found_by_the_call_under_way(
    model: Path, gallery: Path, crops: Path
):
    path, port = sorted(crops.iterdir())[0], free_port()
    server = serve(port, "--model", model, "--gallery", gallery)
    found = []
    try:
        assert server.stdout is not None
        server.stdout.readline()
        with Client(f"127.0.0.1:{port}", timeout=60, retries=9) as client:
            before = client.search(path, 5)
            os.kill(server.pid, signal.SIGKILL)
            server.communicate()
            asking = threading.Thread(target=lambda: found.append(client.search(path, 5)))
            asking.start()
            time.sleep(0.3)
            assert found == []
            server = serve(port, "--model", model, "--gallery", gallery)
            asking.join(60)
    finally:
        server.kill()
        server.communicate()
    assert [hit.entry_id for hit in found[0].hits] == [hit.entry_id for hit in before.hits]
