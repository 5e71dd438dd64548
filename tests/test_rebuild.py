import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.datasets import read_crops
from reidserve.embed import Embedder, open_embedder
from reidserve.errors import GalleryError, GalleryLockedError, GalleryModelError, OutputExistsError
from reidserve.index import (
    Entry,
    Item,
    Record,
    add_images,
    build,
    build_gallery,
    open_gallery,
    open_writer,
    read_snapshot,
    rebuild_gallery,
)
from reidserve.index.storage.store import STATE, create_store, open_store
from tests.conftest import BIN, draw_crop, run_command, wait_for_entries, write_crops


@pytest.fixture(scope="session")
def other(other_model: Path) -> Embedder:
    return open_embedder(other_model)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    write_crops(tmp_path / "crops", pids=4)
    return tmp_path / "crops"


@pytest.fixture
def old(tmp_path: Path, crops: Path, embedder: Embedder) -> Path:
    build_gallery(read_crops(crops), crops, tmp_path / "old.gallery", embedder)
    with open_writer(tmp_path / "old.gallery") as store:
        store.update([Entry("0001_c1s1_000000_00.png", "new", source=str(crops / "0001_c1s1_000000_00.png"))])
    return tmp_path / "old.gallery"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new.gallery"


def contents(folder: Path) -> dict[str, tuple[Entry, bytes]]:
    store = open_store(folder)
    found = store.contents()
    store.close()
    return found


def test_a_rebuild_says_the_same_of_the_same_images_in_the_other_models_embeddings(
    old: Path, out: Path, crops: Path, other: Embedder
):
    before = contents(old)
    report = rebuild_gallery(old, out, other)
    assert (report.entries, report.embedded, report.failures) == (8, 8, [])
    assert contents(out) == before == contents(old)
    snapshot = read_snapshot(out, identity=other.contract.identity)
    for path in crops.iterdir():
        expected = other.embed_encoded([path.read_bytes()])[0]
        np.testing.assert_array_equal(snapshot.vector(snapshot.row(path.name)), expected)
    # A build into it goes on as it would have into the old one.
    assert build_gallery(read_crops(crops), crops, out, other).embedded == 0


def test_what_was_written_to_the_old_gallery_since_is_done_by_the_same_call(
    old: Path, out: Path, tmp_path: Path, embedder: Embedder, other: Embedder
):
    rebuild_gallery(old, out, other)
    path = tmp_path / "late.png"
    Image.fromarray(draw_crop(9, 1)).save(path)
    add_images([Item(path, Entry("late", source=str(path)))], old, embedder)
    with open_writer(old) as store:
        store.delete(["0002_c1s1_000000_00.png"])
    report = rebuild_gallery(old, out, other)
    assert (report.embedded, report.removed, report.kept) == (1, 1, 7)
    assert contents(out) == contents(old)
    assert rebuild_gallery(old, out, other).embedded == 0


def test_what_is_written_meanwhile_is_in_the_new_gallery_too(
    old: Path, out: Path, tmp_path: Path, embedder: Embedder, other: Embedder, monkeypatch
):
    path = tmp_path / "late.png"
    Image.fromarray(draw_crop(9, 1)).save(path)
    late = [
        lambda: add_images([Item(path, Entry("late", source=str(path)))], old, embedder),
        lambda: contents_changed(old),
    ]

    def contents_changed(folder: Path) -> None:
        with open_writer(folder) as store:
            store.delete(["0003_c1s1_000000_00.png"])

    def write_all(*arguments, **said):
        if late:
            late.pop(0)()
        return original(*arguments, **said)

    original = build.write_all
    monkeypatch.setattr("reidserve.index.rebuild.write_all", write_all)
    report = rebuild_gallery(old, out, other)
    assert late == []
    assert (report.embedded, report.removed, report.entries) == (9, 1, 8)
    assert contents(out) == contents(old)


