"""The calls over real HTTP, in front of the real pipeline, writers and gate."""

import asyncio
import base64
import contextlib
import json
import random
import re
import shutil
import signal
import socket
import ssl
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme
from google.protobuf import json_format

from reidserve.errors import OverloadedError, ServerError
from reidserve.index import open_gallery
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.assembly import Assembly
from reidserve.server.call import Arrival
from reidserve.server.deployment import Deployment
from reidserve.server.guard.audit import Audit
from reidserve.server.guard.gate import Gate
from reidserve.server.guard.tls import watch_certificate
from reidserve.server.http import listening
from reidserve.server.http.app import make_app
from reidserve.server.http.bodies import Bodies
from reidserve.server.http.listening import listening_http
from reidserve.server.http.routes import routes
from reidserve.server.http.status import STATUSES
from reidserve.server.loading import Loaded
from reidserve.server.settings import Settings
from reidserve.server.telemetry import open_telemetry
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.service import methods
from tests.conftest import DIM
from tests.test_keys import add
from tests.test_service import no_reload

ENTRY = "0001_c1s1_000000_00.png"
TABLE = methods(no_reload)


class Running:
    """A server in this process and a client of it."""

    def __init__(self, address, client, calls, deployment, telemetry):
        self.address = address
        self.client = client
        self.calls = calls
        self.deployment = deployment
        self.telemetry = telemetry

    async def ask(self, verb: str, path: str, **said) -> tuple[int, dict]:
        answer = await self.client.request(verb, path, **said)
        assert answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json()

    def count(self, **labels: str) -> float:
        """How many calls with these labels have ended."""
        wanted = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
        for line in self.telemetry.render().decode().splitlines():
            if line.startswith("reidserve_requests_total{") and all(part in line for part in wanted.split(",")):
                return float(line.split()[-1])
        return 0.0


@asynccontextmanager
async def serving(
    embedder, folder: Path, *, table=TABLE, keys: Path | None = None, tls=None, most=2**20, settings=None, **told
):
    settings = Settings(Path("model"), [folder], snapshots=folder.parent) if settings is None else settings
    telemetry = open_telemetry(metrics=True)
    deployment, audit = Deployment(), Audit()
    calls = Calls(deployment, Gate(keys, look_seconds=0), telemetry)
    gallery = open_gallery(folder, write=True)
    loaded = Loaded(embedder, {"shop": gallery}, None)
    await deployment.replace(await Assembly(settings, telemetry, audit)(loaded, None))
    app = make_app(calls, telemetry, table, ready=lambda: deployment.is_serving, message_bytes=most, **told)
    async with listening_http(app, "127.0.0.1:0", tls) as address:
        kind = "http" if tls is None else "https"
        async with httpx.AsyncClient(
            base_url=f"{kind}://{address}", trust_env=False, verify=False, timeout=20
        ) as client:
            yield Running(address, client, calls, deployment, telemetry)
    await deployment.close()


@pytest.fixture
def folder(gallery, tmp_path) -> Path:
    return Path(shutil.copytree(gallery, tmp_path / "shop.gallery"))


@pytest.fixture
async def server(embedder, folder):
    async with serving(embedder, folder) as running:
        yield running


async def over_grpc(running: Running, name: str, request):
    """What the same call comes to when it comes in protobuf."""
    method = next(method for method in TABLE if method.name == name)
    return await running.calls.answer(method, request.SerializeToString(), Arrival({}, "test", "grpc"))


async def test_a_search_is_answered_as_over_grpc(server, crops):
    image = (crops / ENTRY).read_bytes()
    asked = reid_pb2.SearchRequest(image=image, top_k=7)
    asked.filter.exclude_camids.append("1")
    expected = await over_grpc(server, "Search", asked)
    assert len(expected.hits) == 7
    said = {"image": base64.b64encode(image).decode(), "topK": 7, "filter": {"excludeCamids": ["1"]}}
    for path in ("/v1/search", "/reid.v1.SearchService/Search"):
        code, answer = await server.ask("POST", path, json=said)
        assert code == 200
        found = json_format.ParseDict(answer, reid_pb2.SearchResponse())
        assert list(found.hits) == list(expected.hits)
        assert (found.model, found.generation) == (expected.model, expected.generation)
        assert set(answer["timings"]) >= {"decode", "embed", "search", "total"}


