"""The client's writes, and the commands that write through a server, against a real server."""

import json
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from reidserve.client import Client, Filter, NewEntry, NotFoundError, RefusedError, Search
from reidserve.commands.index import app
from reidserve.datasets import read_crops
from reidserve.embed import Embedder
from reidserve.errors import GalleryLockedError, UsageError
from reidserve.index import build_gallery
from reidserve.index.storage.store import open_store
from tests.conftest import Server, run_command, start_server, stop_server, write_crops
from tests.scripted import free_port, serve


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    """A folder with crops/ of 4 persons and the gallery yard.gallery of them."""
    folder = tmp_path_factory.mktemp("yard")
    write_crops(folder / "crops", pids=4)
    build_gallery(read_crops(folder / "crops"), folder / "crops", folder / "yard.gallery", embedder)
    return folder


@pytest.fixture(scope="module")
def writing(yard: Path, model: Path):
    """A server that writes to yard."""
    running = start_server("--model", model, "--gallery", yard / "yard.gallery", "--snapshots", yard / "snapshots")
    yield running
    assert stop_server(running) == 0


@pytest.fixture
def client(writing: Server):
    with Client(writing.target) as connected:
        yield connected


@pytest.fixture
def names(yard: Path) -> list[str]:
    return sorted(path.name for path in (yard / "crops").iterdir())


def test_what_was_written_is_found_from_its_generation_on(client, crops, embedder):
    path = sorted(crops.iterdir())[-1]
    taken = datetime(2026, 5, 1, 8, tzinfo=UTC)
    written = client.upsert([NewEntry("new", path, None, "9", "c9", taken, "gate 7", {"speed": 3})])
    assert written.written == 1
    found = client.search(path, 1, min_generation=written.generation)
    assert (found.hits[0].entry_id, found.hits[0].pid, found.generation) == ("new", "9", written.generation)
    assert found.batch_size == 1
    entry = client.entry("new", with_embedding=True)
    assert (entry.pid, entry.camid, entry.timestamp, entry.source) == ("9", "c9", taken, "gate 7")
    assert entry.attributes == {"speed": 3}
    np.testing.assert_array_equal(np.array(entry.embedding, np.float32), embedder.embed_encoded([path.read_bytes()])[0])
    assert client.upsert([NewEntry("new", path, None, "9", "c9", taken, "gate 7", {"speed": 3})]).written == 0
    again = client.upsert([NewEntry("again", embedding=entry.embedding)])
    assert (again.written, again.generation) == (1, written.generation + 1)
    assert client.delete(["new", "again", "never"]).deleted == 2
    with pytest.raises(NotFoundError, match="no entry 'new'"):
        client.entry("new")


def test_the_same_request_id_writes_once_and_not_for_another_request(client):
    vector = [1.0, *[0.0] * 23]
    first = client.upsert([NewEntry("once", embedding=vector)], request_id="r-1")
    assert client.upsert([NewEntry("once", embedding=vector)], request_id="r-1") == first
    with pytest.raises(RefusedError) as refusal:
        client.upsert([NewEntry("other", embedding=vector)], request_id="r-1")
    assert refusal.value.reason == "REQUEST_ID_REUSED"
    assert client.delete(["once"]).deleted == 1


def test_an_update_changes_what_it_names(client, names):
    before = client.entry(names[0])
    after = client.update(names[0], pid="77", attributes={"colour": "red", "speed": 2}).entry
    assert (after.pid, after.camid, after.attributes) == ("77", before.camid, {"colour": "red", "speed": 2})
    after = client.update(names[0], forget=["camid", "attributes.speed"]).entry
    assert (after.pid, after.camid, after.attributes) == ("77", None, {"colour": "red"})
    assert client.update(names[0], pid=before.pid, camid=before.camid, forget=["attributes"]).entry.attributes == {}
    with pytest.raises(RefusedError, match="update_mask"):
        client.update(names[0])


