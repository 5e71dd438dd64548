import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from reidserve.client import Client
from reidserve.datasets import read_crops
from reidserve.embed import Embedder, open_embedder
from reidserve.errors import EntryNotFoundError, OverloadedError, QueryError, ReidError, RequestError
from reidserve.index import Origin, build_gallery, open_gallery, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.index.threshold import Threshold, write_threshold
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Scope
from reidserve.server.guard.keys import Key, add_key, make_secret
from reidserve.server.guard.keys_file import change_keys
from reidserve.server.wire.methods import GALLERY_SERVICE, MODEL_SERVICE, SERVICE
from tests.conftest import BIN, Server, run_command, start_server, stop_server, write_crops


@pytest.fixture
def client(server: Server):
    with Client(server.target) as connected:
        yield connected


def answers_of(result) -> list[tuple]:
    return [(hit.entry_id, hit.pid, hit.camid, hit.score, hit.rank) for hit in result.hits]


def expected_hits(gallery: Path, query: np.ndarray, top_k: int) -> list[tuple]:
    """Brute force over the stored embeddings."""
    snapshot = read_snapshot(gallery)
    stored = dict(zip(snapshot.rows().tolist(), snapshot.entries(), strict=True))
    scored = sorted((-np.vecdot(snapshot.vector(row), query), row) for row in stored)
    entries = [(stored[row], -score) for score, row in scored[:top_k]]
    return [(entry.id, entry.pid, entry.camid, score, rank) for rank, (entry, score) in enumerate(entries, start=1)]


def test_an_image_is_answered_with_the_ranking_of_brute_force(client, gallery, crops, embedder: Embedder, server):
    for path in sorted(crops.iterdir()):
        result = client.search(path, top_k=7)
        query = embedder.embed_encoded([path.read_bytes()])[0]
        assert answers_of(result) == expected_hits(gallery, query, 7)
        assert result.model == server.identity == embedder.contract.identity
        assert result.engine == "fp32/onnxruntime-cpu"
        assert set(result.timings) == {"decode", "embed", "search", "total"}
        assert result.timings["total"] >= sum(result.timings[stage] for stage in ("decode", "embed", "search")) * 0.99


def test_concurrent_searches_get_the_bits_of_lonely_ones(client, gallery, crops, embedder: Embedder):
    paths = sorted(crops.iterdir())
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda path: client.search(path.read_bytes(), top_k=40), paths * 5))
    for path, result in zip(paths * 5, results, strict=True):
        assert answers_of(result) == expected_hits(gallery, embedder.embed_encoded([path.read_bytes()])[0], 40)


def test_a_burst_of_calls_is_answered_or_refused_with_a_reason(server):
    request = reid_pb2.SearchRequest(entry_id="0001_c1s1_000000_00.png").SerializeToString()
    with grpc.insecure_channel(server.target) as channel:
        search = channel.unary_unary(f"/{SERVICE}/Search")
        calls = [search.future(request, timeout=60) for _ in range(3000)]
        codes = {call.code().name for call in calls}
        reasons = {rpc_status.from_call(call).details[0].value for call in calls if call.code().value[0]}
    assert codes <= {"OK", "RESOURCE_EXHAUSTED"}
    assert all(b"OVERLOADED" in reason for reason in reasons)


def test_an_embedding_searches_like_the_image_it_came_from(client, crops, embedder: Embedder):
    path = sorted(crops.iterdir())[3]
    embedding = client.embed(path)
    np.testing.assert_array_equal(np.array(embedding, np.float32), embedder.embed_encoded([path.read_bytes()])[0])
    assert answers_of(client.search_embedding(embedding, 5)) == answers_of(client.search(path, 5))


def test_an_entry_is_left_out_of_its_own_hits(client, crops):
    name = sorted(crops.iterdir())[3].name
    by_image = answers_of(client.search(crops / name, top_k=5))
    by_entry = answers_of(client.search_entry(name, top_k=4))
    assert by_image[0][0] == name
    assert [hit[:4] for hit in by_entry] == [hit[:4] for hit in by_image[1:]]
    assert [hit[4] for hit in by_entry] == [1, 2, 3, 4]