async def test_an_image_can_be_the_body_and_the_rest_the_query(server, crops):
    image = (crops / ENTRY).read_bytes()
    asked = reid_pb2.SearchRequest(image=image, top_k=3, group_by_pid=True, gallery="shop")
    asked.rerank.k1 = 5
    expected = await over_grpc(server, "Search", asked)
    query = "gallery=shop&topK=3&group_by_pid=true&rerank.k1=5"
    code, answer = await server.ask("POST", f"/v1/search?{query}", content=image, headers={"content-type": "image/png"})
    assert code == 200
    assert list(json_format.ParseDict(answer, reid_pb2.SearchResponse()).hits) == list(expected.hits)
    code, answer = await server.ask("POST", "/v1/embed", content=image, headers={"content-type": "image/png"})
    embedding = np.frombuffer(base64.b64decode(answer["embedding"]), "<f4")
    np.testing.assert_array_equal(
        embedding,
        np.frombuffer((await over_grpc(server, "Embed", reid_pb2.EmbedRequest(image=image))).embedding, "<f4"),
    )


async def test_searches_in_a_batch_fail_alone(server):
    said = {"requests": [{"entryId": ENTRY, "topK": 2}, {"entryId": "nobody"}]}
    code, answer = await server.ask("POST", "/v1/batch-search", json=said)
    first, second = answer["results"]
    assert (code, len(first["response"]["hits"])) == (200, 2)
    assert (second["error"]["code"], second["error"]["reason"]) == ("NOT_FOUND", "ENTRY_NOT_FOUND")


async def test_what_is_empty_is_there(server):
    code, answer = await server.ask("POST", "/v1/search", json={"entryId": ENTRY, "filter": {"pids": {}}})
    assert (code, answer["hits"], answer["batchSize"]) == (200, [], 0)
    assert "bestScore" not in answer