def test_what_a_filter_accepts_is_deleted_together(client, crops):
    path = sorted(crops.iterdir())[-1]
    client.upsert([NewEntry(f"gone-{number}", path, camid="gone") for number in range(5)])
    assert client.delete(where=Filter(camids=["gone"])).deleted == 5
    with pytest.raises(RefusedError, match="a filter that says nothing"):
        client.delete(where=Filter())


def test_galleries_and_the_model_are_told(client, writing, names):
    (gallery,) = client.galleries()
    assert (gallery.name, gallery.entries, gallery.writable, gallery.damaged) == ("yard", len(names), True, 0)
    assert client.gallery("yard") == gallery
    facts = client.model()
    assert (facts.model.identity, facts.model.engine) == (writing.identity, "fp32/onnxruntime-cpu")
    assert (facts.dim, facts.reloads, facts.threshold) == (24, 0, None)


def test_several_searches_and_tracks_are_answered(client, yard, names):
    image = yard / "crops" / names[0]
    found, missing, tracked = client.batch_search(
        [Search(image=image, top_k=3), Search(entry_id="nobody"), Search(track=[image, image], top_k=3)]
    )
    assert [hit.entry_id for hit in found.hits] == [hit.entry_id for hit in client.search(image, 3).hits]
    assert isinstance(missing, NotFoundError)
    assert [hit.entry_id for hit in tracked.hits] == [hit.entry_id for hit in found.hits]
    assert client.search_track([image], 3).hits == found.hits
    grouped = client.search(image, 10, group_by_pid=True).hits
    assert len({hit.pid for hit in grouped}) == len(grouped) == 4
    with pytest.raises(RefusedError) as refusal:
        client.search(image, only_matches=True)
    assert refusal.value.reason == "THRESHOLD_MISSING"


def test_a_snapshot_is_a_gallery_of_its_generation(client, yard, names):
    copy = client.snapshot(name="monday")
    assert (copy.name, copy.entries) == ("monday", len(names))
    (folder,) = [path for path in (yard / "snapshots").iterdir() if path.name.startswith("monday")]
    store = open_store(folder)
    assert (store.count(), store.generation()) == (copy.entries, copy.generation)
    store.close()