def test_ten_hits_come_where_no_number_was_asked_for(server):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Search", reid_pb2.SearchRequest.SerializeToString)
        raw = call(reid_pb2.SearchRequest(entry_id="0001_c1s1_000000_00.png"))
    assert len(reid_pb2.SearchResponse.FromString(raw).hits) == 10


IMAGE = b"\x89PNG\r\n\x1a\n but not really"


@pytest.mark.parametrize(
    ("request_fields", "code", "reason", "message"),
    [
        ({"top_k": 5}, "INVALID_ARGUMENT", "QUERY_INVALID", "expected an image, a track, an embedding or an entry_id"),
        ({"image": b""}, "INVALID_ARGUMENT", "IMAGE_INVALID", "got no bytes"),
        ({"image": IMAGE}, "INVALID_ARGUMENT", "IMAGE_INVALID", "expected a JPEG, PNG, WEBP, BMP image"),
        ({"image": bytes(17 * 2**20)}, "INVALID_ARGUMENT", "IMAGE_TOO_LARGE", "16,777,216 bytes, got 17,825,792"),
        ({"embedding": b"abc"}, "INVALID_ARGUMENT", "QUERY_INVALID", "got 3 bytes"),
        ({"embedding": bytes(4 * 7)}, "INVALID_ARGUMENT", "QUERY_INVALID", "have 24 dimensions, the query has 7"),
        ({"embedding": bytes(4 * 24)}, "INVALID_ARGUMENT", "QUERY_INVALID", "must be of unit length"),
        ({"embedding": b"\xff" * 4 * 24}, "INVALID_ARGUMENT", "QUERY_INVALID", "must be of unit length"),
        ({"entry_id": "nobody"}, "NOT_FOUND", "ENTRY_NOT_FOUND", "no entry 'nobody'"),
        (
            {"entry_id": "x", "gallery": "mall"},
            "NOT_FOUND",
            "GALLERY_NOT_FOUND",
            "no gallery 'mall' here, there is crops",
        ),
        ({"image": IMAGE, "top_k": 0}, "INVALID_ARGUMENT", "QUERY_INVALID", "top_k must be 1 to 10,000, got 0"),
        ({"image": IMAGE, "top_k": -1}, "INVALID_ARGUMENT", "QUERY_INVALID", "got -1"),
        ({"image": IMAGE, "top_k": 10**9}, "INVALID_ARGUMENT", "QUERY_INVALID", "got 1000000000"),
    ],
)
def test_a_query_that_cannot_be_answered_gets_a_status_with_its_reason(server, request_fields, code, reason, message):
    options = [("grpc.max_send_message_length", -1)]
    raw = reid_pb2.SearchRequest(**request_fields).SerializeToString()
    with grpc.insecure_channel(server.target, options) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(f"/{SERVICE}/Search")(raw)
    assert refusal.value.code().name == code
    assert message in refusal.value.details()
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(refusal.value).details[0].Unpack(info)
    assert (info.reason, info.domain) == (reason, "reidserve")


def test_a_long_message_is_cut_and_keeps_its_status(server):
    with Client(server.target) as client, pytest.raises(RequestError, match="the gallery has no entry 'xxx") as refusal:
        client.search_entry("x" * 100_000)
    assert (refusal.value.code, refusal.value.reason) == ("NOT_FOUND", "ENTRY_NOT_FOUND")


def test_bytes_that_are_no_message_are_refused_under_the_table(server):
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(f"/{SERVICE}/Search")(b"\xff\xff\xff garbage")
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message of reid.v1" in refusal.value.details()