def test_entries_whose_image_is_gone_or_another_block_it_until_they_are_mended(
    old: Path, out: Path, crops: Path, other: Embedder
):
    gone, changed = crops / "0001_c2s1_000000_00.png", crops / "0002_c2s1_000000_00.png"
    kept = gone.read_bytes(), changed.read_bytes()
    gone.unlink()
    Image.fromarray(draw_crop(99, 1)).save(changed)
    with open_writer(old) as store:
        store.upsert([Record(Entry("bare"), bytes(32), np.eye(store.origin.dim, dtype=np.float32)[0])])
    report = rebuild_gallery(old, out, other)
    assert dict(report.failures).keys() == {"bare", gone.name, changed.name}
    reasons = dict(report.failures)
    assert reasons["bare"] == "it has no source that could be embedded again"
    assert reasons[gone.name] == f"{gone}: No such file or directory"
    assert reasons[changed.name] == f"{changed} is no longer the image that it was made of"
    with pytest.raises(GalleryError, match="is an unfinished rebuild: run the same reid-index rebuild again"):
        open_gallery(out)
    with pytest.raises(GalleryError, match="is an unfinished rebuild"):
        build_gallery(read_crops(crops), crops, out, other)
    with pytest.raises(GalleryError, match="is an unfinished rebuild"), open_writer(out):
        pass

    gone.write_bytes(kept[0])
    changed.write_bytes(kept[1])
    with open_writer(old) as store:
        store.delete(["bare"])
    report = rebuild_gallery(old, out, other)
    assert (report.embedded, report.kept, report.failures) == (2, 6, [])
    assert contents(out) == contents(old)


def test_only_a_rebuild_of_the_same_gallery_is_written_over(
    old: Path, out: Path, crops: Path, tmp_path: Path, embedder: Embedder, other: Embedder
):
    build_gallery(read_crops(crops), crops, out, other)
    with pytest.raises(OutputExistsError, match="is no rebuild of"):
        rebuild_gallery(old, out, other)

    # As an import leaves it: entries, and no note of a build.
    origin = open_store(out).origin
    imported = create_store(tmp_path / "imported.gallery", origin)
    imported.upsert([Record(Entry("precious"), bytes(32), np.eye(origin.dim, dtype=np.float32)[0])])
    assert imported.note(STATE) is None
    imported.close()
    with pytest.raises(OutputExistsError, match="is no rebuild of"):
        rebuild_gallery(old, tmp_path / "imported.gallery", other)
    assert set(contents(tmp_path / "imported.gallery")) == {"precious"}

    rebuild_gallery(old, tmp_path / "third.gallery", other)
    with open_writer(tmp_path / "third.gallery") as store:
        store.delete(["0003_c1s1_000000_00.png"])
    with pytest.raises(OutputExistsError, match="or was written to after it"):
        rebuild_gallery(old, tmp_path / "third.gallery", other)
    with pytest.raises(GalleryModelError):
        rebuild_gallery(old, old, other)
    with pytest.raises(OutputExistsError):
        rebuild_gallery(old, old, embedder)
    with pytest.raises(OutputExistsError, match="is no gallery"):
        rebuild_gallery(old, crops, other)


def test_the_old_gallery_may_be_written_to_and_the_new_one_only_by_the_rebuild(old: Path, out: Path, other: Embedder):
    with open_writer(old):
        rebuild_gallery(old, out, other)
    with open_writer(out), pytest.raises(GalleryLockedError):
        rebuild_gallery(old, out, other)


def test_a_rebuild_that_was_killed_goes_on_where_it_stopped(tmp_path: Path, embedder: Embedder, other_model: Path):
    write_crops(tmp_path / "many", pids=300, camids=4)
    old, out = tmp_path / "old.gallery", tmp_path / "new.gallery"
    build_gallery(read_crops(tmp_path / "many"), tmp_path / "many", old, embedder)
    command = ["rebuild", old, "--model", other_model, "--out", out, "--json"]
    child = subprocess.Popen(list(map(str, [BIN / "reid-index", *command])), stdout=subprocess.PIPE)
    wait_for_entries(out, 256)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    half = contents(out)
    assert 256 <= len(half) < 1200, "the rebuild was not killed half-way"
    with pytest.raises(GalleryError, match="is an unfinished rebuild"):
        open_gallery(out)
    report = json.loads(run_command("reid-index", *command).stdout)
    assert (report["finished"], report["kept"], report["embedded"]) == (True, len(half), 1200 - len(half))
    assert contents(out) == contents(old)