def test_an_import_outlives_the_server_that_is_killed(tmp_path: Path, model: Path, embedder: Embedder):
    write_crops(tmp_path / "crops", pids=1)
    build_gallery(read_crops(tmp_path / "crops"), tmp_path / "crops", tmp_path / "hall.gallery", embedder)
    command = ("--model", model, "--gallery", tmp_path / "hall.gallery")
    vectors = np.eye(24, dtype=np.float32)
    count, halfway, killed = 3000, threading.Event(), threading.Event()

    def entries():
        for number in range(count):
            if number == count // 2:
                halfway.set()
                assert killed.wait(30)
            yield NewEntry(f"e{number}", embedding=vectors[number % 24], pid=f"{number}")

    port, done = free_port(), []
    server = serve(port, *command)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        with Client(f"127.0.0.1:{port}") as client:
            importing = threading.Thread(target=lambda: done.append(client.import_entries(entries())))
            importing.start()
            assert halfway.wait(30)
            server.kill()
            server.communicate()
            killed.set()
            server = serve(port, *command)
            importing.join(60)
            assert done[0].entries == count
            assert done[0].faults == ()
            there = {entry.entry_id: entry.pid for entry in client.entries()}
    finally:
        server.kill()
        server.communicate()
    assert {f"e{number}": f"{number}" for number in range(count)}.items() <= there.items()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs reid-index --json; its exit code and what it printed."""

    def command(*arguments: object) -> tuple[int, dict]:
        capsys.readouterr()
        code = app([*map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return command


def test_images_are_added_through_a_server(run, client, writing, yard, crops, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    shutil.copy(sorted(crops.iterdir())[-1], tmp_path / "whole.png")
    done = run_command(
        *("reid-index", "add", yard / "yard.gallery", tmp_path / "whole.png", tmp_path / "broken.jpg"),
        *("--root", tmp_path, "--camid", "c5", "--set", "speed=7", "--server", writing.target, "--json"),
    )
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["server"], said["gallery"], said["ids"]) == (writing.target, "yard", ["whole.png", "broken.jpg"])
    assert (said["entries"], said["written"], said["unchanged"]) == (2, 1, 0)
    ((name, why),) = said["failures"]
    assert name == "broken.jpg"
    assert "expected a JPEG" in why
    entry = client.entry("whole.png")
    assert (entry.camid, entry.attributes, entry.source) == ("c5", {"speed": 7}, str(tmp_path / "whole.png"))
    same = ("--id", "whole.png", "--camid", "c5", "--set", "speed=7", "--server", writing.target)
    code, again = run("add", "yard", tmp_path / "whole.png", *same)
    assert (code, again["written"], again["unchanged"], again["failures"]) == (0, 0, 1, [])
    code, said = run("remove", "yard", "whole.png", "never", "--server", writing.target)
    assert (code, said["removed"], said["missing"]) == (0, 1, 1)


def test_entries_are_removed_through_a_server(run, client, writing, crops):
    path = sorted(crops.iterdir())[-1]
    client.upsert([NewEntry(f"n{number}", path, camid="n", attributes={"speed": number}) for number in range(4)])
    there = ("--server", writing.target)
    code, said = run("remove", "yard", "--where", "camid == n and speed < 2", "--dry-run", *there)
    assert (code, said["ids"], said["removed"], said["dry_run"]) == (0, ["n0", "n1"], 0, True)
    _, said = run("remove", "yard", "n0", "never", "--dry-run", *there)
    assert (said["ids"], said["missing"]) == (["n0"], 1)
    code, said = run("remove", "yard", "--where", "camid == n and speed < 2", *there)
    assert (code, said["removed"], said["missing"]) == (0, 2, 0)
    _, said = run("remove", "yard", "n2", "n3", *there)
    assert (said["removed"], said["generation"]) == (2, client.gallery().generation)


def test_entries_are_updated_through_a_server(run, client, writing, crops):
    path = sorted(crops.iterdir())[-1]
    client.upsert([NewEntry(f"u{number}", path, camid="u", attributes={"speed": number}) for number in range(2)])
    there = ("--server", writing.target)
    code, said = run("update", "yard", "--where", "camid == u", "--pid", "5", "--set", "wet=true", *there)
    assert (code, said["chosen"], said["updated"]) == (0, 2, 2)
    forget = ("--timestamp", "2026-05-01T08:00:00Z", "--unset", "camid", "--unset", "speed")
    _, said = run("update", "yard", "u0", *forget, *there)
    entry = client.entry("u0")
    assert (entry.pid, entry.camid, entry.attributes) == ("5", None, {"wet": True})
    assert entry.timestamp == datetime(2026, 5, 1, 8, tzinfo=UTC)
    _, said = run("update", "yard", "u0", "--pid", "5", *there)
    assert (said["chosen"], said["updated"]) == (1, 0)
    with pytest.raises(NotFoundError, match="no entry 'never'"):
        run("update", "yard", "u0", "never", "--pid", "6", *there)
    assert client.entry("u0").pid == "5"
    assert client.delete(["u0", "u1"]).deleted == 2


def test_a_gallery_that_a_server_writes_to_is_changed_through_it(run, writing, yard, names):
    for command in (("remove", "nobody"), ("update", names[0], "--pid", "7")):
        with pytest.raises(GalleryLockedError, match="is being written to by .*: --server HOST:PORT"):
            run(command[0], yard / "yard.gallery", *command[1:])


def test_a_gallery_that_a_server_writes_to_takes_no_image_beside_it(writing, yard, model, crops):
    path = sorted(crops.iterdir())[0]
    refused = run_command("reid-index", "add", yard / "yard.gallery", path, "--model", model)
    assert refused.returncode == 1
    assert "where that is reid-serve, let it do this: --server HOST:PORT" in refused.stderr


def test_what_the_server_decides_is_not_said_to_a_command_that_asks_it(run):
    with pytest.raises(UsageError, match="--model, --precision and --server do not go together"):
        run("add", "yard", "a.jpg", "--precision", "int8", "--model", "other", "--server", "127.0.0.1:1")
