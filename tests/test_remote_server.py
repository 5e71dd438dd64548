"""A server whose model is at another server: killed under load, it comes back, and nothing acknowledged is lost."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reidserve.client import Client, NewEntry
from reidserve.embed import ModelUrl
from reidserve.errors import RequestError, UnavailableError
from reidserve.export.repository import write_repository
from reidserve.index import read_snapshot
from tests.conftest import run_command, start_server, stop_server
from tests.remotes import Remote, kill_remote, start_remote

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def repository(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(model, tmp_path_factory.mktemp("repositories")).folder


@pytest.fixture
def remote(repository: Path, tmp_path: Path) -> Iterator[Remote]:
    started = start_remote(repository, fault=tmp_path / "fault")
    yield started
    if started.process.poll() is None:
        kill_remote(started)


def port_of(url: ModelUrl) -> int:
    return int(url.address.rpartition(":")[2])


def health_of(target: str) -> int:
    with grpc.insecure_channel(target) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
        return check(health_pb2.HealthCheckRequest(), timeout=10).status


def answers_of(client: Client, paths: list[Path]) -> list[list[tuple]]:
    return [[(hit.entry_id, hit.score) for hit in client.search(path, top_k=5).hits] for path in paths]


def test_what_a_server_answers_through_another_one_is_what_it_answers_alone(
    server, remote: Remote, gallery: Path, crops: Path
):
    paths = sorted(crops.iterdir())
    far = start_server("--model", remote.url, "--gallery", gallery, "--read-only")
    try:
        assert far.identity == server.identity
        with Client(far.target) as through, Client(server.target) as alone:
            assert answers_of(through, paths) == answers_of(alone, paths)
            assert through.search(paths[0]).engine == "fp32/remote-stand-in-onnx"
    finally:
        assert stop_server(far) == 0


def test_a_server_whose_model_is_away_does_not_start_and_says_so(remote: Remote, gallery: Path):
    kill_remote(remote)
    refused = run_command("reid-serve", "--model", remote.url, "--gallery", gallery, "--listen", "127.0.0.1:0")
    assert refused.returncode == 1
    assert f"error: {remote.url} does not answer: " in refused.stderr
    checked = run_command("reid-serve", "--check", "--model", remote.url, "--gallery", gallery)
    assert checked.returncode == 1
    assert f"model: {remote.url} does not answer: " in checked.stderr


def test_a_model_that_is_killed_under_load_is_unavailable_until_it_is_back(
    remote: Remote, repository: Path, gallery: Path, crops: Path
):
    paths = sorted(crops.iterdir())[:8]
    served = start_server("--model", remote.url, "--gallery", gallery, "--read-only")
    again: Remote | None = None
    over, failures, answered = threading.Event(), list[RequestError](), list[float]()

    def search(path: Path) -> None:
        with Client(served.target, retries=0) as client:
            while not over.is_set():
                try:
                    client.search(path, 3)
                    answered.append(time.monotonic())
                except RequestError as error:
                    failures.append(error)
                    time.sleep(0.05)

    try:
        with closing(Client(served.target, retries=0)) as client, ThreadPoolExecutor(len(paths)) as pool:
            before = answers_of(client, paths)
            callers = [pool.submit(search, path) for path in paths]
            try:
                wait_until(lambda: len(answered) >= 50)
                kill_remote(remote)
                wait_until(lambda: len(failures) >= 50 and health_of(served.target) == NOT_SERVING)
                # What needs no engine goes on.
                assert len(client.search_entry(paths[0].name, 3).hits) == 3
                again = start_remote(repository, fault=remote.fault, port=port_of(remote.url))
                back = time.monotonic()
                wait_until(lambda: health_of(served.target) == SERVING and answered[-1] > back)
            finally:
                over.set()
            for caller in callers:
                caller.result()
            assert {(type(failure), failure.reason, failure.retry_after) for failure in failures} == {
                (UnavailableError, "BACKEND_UNAVAILABLE", 1.0)
            }
            assert not any(remote.url.address in str(failure) for failure in failures)
            assert answers_of(client, paths) == before
    finally:
        assert stop_server(served) == 0
        if again is not None:
            kill_remote(again)


def test_nothing_that_was_acknowledged_is_lost_when_the_model_is_killed_among_writes(
    remote: Remote, repository: Path, crops: Path, tmp_path: Path
):
    paths = sorted(crops.iterdir())
    built = run_command("reid-index", "build", crops, "--model", remote.url, "--out", tmp_path / "g.gallery")
    assert built.returncode == 0, built.stderr
    served = start_server("--model", remote.url, "--gallery", tmp_path / "g.gallery")
    again: Remote | None = None
    acknowledged, failures, over = list[str](), list[RequestError](), threading.Event()

    def write() -> None:
        with Client(served.target, retries=0) as client:
            number = 0
            while not over.is_set():
                name, content = f"new-{number}", paths[number % len(paths)].read_bytes() + bytes(number // len(paths))
                try:
                    client.upsert([NewEntry(name, content)])
                    acknowledged.append(name)
                    number += 1
                except RequestError as error:
                    failures.append(error)
                    time.sleep(0.05)

    try:
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            try:
                wait_until(lambda: len(acknowledged) >= len(paths) + 5)
                kill_remote(remote)
                wait_until(lambda: len(failures) >= 3)
                so_far = len(acknowledged)
                again = start_remote(repository, fault=remote.fault, port=port_of(remote.url))
                wait_until(lambda: len(acknowledged) >= so_far + 5)
            finally:
                over.set()
            writing.result()
        assert {failure.reason for failure in failures} == {"BACKEND_UNAVAILABLE"}
    finally:
        assert stop_server(served) == 0
        if again is not None:
            kill_remote(again)
    stored = {entry.id for entry in read_snapshot(tmp_path / "g.gallery").entries()}
    assert stored == {path.name for path in paths} | set(acknowledged)


def test_a_build_whose_model_is_away_says_so_and_leaves_the_gallery_as_it_was(
    remote: Remote, crops: Path, tmp_path: Path
):
    out = tmp_path / "g.gallery"
    assert run_command("reid-index", "build", crops, "--model", remote.url, "--out", out).returncode == 0
    kill_remote(remote)
    lost = run_command("reid-index", "build", crops, "--model", remote.url, "--out", out)
    assert lost.returncode == 1
    assert "does not answer" in lost.stderr
    assert {entry.id for entry in read_snapshot(out).entries()} == {path.name for path in crops.iterdir()}


def test_reload_reads_a_remote_model_again_and_names_no_address_where_it_cannot(remote: Remote, gallery: Path, server):
    served = start_server("--model", remote.url, "--gallery", gallery, "--read-only")
    try:
        with Client(served.target) as client:
            assert client.reload().after.identity == served.identity
            kill_remote(remote)
            with pytest.raises(RequestError, match="nothing was changed") as refused:
                client.reload()
            assert refused.value.reason == "RELOAD_REFUSED"
            assert remote.url.address not in str(refused.value)
    finally:
        assert stop_server(served) == 0


def test_a_url_that_is_none_is_wrong_usage():
    for command in (
        ["reid-serve", "--model", "triton://host/reid", "--gallery", "g"],
        ["reid-index", "search", "a.jpg", "--model", "triton://host/reid", "--gallery", "g"],
    ):
        refused: subprocess.CompletedProcess[str] = run_command(*command)
        assert refused.returncode == 2
        assert "expected a model's folder or triton://host:8001/name" in refused.stderr