async def test_galleries_and_entries_are_resources(server, crops):
    code, answer = await server.ask("GET", "/v1/galleries")
    assert (code, [one["name"] for one in answer["galleries"]]) == (200, ["shop"])
    code, answer = await server.ask("GET", "/v1/galleries/shop")
    assert (code, answer["gallery"]["entries"], answer["gallery"]["writable"]) == (200, "40", True)
    code, answer = await server.ask("GET", "/v1/model")
    assert (code, answer["height"], answer["dim"]) == (200, 64, DIM)

    listed, token = [], ""
    while not listed or token:
        query = f"page_size=15&page_token={token}"
        code, answer = await server.ask("GET", f"/v1/galleries/shop/entries?{query}")
        assert code == 200
        listed += [one["entryId"] for one in answer["entries"]]
        token = answer["nextPageToken"]
    assert listed == sorted(path.name for path in crops.iterdir())

    image = base64.b64encode((crops / ENTRY).read_bytes()).decode()
    odd = "yard/ä b.png/"
    entries = [
        {
            "entryId": odd,
            "image": image,
            "pid": "77",
            "timestamp": "2026-05-01T08:00:00.000001Z",
            "attributes": {"speed": {"integer": "3"}},
        }
    ]
    code, written = await server.ask("POST", "/v1/galleries/shop/entries", json={"entries": entries})
    assert (code, written["written"]) == (200, 1)
    path = "/v1/galleries/shop/entries/yard/%C3%A4%20b.png/"
    code, answer = await server.ask("GET", f"{path}?with_embedding=true")
    entry = answer["entry"]
    assert (code, entry["entryId"], entry["pid"], entry["attributes"]) == (200, odd, "77", {"speed": {"integer": "3"}})
    assert (entry["timestamp"], len(base64.b64decode(answer["embedding"]))) == ("2026-05-01T08:00:00.000001Z", 4 * DIM)

    code, answer = await server.ask("PATCH", path, json={"entry": {"pid": "78"}, "updateMask": "pid"})
    assert (code, answer["entry"]["pid"], answer["entry"]["entryId"]) == (200, "78", odd)
    # An attribute is of any spelling, and none may be taken for another.
    for name in ("doorNumber", "door_number", "Door"):
        patch = {"entry": {"attributes": {name: {"text": "7"}}}, "updateMask": f"attributes.{name}"}
        code, answer = await server.ask("PATCH", path, json=patch)
        assert (code, answer["entry"]["attributes"][name]) == (200, {"text": "7"})
    code, answer = await server.ask("PATCH", f"{path}?update_mask=attributes.door_number,attributes.speed", json={})
    assert (code, sorted(answer["entry"]["attributes"])) == (200, ["Door", "doorNumber"])
    code, answer = await server.ask("PATCH", path, json={"entry": {}, "updateMask": ["pid"]})
    assert (code, answer["reason"]) == (400, "REQUEST_INVALID")
    code, answer = await server.ask("POST", "/v1/galleries/shop/entries:delete", json={"entryIds": [odd, "nobody"]})
    assert (code, answer["deleted"]) == (200, 1)
    code, answer = await server.ask("GET", path)
    assert (code, answer["reason"]) == (404, "ENTRY_NOT_FOUND")
    code, answer = await server.ask("POST", "/v1/galleries/shop/snapshots", json={"name": "copy"})
    assert (code, answer["name"], answer["entries"]) == (200, "copy", "40")
    code, answer = await server.ask("POST", "/v1/model:reload", json={})
    assert (code, answer["code"], answer["reason"]) == (409, "FAILED_PRECONDITION", "RELOAD_REFUSED")


def test_every_call_that_is_no_stream_has_a_short_path_and_a_long_one():
    paths: dict[str, list[str]] = {}
    for method, route in routes(TABLE):
        paths.setdefault(method.full_name, []).append(route.path)
        for name in route.parts.values():
            descriptor = method.request.DESCRIPTOR
            for step in name.split("."):
                field = descriptor.fields_by_name[step]
                descriptor = field.message_type
    assert set(paths) == {method.full_name for method in TABLE if method.kind == "unary"}
    for name, (short, long) in paths.items():
        assert short.startswith("/v1/")
        assert long == f"/{name}"


JSON = {"content-type": "application/json"}


