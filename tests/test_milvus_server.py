"""A real reid-serve and real commands on a real Milvus, which is killed under load; its answers are a folder's."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from reidserve.client import Client, Filter, NewEntry, Rerank
from reidserve.commands.index import app
from reidserve.errors import GalleryBehindError, GenerationGoneError, RequestError
from reidserve.index import open_gallery, parse_place
from reidserve.index.place import GalleryUrl
from tests.conftest import Server, draw_crop, run_command, start_server, stop_server, unit_rows
from tests.milvus_running import RunningMilvus

pytest.importorskip("pymilvus", reason="needs the [milvus] extra")

PATTERN = r"(?P<pid>[a-z]+_\d+)_cam(?P<camid>\d)"
SOON = 120.0
"""Seconds within which whatever is waited for has come, on the most loaded of machines."""


def told(*arguments: object) -> dict:
    """What `reid-index` says with --json, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert not app([*map(str, arguments), "--json"])
    said: dict = json.loads(stdout.getvalue())
    return said


def refused(*arguments: object) -> dict:
    """What a command that fails says with --json."""
    result = run_command(*map(str, arguments), "--json")
    assert result.returncode == 1, result.stderr
    said: dict = json.loads(result.stdout)["error"]
    return said


def answers(ask: Callable[[], object]) -> bool:
    with contextlib.suppress(RequestError):
        ask()
        return True
    return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def told_of(place: Path | GalleryUrl) -> dict[str, tuple]:
    """What a gallery says of each entry, by its id, with its embedding."""
    with contextlib.closing(open_gallery(place)) as opened, contextlib.closing(opened.rows()) as rows:
        return {one.entry.id: (one.entry, one.content_sha256, one.vector.tobytes()) for one in rows.scan()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMilvus]:
    running = RunningMilvus(tmp_path_factory.mktemp("milvus"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def mall(milvus: RunningMilvus, gallery: Path) -> str:
    """A gallery in Milvus: a copy of `gallery`."""
    url = f"milvus://{milvus.address}/mall"
    assert told("copy", gallery, url)["entries"] == 40
    return url


def serve(model: Path, *places: object, more: tuple[object, ...] = ()) -> Server:
    return start_server("--model", model, *(flag for place in places for flag in ("--gallery", place)), *more)


def health_of(server: Server) -> int:
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status)  # type: ignore[attr-defined]


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_build_into_milvus_is_the_build_into_a_folder(milvus, crops, model, gallery):
    url = f"milvus://{milvus.address}/built"
    first = told("build", crops, "--model", model, "--out", url)
    assert (first["entries"], first["embedded"], first["failures"], first["gallery"]) == (40, 40, [], url)
    again = told("build", crops, "--model", model, "--out", url)
    assert (again["kept"], again["embedded"], again["generation"]) == (40, 0, first["generation"])
    assert told_of(parse_place(url)) == told_of(gallery)


def test_a_gallery_goes_to_milvus_and_back_and_is_the_same(milvus, mall, gallery, tmp_path):
    back, other = tmp_path / "back.gallery", f"milvus://{milvus.address}/other"
    assert told("copy", mall, other)["entries"] == 40
    assert told("copy", other, back)["entries"] == 40
    assert told_of(back) == told_of(gallery) == told_of(parse_place(mall))
    assert told("copy", gallery, mall)["kept"] == 40
    assert told("verify", mall)["clean"]
    assert refused("reid-index", "copy", back, mall)["reason"] == "OUTPUT_EXISTS"


def test_commands_change_a_gallery_in_milvus_as_one_in_a_folder(milvus, crops, model, tmp_path):
    url, folder = f"milvus://{milvus.address}/changed", tmp_path / "changed.gallery"
    said = []
    for place in (url, folder):
        name = sorted(path.name for path in crops.iterdir())
        told("build", crops, "--model", model, "--out", place)
        updated = told("update", place, name[0], "--pid", "0020", "--set", "colour=red")
        removed = told("remove", place, "--where", "pid == 0002")
        added = told("add", place, crops / name[5], "--model", model, "--id", "again", "--camid", "c9")
        found = told("search", crops / name[0], "--gallery", place, "--model", model, "--top-k", 40)
        same = told("search", "again", "--entry", "--gallery", place, "--where", "camid != c9")
        info = told("info", place)
        said.append(
            [
                *(updated["updated"], removed["removed"], added["reused"], found["hits"], same["hits"]),
                *(info[fact] for fact in ("entries", "pids", "camids", "attributes", "dim", "identity")),
            ]
        )
    assert said[0] == said[1]


def test_what_a_folder_has_and_milvus_has_not_is_refused_in_words(mall, model, crops):
    for arguments, message in (
        (("reid-index", "info", mall, "--index", "rabitq"), "--index is of folders"),
        (("reid-index", "build", crops, "--out", mall, "--max-memory", "1GB"), "--max-memory is of folders"),
        (("reid-index", "verify", mall, "--repair"), "--repair is of folders"),
        (("reid-index", "info", "milvus://user:word@127.0.0.1:1/mall"), "must not hold a user or a password"),
    ):
        result = run_command(*arguments)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr
        assert "word@" not in result.stderr
    serving = ("reid-serve", "--model", model, "--gallery", mall, "--listen", "127.0.0.1:0")
    assert refused(*serving, "--max-memory", "1GB")["reason"] == "CONFIG_INVALID"
    checked = json.loads(run_command(*serving, "--check", "--json").stdout)
    assert checked["settings"]["gallery"]["value"] == [mall]
    facts = {found["what"]: found["fact"] for found in checked["checks"]}
    assert facts["gallery mall"].startswith("40 entries at generation ")


def test_calls_are_answered_as_of_a_folder(milvus, mall, model, gallery, tmp_path):
    """One server with both galleries: every kind of call says the same of them."""
    told("copy", mall, tmp_path / "shop.gallery")
    server = serve(model, mall, tmp_path / "shop.gallery", more=("--snapshots", tmp_path))
    image = tmp_path / "new.png"
    Image.fromarray(draw_crop(3, 1, frame=7)).save(image)
    vector = unit_rows(np.random.default_rng(0), 1, 24)[0]
    with Client(server.target) as client:
        known = [client.gallery(name) for name in ("mall", "shop")]
        assert [(one.entries, one.writable, one.damaged) for one in known] == [(40, True, 0)] * 2
        for name in ("mall", "shop"):
            client.upsert(
                [NewEntry("new", image, pid="0003"), NewEntry("bare", embedding=vector.tolist(), camid="c7")],
                gallery=name,
            )
            client.update("new", attributes={"colour": "red", "night": True}, gallery=name)
            assert client.delete(where=Filter(pids=["0004"]), gallery=name).deleted == 2
        ids = [[entry.entry_id for entry in client.entries(name)] for name in ("mall", "shop")]
        assert ids[0] == ids[1]
        assert len(ids[0]) == 40
        for ask in (
            lambda name: client.search(image, 45, gallery=name).hits,
            lambda name: client.search_entry("new", 45, gallery=name).hits,
            lambda name: client.search(image, 45, where=Filter(not_camids=["c1"]), gallery=name).hits,
            lambda name: client.search(image, 5, group_by_pid=True, gallery=name).hits,
            lambda name: client.search(image, 5, rerank=Rerank(), gallery=name).hits,
            lambda name: client.search_embedding(vector.tolist(), 3, gallery=name).hits,
            lambda name: list(client.rank(image, gallery=name).scores),
            lambda name: list(client.entry("new", gallery=name, with_embedding=True).embedding or ()),
        ):
            assert ask("mall") == ask("shop")
        with pytest.raises(RequestError, match="milvus-backup") as refusal:
            client.snapshot("mall")
        assert refusal.value.reason == "READ_ONLY"
        with pytest.raises(RequestError) as gone:
            client.search(image, generation=known[0].generation, gallery="mall")
        assert gone.value.reason == GenerationGoneError.reason
    assert stop_server(server) == 0


@pytest.mark.slow
def test_a_milvus_that_hangs_delays_its_own_callers_and_nobody_else(milvus, mall, model, gallery, crops):
    """The folder's answers come while a call of the other gallery waits."""
    server = serve(model, mall, gallery)
    image, name = min(crops.iterdir()), "0003_c1s1_000000_00.png"
    asks = (
        lambda client, gallery: client.search(image, 3, gallery=gallery),
        lambda client, gallery: client.search_entry(name, 3, gallery=gallery),
        lambda client, gallery: client.entry(name, gallery=gallery),
        lambda client, gallery: next(client.entries(gallery)),
        lambda client, gallery: client.rank(image, gallery=gallery),
        lambda client, gallery: client.search(image, 3, gallery=gallery, rerank=Rerank()),
    )
    with Client(server.target, retries=0) as client, ThreadPoolExecutor(len(asks)) as threads:
        for ask in asks:
            assert ask(client, "mall")
        with milvus.frozen():
            waiting = [threads.submit(ask, client, "mall") for ask in asks]
            assert asks[0](client, "crops")
            assert not all(one.done() for one in waiting)
            for ask in asks:
                assert ask(client, "crops")
            failures = [one.exception(SOON) for one in waiting]
        assert {(one.code, one.reason) for one in failures if isinstance(one, RequestError)} == {
            ("UNAVAILABLE", "BACKEND_UNAVAILABLE")
        }
        assert len(failures) == len(asks)
        wait_until(lambda: health_of(server) == SERVING and answers(lambda: client.search(image, 3, gallery="mall")))
    assert stop_server(server) == 0


def test_a_server_changes_over_to_a_rebuilt_gallery_of_the_same_url(milvus, crops, model, other_model, tmp_path):
    url = f"milvus://{milvus.address}/renewed"
    for one in (model, other_model):
        (tmp_path / one.parent.name).symlink_to(one)
    told("build", crops, "--model", model, "--out", url)
    server = serve(model, url, more=("--models-root", other_model.parent))
    with Client(server.target) as client:
        before = client.search_entry("0003_c1s1_000000_00.png", 5)
        with pytest.raises(RequestError, match="holds embeddings of model") as refusal:
            client.reload("model")
        assert refusal.value.reason == "RELOAD_REFUSED"
        rebuilt = told("rebuild", url, "--model", other_model, "--out", url)
        assert (rebuilt["finished"], rebuilt["embedded"], rebuilt["entries"]) == (True, 40, 40)
        assert client.search_entry("0003_c1s1_000000_00.png", 5).hits == before.hits
        assert told("info", url)["identity"] == server.identity
        client.reload("model")
        after = client.search_entry("0003_c1s1_000000_00.png", 5)
        assert after.model != before.model
        assert after.hits != before.hits
    assert told("info", url)["identity"] == rebuilt["identity"] != server.identity
    assert stop_server(server) == 0


@pytest.mark.slow
def test_a_server_outlives_a_milvus_that_is_killed_and_nothing_acknowledged_is_lost(milvus, mall, model, crops):
    """Searches and writes go on while it is killed twice: each fails with the reason, or is whole."""
    server = serve(model, mall)
    image = min(crops.iterdir())
    acknowledged: list[str] = []
    failures: list[RequestError] = []
    answers = [0]
    stop = threading.Event()

    def write() -> None:
        with Client(server.target, retries=0) as client:
            number = 0
            while not stop.is_set():
                name = f"written {number}"
                try:
                    client.upsert([NewEntry(name, image, pid=str(number))], timeout=60)
                except RequestError as error:
                    failures.append(error)
                    time.sleep(0.05)
                else:
                    acknowledged.append(name)
                    number += 1

    def search() -> None:
        with Client(server.target, retries=0) as client:
            while not stop.is_set():
                try:
                    answers[0] += len(client.search(image, 3, timeout=60).hits) == 3
                except RequestError as error:
                    failures.append(error)
                    time.sleep(0.05)

    threads = [threading.Thread(target=work) for work in (write, search)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            written, answered, failed = len(acknowledged), answers[0], len(failures)
            wait_until(lambda: len(acknowledged) > written + 2 and answers[0] > answered + 10)  # noqa: B023
            milvus.kill()
            wait_until(lambda: len(failures) > failed + 5 and health_of(server) == NOT_SERVING)  # noqa: B023
            milvus.start()
            written, answered = len(acknowledged), answers[0]
            wait_until(lambda: len(acknowledged) > written and answers[0] > answered)  # noqa: B023
            wait_until(lambda: health_of(server) == SERVING)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # A write that Milvus took just before it was killed is told as one that cannot be shown yet.
    away = [one for one in failures if one.reason != GalleryBehindError.reason]
    assert {(one.code, one.reason) for one in away} == {("UNAVAILABLE", "BACKEND_UNAVAILABLE")}
    assert all(one.retry_after is not None and one.retry_after > 0 for one in away)
    with Client(server.target) as client:
        for name in acknowledged:
            assert client.entry(name).entry_id == name
    assert stop_server(server) == 0
    assert told("verify", mall)["clean"]


@pytest.mark.slow
def test_rankings_of_real_vehicles_are_the_folders_entry_by_entry(milvus, shared, osnet, tmp_path):
    photographs, folder = shared / "data" / "vehicles" / "images", tmp_path / "vehicles.gallery"
    url = f"milvus://{milvus.address}/cars"
    built = told("build", photographs, "--model", osnet, "--out", folder, "--pattern", PATTERN)
    assert (built["entries"], built["failures"]) == (1134, [])
    assert told("copy", folder, url)["entries"] == 1134
    server = serve(osnet, folder, url, more=("--read-only",))
    with Client(server.target) as client:
        for path in sorted(photographs.rglob("*.jpg"))[::40]:
            there, here = (client.search(path, 1134, gallery=name).hits for name in ("cars", "vehicles"))
            assert len(there) == 1134
            assert there == here
            some = Filter(not_camids=["1"])
            there, here = (client.search(path, 10, where=some, gallery=name).hits for name in ("cars", "vehicles"))
            assert there == here
    assert stop_server(server) == 0