def test_every_error_of_the_tree_has_a_status_and_nothing_unplanned_leaks():
    from reidserve.server.wire.status import status_of

    assert status_of(EntryNotFoundError("x")) == (grpc.StatusCode.NOT_FOUND, "ENTRY_NOT_FOUND", "x")
    assert status_of(QueryError("x"))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert status_of(OverloadedError("x"))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of(ReidError("x"))[0] is grpc.StatusCode.INTERNAL
    code, reason, message = status_of(ValueError("/secret/path"))
    assert (code, reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in message


def test_health_says_serving_for_the_server_and_its_services(server):
    said = {health(server.target, name) for name in ("", SERVICE, GALLERY_SERVICE, MODEL_SERVICE)}
    assert said == {health_pb2.HealthCheckResponse.SERVING}


def test_reflection_describes_the_service_to_those_without_the_proto(server):
    arguments = [
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "-d",
        '{"entryId": "0001_c1s1_000000_00.png", "topK": 3}',
    ]
    result = subprocess.run(
        [BIN / "buf", "curl", *arguments, f"http://{server.target}/{SERVICE}/Search"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    hits = json.loads(result.stdout)["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]


def test_a_gallery_can_be_listed_by_those_without_the_proto(server, gallery: Path):
    answers = []
    for method, request in (("GetGallery", {}), ("ListEntries", {"pageSize": 3})):
        arguments = ["--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(request)]
        result = subprocess.run(
            [BIN / "buf", "curl", *arguments, f"http://{server.target}/{GALLERY_SERVICE}/{method}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        answers.append(json.loads(result.stdout))
    described, listed = answers
    assert (described["gallery"]["name"], described["gallery"]["entries"]) == ("crops", "40")
    assert described["gallery"]["model"]["identity"] == server.identity
    assert [(int(one["row"]), one["entryId"]) for one in listed["entries"]] == [
        (row, entry.id) for row, entry in list(read_snapshot(gallery).listed())[:3]
    ]
    assert listed["nextPageToken"]


def test_an_image_ranks_the_whole_gallery_as_brute_force_does(client, gallery, crops, embedder: Embedder, server):
    snapshot = read_snapshot(gallery)
    for path in sorted(crops.iterdir())[::9]:
        ranked = client.rank(path)
        ranking = snapshot.rank_all(embedder.embed_encoded([path.read_bytes()]))
        assert (list(ranked.rows), list(ranked.scores)) == (ranking.rows[0].tolist(), ranking.scores[0].tolist())
        assert (ranked.model, ranked.generation) == (server.identity, snapshot.generation)
        hits = client.search(path, 40).hits
        names = {row: entry.id for row, entry in snapshot.listed()}
        assert [(names[row], score) for row, score in zip(ranked.rows, ranked.scores, strict=True)] == [
            (hit.entry_id, hit.score) for hit in hits
        ]


@pytest.fixture
def calibrated(tmp_path: Path, embedder: Embedder) -> Path:
    threshold = Threshold(
        identity=embedder.contract.identity,
        score=0.999999,
        criterion="search",
        rate=0.01,
        dataset="crops",
        genuine=20,
        impostors=20,
        measured=0.5,
    )
    write_threshold(threshold, tmp_path / "threshold.json")
    return tmp_path / "threshold.json"


def test_the_command_says_plainly_whether_anybody_was_found(model: Path, gallery: Path, crops: Path, calibrated: Path):
    known = sorted(crops.iterdir())[3]
    running = start_server("--model", model, "--gallery", gallery, "--threshold", calibrated)
    try:
        server = ("--server", running.target, "--top-k", 3)
        found = run_command("reid-search", known, *server)
        other = run_command("reid-search", known.name, "--entry", *server)
        again = run_command("reid-search", known.name, "--entry", "--rerank", *server)
        facts = json.loads(run_command("reid-search", known.name, "--entry", "--rerank", "--json", *server).stdout)
        plain = json.loads(run_command("reid-search", known.name, "--entry", "--json", *server).stdout)
    finally:
        assert stop_server(running) == 0
    best = plain["hits"][0]["score"]
    assert found.stdout.splitlines()[-1] == "match: best score 1.000000 reaches 0.999999"
    assert other.stdout.splitlines()[-1] == f"no match: best score {best:.6f} is below 0.999999"
    assert len(other.stdout.splitlines()) == 5
    assert again.stdout.splitlines()[0].split() == ["rank", "reranked_distance", "score", "pid", "camid", "entry_id"]
    assert (facts["match"], facts["threshold"], facts["best_score"]) == (False, 0.999999, best)
    distances = [hit["reranked_distance"] for hit in facts["hits"]]
    assert distances == sorted(distances)
    assert {hit["reranked_distance"] for hit in plain["hits"]} == {None}


def test_a_threshold_of_another_model_is_not_served(other_model: Path, tmp_path: Path, crops: Path, calibrated: Path):
    other = open_embedder(other_model)
    build_gallery(read_crops(crops), crops, tmp_path / "other.gallery", other)
    served = run_command(
        "reid-serve",
        *("--model", other_model, "--gallery", tmp_path / "other.gallery", "--threshold", calibrated),
        *("--listen", "127.0.0.1:0"),
    )
    assert served.returncode == 1
    assert "threshold.json was calibrated with model" in served.stderr
    assert f"this is model {other.contract.identity[:12]}" in served.stderr


def test_a_filter_can_be_said_in_json(server):
    """As any language's JSON says it: the names of fields are part of the interface."""
    asked = {
        "entryId": "0001_c1s1_000000_00.png",
        "topK": 40,
        "filter": {"pids": {"anyOf": ["0001", "0002", "0003"]}, "excludeCamids": ["1"]},
    }
    timed = {"filter": {"since": "2026-05-01T08:00:00.000001Z"}}
    tested = {"filter": {"attributes": [{"name": "speed", "less": {"number": 30}}]}}
    found = []
    for request in (asked, asked | timed, asked | tested):
        arguments = ["--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(request)]
        result = subprocess.run(
            [BIN / "buf", "curl", *arguments, f"http://{server.target}/{SERVICE}/Search"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        found.append(sorted(hit["entryId"] for hit in json.loads(result.stdout).get("hits", [])))
    assert found == [[f"{pid:04}_c2s1_000000_00.png" for pid in (1, 2, 3)], [], []]


def test_what_another_process_writes_is_served_without_a_restart(tmp_path: Path, model: Path, embedder: Embedder):
    crops, out = tmp_path / "crops", tmp_path / "live.gallery"
    write_crops(crops, pids=3)
    build_gallery(read_crops(crops), crops, out, embedder)
    running = start_server("--model", model, "--gallery", out, "--read-only")
    try:
        with Client(running.target) as client:
            before = client.search_entry("0001_c1s1_000000_00.png", 100)
            write_crops(crops, pids=5)
            (crops / "0002_c1s1_000000_00.png").unlink()
            build = run_command("reid-index", "build", crops, "--model", model, "--out", out, "--prune")
            assert build.returncode == 0, build.stderr
            deadline = time.monotonic() + 20
            after = before
            while time.monotonic() < deadline and len(after.hits) != 8:
                time.sleep(0.1)
                after = client.search_entry("0001_c1s1_000000_00.png", 100)
    finally:
        assert stop_server(running) == 0
    assert (len(before.hits), len(after.hits)) == (5, 8)
    assert "0002_c1s1_000000_00.png" not in {hit.entry_id for hit in after.hits}
    assert after.generation > before.generation


def test_sigterm_answers_what_is_under_way_and_then_exits_with_0(model: Path, gallery: Path, crops: Path):
    running = start_server("--model", model, "--gallery", gallery)
    images = [path.read_bytes() for path in sorted(crops.iterdir())]
    answered, refused, stop = [], [], threading.Event()

    def ask(place: int) -> None:
        with Client(running.target, retries=0) as client:
            while not stop.is_set():
                try:
                    answered.append(len(client.search(images[place % len(images)], 5).hits))
                except RequestError as error:
                    refused.append((error.code, error.reason))
                    return

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, place) for place in range(8)]
        time.sleep(0.5)
        running.process.send_signal(signal.SIGTERM)
        code = running.process.wait(30)
        stop.set()
        for one in asking:
            one.result()
    assert running.process.stdout is not None
    running.process.stdout.close()
    assert code == 0
    assert len(answered) > 8
    assert set(answered) == {5}
    # Each client was told at its next call; none was cut off in one that had been taken.
    assert refused == [("UNAVAILABLE", "NOT_SERVING")] * 8


@pytest.fixture
def slow(tmp_path: Path, model: Path, gallery: Path):
    """A server that loads until its canaries are written into a pipe: process, target and the pipe."""
    shutil.copytree(model, tmp_path / "model")
    pipe = tmp_path / "model" / "canaries.json"
    pipe.unlink()
    os.mkfifo(pipe)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        str(BIN / "reid-serve"),
        "--model",
        str(tmp_path / "model"),
        "--gallery",
        str(gallery),
        "--listen",
        target,
    ]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    yield process, target, pipe
    process.kill()
    process.communicate()


def health(target: str, service: str = "") -> int:
    with grpc.insecure_channel(target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
        return check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True, timeout=20).status


def test_a_loading_server_says_so_and_serves_when_it_has_loaded(slow, model: Path):
    process, target, pipe = slow
    assert health(target) == health(target, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
    with Client(target, retries=0) as client:
        for ask in (client.search_entry, client.rank_entry, client.gallery, lambda name: list(client.entries(name))):
            with pytest.raises(RequestError, match="loading or draining") as refusal:
                ask("0001_c1s1_000000_00.png")
            assert (refusal.value.code, refusal.value.reason) == ("UNAVAILABLE", "NOT_SERVING")
        pipe.write_bytes((model / "canaries.json").read_bytes())
        assert json.loads(process.stdout.readline())["listening"] == target
        assert health(target) == health(target, SERVICE) == health_pb2.HealthCheckResponse.SERVING
        assert len(client.search_entry("0001_c1s1_000000_00.png").hits) == 10


def test_sigterm_while_loading_ends_the_server_though_loading_never_would(slow):
    process, target, _ = slow
    assert health(target) == health_pb2.HealthCheckResponse.NOT_SERVING
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "")


def test_on_sigterm_health_says_so_first_and_calls_are_answered_for_a_probe_period(model: Path, gallery: Path):
    running = start_server("--model", model, "--gallery", gallery, "--probe-period", 2)
    with Client(running.target) as client:
        running.process.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        while health(running.target) == health_pb2.HealthCheckResponse.SERVING:
            assert time.monotonic() < signalled + 1
        assert health(running.target, MODEL_SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert len(client.search_entry("0001_c1s1_000000_00.png", 5).hits) == 5
        assert time.monotonic() < signalled + 2
    assert running.process.wait(30) == 0
    assert time.monotonic() > signalled + 2
    assert running.process.stdout is not None
    running.process.stdout.close()


def test_a_second_signal_ends_the_server_at_once(model: Path, gallery: Path):
    process = subprocess.Popen(
        [
            *(BIN / "reid-serve", "--listen", "127.0.0.1:0", "--json", "--model", model, "--gallery", gallery),
            *("--probe-period", "600"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    target = json.loads(process.stdout.readline())["listening"]
    process.send_signal(signal.SIGTERM)
    while health(target) == health_pb2.HealthCheckResponse.SERVING:
        pass
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "stopped at once: 0 calls under way were cut off" in log
    with closing(open_gallery(gallery, write=True)):  # nobody holds it any more
        pass


def test_a_server_is_the_one_writer_of_its_gallery_unless_it_only_reads(tmp_path: Path, model: Path, gallery: Path):
    out = tmp_path / "own.gallery"
    shutil.copytree(gallery, out)
    running = start_server("--model", model, "--gallery", out)
    try:
        second = run_command("reid-serve", "--model", model, "--gallery", out, "--listen", "127.0.0.1:0")
        reader = start_server("--model", model, "--gallery", out, "--read-only")
        assert stop_server(reader) == 0
    finally:
        assert stop_server(running) == 0
    assert second.returncode == 1
    assert f"own.gallery is being written to by process {running.process.pid}" in second.stderr
    assert "end that first, or give --read-only to serve what another process writes" in second.stderr


def test_where_there_are_keys_only_those_of_the_admin_scope_reflect(tmp_path: Path, model: Path, gallery: Path):
    tokens = {}
    scopes: dict[str, Scope] = {"searcher": "search", "keeper": "admin"}
    for name, scope in scopes.items():
        secret, tokens[name] = make_secret()
        key = Key(name=name, scopes={scope: ("*",)}, secrets=(secret,))
        change_keys(tmp_path / "keys.json", lambda keys: add_key(keys, key))  # noqa: B023  # called at once
    running = start_server("--model", model, "--gallery", gallery, "--keys", tmp_path / "keys.json")
    refused = {}
    try:
        with grpc.insecure_channel(running.target) as channel:
            reflect: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            for name, metadata in (("nobody", ()), ("searcher", (("authorization", f"Bearer {tokens['searcher']}"),))):
                with pytest.raises(grpc.RpcError) as refusal:
                    next(reflect(iter([b""]), metadata=metadata))
                refused[name] = (refusal.value.code().name, refusal.value.details())
        listed = subprocess.run(
            [
                *(BIN / "buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods"),
                *("--reflect-header", f"authorization: Bearer {tokens['keeper']}", f"http://{running.target}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        assert stop_server(running) == 0
    assert refused == {
        "nobody": ("UNAUTHENTICATED", "this server asks for a key: send authorization: Bearer reid_..."),
        "searcher": ("PERMISSION_DENIED", "key 'searcher' does not allow scope admin"),
    }
    assert "reid.v1.ModelService/Reload" in listed.stdout, listed.stderr


def test_reflection_can_be_off(model: Path, gallery: Path):
    running = start_server("--model", model, "--gallery", gallery, "--no-reflection")
    try:
        with grpc.insecure_channel(running.target) as channel:
            reflect: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            with pytest.raises(grpc.RpcError) as refusal:
                next(reflect(iter([b""])))
    finally:
        assert stop_server(running) == 0
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_port_in_use_is_refused_in_one_line(model: Path, gallery: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run_command("reid-serve", "--model", model, "--gallery", gallery, "--listen", target)
    assert result.returncode == 1
    assert result.stderr == f"error: {target} cannot be listened on: is the port in use?\n"


def test_a_gallery_of_another_model_is_never_served(other_model: Path, gallery: Path, embedder: Embedder):
    result = run_command(
        "reid-serve", "--model", other_model, "--gallery", gallery, "--listen", "127.0.0.1:0", "--json"
    )
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == "GALLERY_MODEL_MISMATCH"
    for identity in (embedder.contract.identity, open_embedder(other_model).contract.identity):
        assert identity[:12] in error["message"]


def test_two_galleries_are_served_by_name(tmp_path: Path, model: Path, gallery: Path, embedder: Embedder):
    write_crops(tmp_path / "yard", pids=2)
    build_gallery(read_crops(tmp_path / "yard"), tmp_path / "yard", tmp_path / "yard.gallery", embedder)
    running = start_server("--model", model, "--gallery", gallery, "--gallery", tmp_path / "yard.gallery")
    try:
        with Client(running.target) as client:
            assert len(client.search_entry("0001_c1s1_000000_00.png", 100, gallery="yard").hits) == 3
            assert len(client.search_entry("0001_c1s1_000000_00.png", 100, gallery="crops").hits) == 39
            with pytest.raises(RequestError, match="there is crops, yard") as refusal:
                client.search_entry("0001_c1s1_000000_00.png")
            assert refusal.value.reason == "GALLERY_NOT_FOUND"
    finally:
        assert stop_server(running) == 0


def test_a_server_loads_no_training_library(server):
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    loaded = {Path(line.split()[-1]).name for line in maps.splitlines() if "/" in line}
    assert any("onnxruntime" in name for name in loaded)
    assert not any(name.startswith(("libtorch", "onnx_cpp2py")) for name in loaded)


def test_a_gallery_of_another_engine_is_served_and_that_is_said(model: Path, tmp_path: Path, embedder: Embedder):
    folder = tmp_path / "int8.gallery"
    identity = embedder.contract.identity
    create_store(folder, Origin(identity, "int8/onnxruntime-cpu", embedder.contract.dim)).close()
    process = subprocess.Popen(
        [BIN / "reid-serve", "--listen", "127.0.0.1:0", "--json", "--model", model, "--gallery", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["galleries"] == {"int8": 0}
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert "was embedded by int8/onnxruntime-cpu, queries are by fp32/onnxruntime-cpu" in log