REFUSED = [
    ("POST", "/v1/search", {"json": {}}, "400 INVALID_ARGUMENT QUERY_INVALID", "expected an image"),
    ("POST", "/v1/search", {}, "400 INVALID_ARGUMENT QUERY_INVALID", "expected an image"),
    (
        "POST",
        "/v1/search",
        {"json": {"entryId": "x", "topK": 0}},
        "400 INVALID_ARGUMENT QUERY_INVALID",
        "top_k must be",
    ),
    ("POST", "/v1/search", {"json": {"image": "AAAA"}}, "400 INVALID_ARGUMENT IMAGE_INVALID", "expected a JPEG"),
    ("POST", "/v1/search", {"json": {"topp": 3}}, "400 INVALID_ARGUMENT REQUEST_INVALID", 'no field named "topp"'),
    ("POST", "/v1/search", {"json": {"topK": "many"}}, "400 INVALID_ARGUMENT REQUEST_INVALID", "topK"),
    ("POST", "/v1/search", {"json": {"image": 3}}, "400 INVALID_ARGUMENT REQUEST_INVALID", "image"),
    (
        "POST",
        "/v1/search",
        {"json": {"image": "AAAA", "entryId": "x"}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "oneof",
    ),
    (
        "POST",
        "/v1/search",
        {"json": [1]},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "the body is no reid.v1.SearchRequest",
    ),
    ("POST", "/v1/search", {"content": b"{", "headers": JSON}, "400 INVALID_ARGUMENT REQUEST_INVALID", "JSON"),
    (
        "POST",
        "/v1/search",
        {"content": b"\xff", "headers": JSON},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "the body is no",
    ),
    (
        "POST",
        "/v1/search",
        {"content": b"[" * 50_000, "headers": JSON},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "the body is no",
    ),
    (
        "POST",
        "/v1/search",
        {"content": b'{"a":' * 50_000, "headers": JSON},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "the body is no",
    ),
    (
        "POST",
        "/v1/search",
        {"content": b'{"topK":1,"topK":2}', "headers": JSON},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "duplicate",
    ),
    (
        "POST",
        "/v1/search",
        {"content": b'{"entryId":"\\ud800"}', "headers": JSON},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "the body is no",
    ),
    (
        "POST",
        "/v1/search",
        {"content": b'{"entryId":"x","minScore":NaN}', "headers": JSON},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "the body is no",
    ),
    (
        "POST",
        "/v1/search",
        {"json": {"entryId": "x", "generation": 10**30}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "generation",
    ),
    (
        "POST",
        "/v1/search",
        {"content": b"x", "headers": {"content-type": "text/plain"}},
        "415 INVALID_ARGUMENT CONTENT_TYPE_UNKNOWN",
        "got text/plain",
    ),
    ("POST", "/v1/search", {"content": b"x"}, "415 INVALID_ARGUMENT CONTENT_TYPE_UNKNOWN", "got no Content-Type"),
    (
        "POST",
        "/v1/batch-search",
        {"content": b"x", "headers": {"content-type": "image/png"}},
        "415 INVALID_ARGUMENT CONTENT_TYPE_UNKNOWN",
        "of application/json, got",
    ),
    (
        "POST",
        "/v1/search",
        {"content": b"x", "headers": {**JSON, "content-encoding": "gzip"}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "Content-Encoding",
    ),
    (
        "POST",
        "/v1/search?topp=3",
        {"json": {}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "topp is no field of reid.v1.SearchRequest: is top_k meant?",
    ),
    (
        "POST",
        "/v1/search?top_k=3",
        {"json": {"topK": 4}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "top_k is said in two places",
    ),
    (
        "POST",
        "/v1/search?top_k=3&top_k=4",
        {"json": {}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "top_k is said 2 times",
    ),
    ("POST", "/v1/search?top_k=x", {"json": {}}, "400 INVALID_ARGUMENT REQUEST_INVALID", "top_k: "),
    ("POST", "/v1/search?group_by_pid=yes", {"json": {}}, "400 INVALID_ARGUMENT REQUEST_INVALID", "group_by_pid: "),
    ("POST", "/v1/search?gallery.x=y", {"json": {}}, "400 INVALID_ARGUMENT REQUEST_INVALID", "gallery has no fields"),
    ("POST", "/v1/search?filter=y", {"json": {}}, "400 INVALID_ARGUMENT REQUEST_INVALID", "filter: "),
    (
        "POST",
        "/v1/search",
        {"json": {}, "headers": {"x-timeout": "soon"}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "x-timeout must be seconds",
    ),
    (
        "POST",
        "/v1/search",
        {"json": {}, "headers": {"x-timeout": "nan"}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "x-timeout must be seconds",
    ),
    (
        "POST",
        "/v1/search",
        {"json": {}, "headers": {"grpc-timeout": "5"}},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "grpc-timeout",
    ),
    (
        "POST",
        "/v1/search",
        {"json": {"entryId": ENTRY}, "headers": {"x-timeout": "1e-9"}},
        "504 DEADLINE_EXCEEDED DEADLINE_EXCEEDED",
        "",
    ),
    ("GET", "/v1/galleries/mall", {}, "404 NOT_FOUND GALLERY_NOT_FOUND", "there is shop"),
    (
        "GET",
        "/v1/galleries/shop?gallery=shop",
        {},
        "400 INVALID_ARGUMENT REQUEST_INVALID",
        "gallery is said in two places",
    ),
    ("GET", "/v1/galleries/shop/entries?generation=99", {}, "409 FAILED_PRECONDITION GENERATION_GONE", "99"),
    (
        "POST",
        "/v1/search",
        {"json": {"entryId": ENTRY, "onlyMatches": True}},
        "409 FAILED_PRECONDITION THRESHOLD_MISSING",
        "",
    ),
    ("GET", "/v1/search", {}, "405 UNIMPLEMENTED VERB_UNKNOWN", "GET is not for this path; POST is"),
    ("GET", "/v1/serch", {}, "404 UNIMPLEMENTED PATH_UNKNOWN", "/docs says what there is"),
    ("POST", "/reid.v1.SearchService/Rank", {"json": {}}, "404 UNIMPLEMENTED PATH_UNKNOWN", "nothing at this path"),
]


async def test_what_cannot_be_answered_gets_a_status_and_its_reason(server):
    for verb, path, said, wanted, message in REFUSED:
        status, answer = await server.ask(verb, path, **said)
        assert f"{status} {answer['code']} {answer['reason']}" == wanted, (verb, path, answer)
        assert message in answer["message"], (verb, path, answer)
        assert set(answer) == {"code", "reason", "message", "requestId"}
        assert len(answer["message"]) <= 500


async def test_a_call_has_its_callers_id_or_a_new_one(server):
    answer = await server.client.post("/v1/search", json={"entryId": ENTRY}, headers={"x-request-id": "camera-7"})
    assert answer.headers["x-request-id"] == "camera-7"
    refused = await server.client.post("/v1/search", json={}, headers={"x-request-id": "camera-7"})
    assert refused.headers["x-request-id"] == refused.json()["requestId"] == "camera-7"
    ids = {(await server.client.get("/v1/none", headers={"x-request-id": "no id"})).json()["requestId"] for _ in "12"}
    assert len(ids) == 2
    assert "no id" not in ids


async def test_keys_are_asked_for_as_over_grpc(embedder, folder, tmp_path):
    path = tmp_path / "keys.json"
    token = add(path, "cameras", scopes={"search": ("shop",)}, images_per_second=0.5, burst=1.0)
    async with serving(embedder, folder, keys=path) as server:
        answer = await server.client.post("/v1/search", json={"entryId": ENTRY})
        assert (answer.status_code, answer.json()["reason"]) == (401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"] == "Bearer"
        server.client.headers["authorization"] = f"Bearer {token}"
        code, answer = await server.ask("POST", "/v1/galleries/shop/entries:delete", json={"entryIds": ["x"]})
        assert (code, answer["code"], answer["reason"]) == (403, "PERMISSION_DENIED", "PERMISSION_DENIED")
        assert "key 'cameras' does not allow scope write" in answer["message"]
        image = {"content-type": "image/png"}
        first, second = [await server.client.post("/v1/embed", content=b"no image", headers=image) for _ in "12"]
        assert first.json()["reason"] == "IMAGE_INVALID"
        assert (second.status_code, second.json()["reason"]) == (429, "RATE_LIMITED")
        assert second.headers["retry-after"] == "2"
        assert server.count(code="UNAUTHENTICATED", method="reid.v1.SearchService/Search") == 1


async def test_what_is_no_call_is_counted_too(server):
    await server.ask("POST", "/v1/search", content=b"{", headers=JSON)
    assert server.count(code="INVALID_ARGUMENT", method="reid.v1.SearchService/Search") == 1
    await server.ask("POST", "/v1/search", json={})
    assert server.count(code="INVALID_ARGUMENT", method="reid.v1.SearchService/Search") == 2
    await server.ask("POST", "/v1/search", json={"entryId": ENTRY})
    assert server.count(code="OK", method="reid.v1.SearchService/Search") == 1


async def test_a_body_is_as_large_as_is_accepted_and_no_larger(server):
    fits = await server.ask("POST", "/v1/embed", content=bytes(2**20), headers={"content-type": "image/png"})
    assert (fits[0], fits[1]["reason"]) == (400, "IMAGE_INVALID")

    async def piecewise():
        for _ in range(17):
            yield bytes(2**16)

    for body in (bytes(2**20 + 1), piecewise()):
        answer = await server.client.post("/v1/embed", content=body, headers={"content-type": "image/png"})
        assert (answer.status_code, answer.json()["reason"]) == (413, "MESSAGE_TOO_LARGE")
        assert answer.headers["connection"] == "close"
        assert "a body may have 1,048,576 bytes" in answer.json()["message"]


async def test_a_body_that_is_said_to_be_too_large_is_not_waited_for(server):
    reader, writer = await asyncio.open_connection(*server.address.split(":"))
    writer.write(b"POST /v1/search HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()


def asking(chunks, *, headers=()):
    """A request whose body comes in these chunks; one that is None never comes."""
    from starlette.requests import Request

    left = iter(chunks)

    async def receive():
        chunk = next(left)
        if chunk is None:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    return Request({"type": "http", "method": "POST", "headers": list(headers)}, receive)


async def test_a_body_that_does_not_come_is_not_waited_for(embedder, folder):
    async with serving(embedder, folder, body_seconds=0.2) as server:
        reader, writer = await asyncio.open_connection(*server.address.split(":"))
        writer.write(b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"MESSAGE_STALLED"' in answer
        writer.close()


async def test_bodies_on_their_way_are_held_to_a_sum():
    bodies = Bodies(100, seconds=30)
    under_way = [asyncio.ensure_future(bodies.read(asking([bytes(100), None]))) for _ in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="too many large bodies are on their way"):
        await bodies.read(asking([bytes(1), None]))
    for one in under_way:
        one.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    assert await bodies.read(asking([bytes(99), b"x", b""])) == bytes(99) + b"x"


def slow_table(began: asyncio.Event, ended: list[str]):
    """The methods, of which Search takes for ever and says how it ended."""

    async def answer(served, request, call):
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    return [replace(method, answer=answer) if method.name == "Search" else method for method in TABLE]


async def test_a_caller_that_goes_ends_its_call(embedder, folder):
    began, ended = asyncio.Event(), []
    async with serving(embedder, folder, table=slow_table(began, ended)) as server:
        _, writer = await asyncio.open_connection(*server.address.split(":"))
        writer.write(b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        await asyncio.wait_for(began.wait(), 10)
        assert ended == []
        writer.close()
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert ended == ["cancelled"]
        assert server.count(code="CANCELLED", method="reid.v1.SearchService/Search") == 1


@pytest.mark.parametrize("headers", [{"x-timeout": "0.2"}, {"grpc-timeout": "200m"}])
async def test_a_call_is_given_up_at_the_deadline_that_its_caller_set(embedder, folder, headers):
    began, ended = asyncio.Event(), []
    async with serving(embedder, folder, table=slow_table(began, ended)) as server:
        start = time.monotonic()
        code, answer = await server.ask("POST", "/v1/search", json={}, headers=headers)
        assert (code, answer["reason"], ended) == (504, "DEADLINE_EXCEEDED", ["cancelled"])
        assert 0.15 < time.monotonic() - start < 10


@pytest.mark.parametrize("headers", [{"x-timeout": "1e300"}, {"grpc-timeout": "99999999H"}])
async def test_a_deadline_that_is_as_good_as_none_is_one(server, headers):
    code, answer = await server.ask("POST", "/v1/search", json={"entryId": ENTRY}, headers=headers)
    assert (code, len(answer["hits"])) == (200, 10)


async def test_calls_under_way_end_before_the_server_does_and_signals_stay_as_they_are(embedder, folder):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    began = asyncio.Event()

    async def answer(served, request, call):
        began.set()
        await asyncio.sleep(0.3)
        return reid_pb2.SearchResponse(generation=7)

    table = [replace(method, answer=answer) if method.name == "Search" else method for method in TABLE]
    async with serving(embedder, folder, table=table) as server:
        asked = asyncio.ensure_future(server.ask("POST", "/v1/search", json={}))
        await asyncio.wait_for(began.wait(), 10)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        code, answered = await asked
        assert (code, answered["generation"]) == (200, "7")


async def test_a_draining_server_refuses_in_words_and_is_not_ready(server):
    assert (await server.client.get("/readyz")).json() == {"ready": True}
    await server.deployment.drain(grace=1)
    assert ((await server.client.get("/readyz")).status_code, (await server.client.get("/healthz")).text) == (
        503,
        "ok\n",
    )
    code, answer = await server.ask("POST", "/v1/search", json={"entryId": ENTRY})
    assert (code, answer["code"], answer["reason"]) == (503, "UNAVAILABLE", "NOT_SERVING")


async def test_a_port_in_use_is_refused(server):
    with pytest.raises(ServerError, match=f"{server.address} cannot be listened on"):
        async with listening_http(make_app(server.calls, server.telemetry, TABLE, ready=bool), server.address, None):
            raise AssertionError


async def test_metrics_are_shown_where_they_are_counted(server, embedder):
    await server.ask("POST", "/v1/search", json={"entryId": ENTRY})
    shown = await server.client.get("/metrics")
    assert shown.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "reidserve_requests_total" in shown.text
    bare = make_app(server.calls, open_telemetry(), TABLE, ready=bool)
    async with listening_http(bare, "127.0.0.1:0", None) as address, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://{address}/metrics")
        assert (answer.status_code, answer.json()["reason"]) == (404, "METRICS_OFF")
        assert (await client.get(f"http://{address}/readyz")).status_code == 503


async def test_the_calls_are_described_unless_they_should_not_be(server):
    page = await server.client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page.text
    assert "http:" not in page.text
    assert "https:" not in page.text
    assert "/v1/galleries/{gallery}/entries" in page.text
    document = (await server.client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    silent = make_app(server.calls, server.telemetry, TABLE, ready=bool, described=False)
    async with listening_http(silent, "127.0.0.1:0", None) as address, httpx.AsyncClient(trust_env=False) as client:
        for path in ("/docs", "/openapi.json"):
            assert (await client.get(f"http://{address}{path}")).status_code == 404


async def test_https_shows_the_certificate(embedder, folder, tmp_path):
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    watched = watch_certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with serving(embedder, folder, tls=watched) as server:
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        async with httpx.AsyncClient(verify=trusting, trust_env=False) as client:
            answer = await client.post(f"https://{server.address}/v1/search", json={"entryId": ENTRY})
            assert len(answer.json()["hits"]) == 10


async def test_a_connection_that_asks_nothing_is_closed(embedder, folder, monkeypatch):
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.3)
    async with serving(embedder, folder) as server:
        for said in (b"", b"POST /v1/sea"):
            reader, writer = await asyncio.open_connection(*server.address.split(":"))
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" if said else b"")
            if said:
                assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(said)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()


async def said_until_cut_off(caller: socket.socket) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        caller.send(b"G")


async def test_a_connection_that_takes_no_answer_is_cut_off(embedder, folder, monkeypatch):
    monkeypatch.setattr(listening, "READ_SECONDS", 0.3)
    async with serving(embedder, folder) as server:
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = server.address.split(":")
            await asyncio.to_thread(caller.connect, (host, int(port)))
            caller.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 200)
            with pytest.raises(ConnectionError):
                await said_until_cut_off(caller)
        # Others are answered meanwhile and after it.
        assert (await server.client.get("/healthz")).status_code == 200


async def test_a_large_answer_comes_whole(server):
    code, answer = await server.ask("GET", "/v1/galleries/shop/entries?page_size=10000")
    assert (code, len(answer["entries"])) == (200, 40)
    assert json.dumps(answer)


async def test_the_documented_commands_are_answered(embedder, folder, crops, tmp_path):
    page = Path(__file__).parents[1].joinpath("docs/http.md").read_text()
    lines = re.findall(r"^    (curl (?:.*\\\n)*.*)$", page, flags=re.MULTILINE)
    assert len(lines) == 15
    shutil.copy(crops / ENTRY, tmp_path / "query.png")
    async with serving(embedder, folder) as server:
        for line in lines:
            command = line.replace("127.0.0.1:8080", server.address).replace("curl ", "curl -sS --fail-with-body ", 1)
            child = await asyncio.create_subprocess_exec(
                *("bash", "-c", command), cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            said, _ = await asyncio.wait_for(child.communicate(), 20)
            assert child.returncode == 0, (line[:200], said)
            json.loads(said)


def test_the_documented_statuses_are_those_of_the_table():
    page = Path(__file__).parents[1].joinpath("docs/http.md").read_text().partition("## Errors")[2]
    rows = [row.split("|")[1:3] for row in page.splitlines() if re.match(r"\| \d", row)]
    written = {int(number): text for numbers, text in rows for number in numbers.split(",")}
    assert set(written) == {*STATUSES.values(), 405}
    for name, status in STATUSES.items():
        assert f"`{name}`" in written.get(status, ""), name


def test_each_path_is_written_down():
    page = Path(__file__).parents[1].joinpath("docs/http.md").read_text()
    written = dict(re.findall(r"^\| `(\w+ /v1\S+)` \| `(\w+)` \|$", page, flags=re.MULTILINE))
    short = {f"{route.verb} {route.path}": method.name for method, route in routes(TABLE) if route.path[:4] == "/v1/"}
    assert written == short


async def test_what_follows_a_request_and_is_none_ends_its_connection_and_its_call(embedder, folder, caplog):
    began, ended = asyncio.Event(), []
    async with serving(embedder, folder, table=slow_table(began, ended)) as server:
        reader, writer = await asyncio.open_connection(*server.address.split(":"))
        writer.write(b"POST /v1/search HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno length\r\n")
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        assert (await server.client.get("/healthz")).status_code == 200
    assert not began.is_set()
    assert [record.message for record in caplog.records if record.name.startswith("uvicorn")] == []


async def test_damaged_requests_are_answered_or_refused_and_nothing_fails(server, crops, caplog):
    chance = random.Random(8)
    image = base64.b64encode((crops / ENTRY).read_bytes()).decode()
    good = [
        json.dumps(
            {"entryId": ENTRY, "topK": 3, "filter": {"pids": {"anyOf": ["0001"]}, "since": "2026-05-01T08:00:00Z"}}
        ),
        json.dumps(
            {"image": image, "rerank": {"k1": 5}, "filter": {"attributes": [{"name": "a", "less": {"number": 1}}]}}
        ),
    ]
    for _ in range(50):
        body = bytearray(chance.choice(good).encode())
        for _ in range(chance.choice([1, 2, 10])):
            body[chance.randrange(len(body))] = chance.randrange(256)
        path = chance.choice(["/v1/search", "/v1/batch-search", "/v1/galleries/shop/entries:delete", "/v1/embed"])
        kind = chance.choice(["application/json", "application/json", "image/png"])
        answer = await server.client.post(path, content=bytes(body), headers={"content-type": kind})
        assert answer.status_code in (200, 400, 404, 413, 415), (path, bytes(body), answer.text)
    assert server.count(code="INTERNAL") == server.count(code="UNKNOWN") == 0
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
