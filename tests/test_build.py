import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.datasets import Crop, read_crops
from reidserve.embed import Embedder
from reidserve.errors import (
    DatasetError,
    GalleryError,
    GalleryFullError,
    GalleryLockedError,
    GalleryModelError,
    OutputExistsError,
)
from reidserve.index import Entry, Item, Snapshot, add_images, build_gallery, read_snapshot
from reidserve.index.search.blocks import entry_bytes
from reidserve.index.storage.lock import writer_lock
from tests.conftest import BIN, draw_crop, run_command, wait_for_entries, write_crops


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    write_crops(tmp_path / "crops", pids=6)
    return tmp_path / "crops"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "crops.gallery"


def build(crops: Path, out: Path, embedder: Embedder, **options):
    return build_gallery(read_crops(crops), crops, out, embedder, **options)


def entry_of(snapshot: Snapshot, name: str) -> Entry:
    entry = snapshot.find(name)
    assert entry is not None
    return entry


def contents(out: Path) -> dict[str, list[float]]:
    snapshot = read_snapshot(out)
    return {entry.id: snapshot.vector(snapshot.row(entry.id)).tolist() for entry in snapshot.entries()}


def test_a_gallery_holds_each_crop_under_its_path_with_its_labels(crops: Path, out: Path, embedder: Embedder):
    report = build(crops, out, embedder)
    assert (report.entries, report.embedded, report.failures) == (12, 12, [])
    snapshot = read_snapshot(out, identity=embedder.contract.identity)
    for path in crops.iterdir():
        row = snapshot.row(path.name)
        entry = entry_of(snapshot, path.name)
        assert (entry.pid, entry.camid) == (path.name[:4], path.name[6])
        assert entry.source == str(path)
        np.testing.assert_array_equal(snapshot.vector(row), embedder.embed_encoded([path.read_bytes()])[0])


def test_rows_stand_in_the_order_of_paths(crops: Path, out: Path, embedder: Embedder):
    build(crops, out, embedder)
    snapshot = read_snapshot(out)
    assert [entry.id for entry in snapshot.entries()] == sorted(path.name for path in crops.iterdir())


def test_images_that_cannot_be_read_are_named_and_cost_no_other(crops: Path, out: Path, embedder: Embedder):
    (crops / "0007_c1s1_000000_00.jpg").write_text("no image")
    whole = (crops / "0001_c1s1_000000_00.png").read_bytes()
    (crops / "0007_c2s1_000000_00.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(crops / "0008_c1s1_000000_00.png")
    (crops / "0009_c1s1_000000_00.png").symlink_to("nowhere")
    report = build(crops, out, embedder)
    assert report.entries == 12
    assert [Path(name).name[:7] for name, _ in report.failures] == ["0007_c1", "0007_c2", "0008_c1", "0009_c1"]
    reasons = [reason for _, reason in report.failures]
    assert "expected a JPEG, PNG, WEBP, BMP image" in reasons[0]
    assert "damaged" in reasons[1]
    assert "no regular file" in reasons[2]
    assert "No such file" in reasons[3]


def test_file_names_that_are_not_utf8_become_readable_ids(crops: Path, out: Path, embedder: Embedder):
    strange = os.fsencode(crops) + b"/0042_c1s1_\xff\xe9.png"
    Image.fromarray(draw_crop(42, 1)).save(os.fsdecode(strange), "PNG")
    report = build(crops, out, embedder)
    assert report.failures == []
    snapshot = read_snapshot(out)
    assert entry_of(snapshot, "0042_c1s1_%FF%E9.png").pid == "0042"


def test_a_build_into_a_gallery_adds_what_is_new_or_changed_and_embeds_nothing_twice(
    crops: Path, out: Path, tmp_path: Path, embedder: Embedder
):
    build(crops, out, embedder)
    Image.fromarray(draw_crop(99, 1)).save(crops / "0001_c1s1_000000_00.png")  # changed
    (crops / "0002_c1s1_000000_00.png").unlink()  # gone
    Image.fromarray(draw_crop(77, 1)).save(crops / "0077_c1s1_000000_00.png")  # new
    twin = crops / "0077_c2s1_000000_00.png"  # new, but with a known content
    twin.write_bytes((crops / "0003_c1s1_000000_00.png").read_bytes())
    report = build(crops, out, embedder)
    assert (report.embedded, report.reused, report.kept, report.gone, report.removed) == (2, 1, 10, 1, 0)
    assert report.entries == 14

    pruned = build(crops, out, embedder, prune=True)
    assert (pruned.embedded, pruned.kept, pruned.gone, pruned.removed, pruned.entries) == (0, 13, 1, 1, 13)
    build(crops, tmp_path / "fresh.gallery", embedder)
    assert contents(out) == contents(tmp_path / "fresh.gallery")

    again = build(crops, out, embedder, prune=True)
    assert (again.embedded, again.kept, again.generation) == (0, 13, pruned.generation)


def test_equal_images_of_one_build_are_embedded_once(crops: Path, out: Path, embedder: Embedder):
    first = sorted(crops.iterdir())[0]
    for number in (1, 2):
        (crops / f"009{number}_c1s1_000000_00.png").write_bytes(first.read_bytes())
    report = build(crops, out, embedder)
    assert (report.embedded, report.reused, report.entries) == (12, 2, 14)
    assert contents(out)["0092_c1s1_000000_00.png"] == contents(out)[first.name]


def test_another_folder_takes_a_gallery_over_by_force_only(crops: Path, out: Path, tmp_path: Path, embedder: Embedder):
    build(crops, out, embedder)
    write_crops(tmp_path / "other", pids=2)
    with pytest.raises(OutputExistsError, match=f"holds a gallery built from {crops}.*--force"):
        build(tmp_path / "other", out, embedder)
    assert len(read_snapshot(out)) == 12
    report = build(tmp_path / "other", out, embedder, force=True)
    # The same names and the same pictures: only where they came from is new.
    assert (report.embedded, report.reused, report.gone) == (0, 4, 8)
    with pytest.raises(OutputExistsError, match="built from .*other"):
        build(crops, out, embedder)


def test_what_does_not_fit_in_the_memory_is_refused_before_it_is_written(crops: Path, out: Path, embedder: Embedder):
    build(crops, out, embedder)
    write_crops(crops, pids=8)
    most = 14 * entry_bytes(embedder.contract.dim)
    with pytest.raises(GalleryFullError, match="would hold 16 entries, 14 fit"):
        build(crops, out, embedder, max_memory=most)
    assert len(read_snapshot(out)) == 12
    assert build(crops, out, embedder, max_memory=most + 2 * entry_bytes(embedder.contract.dim)).entries == 16


def test_images_are_added_one_by_one(crops: Path, out: Path, tmp_path: Path, embedder: Embedder):
    build(crops, out, embedder)
    path = tmp_path / "new.png"
    Image.fromarray(draw_crop(77, 1)).save(path)
    item = Item(path, Entry("mine", pid="77", attributes={"colour": "red"}))
    assert add_images([item], out, embedder).embedded == 1
    snapshot = read_snapshot(out)
    assert snapshot.find("mine") == item.entry
    np.testing.assert_array_equal(snapshot.vector(snapshot.row("mine")), embedder.embed_encoded([path.read_bytes()])[0])
    assert add_images([item], out, embedder).kept == 1
    with pytest.raises(DatasetError, match="two images have the id mine"):
        add_images([item, item], out, embedder)
    with pytest.raises(GalleryError, match="no gallery at"):
        add_images([item], tmp_path / "none", embedder)
    assert not (tmp_path / "none").exists()


def test_images_that_trade_places_keep_nothing_of_the_old(crops: Path, out: Path, embedder: Embedder, monkeypatch):
    build(crops, out, embedder)
    names = sorted(path.name for path in crops.iterdir())
    first, last = (crops / names[0]).read_bytes(), (crops / names[-1]).read_bytes()
    (crops / names[0]).write_bytes(last)
    (crops / names[-1]).write_bytes(first)
    # In groups of two the only entry with the first content is rewritten before the last one asks for it.
    monkeypatch.setattr("reidserve.index.build.COMMIT_ROWS", 2)
    report = build(crops, out, embedder)
    assert (report.failures, report.reused, report.embedded) == ([], 1, 1)
    assert contents(out)[names[0]] == embedder.embed_encoded([last])[0].tolist()
    assert contents(out)[names[-1]] == embedder.embed_encoded([first])[0].tolist()


def test_a_folder_of_somebody_elses_is_refused_and_kept(crops: Path, out: Path, embedder: Embedder):
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(OutputExistsError, match="is no gallery"):
        build(crops, out, embedder, force=True)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_an_entry_whose_image_became_unreadable_is_kept(crops: Path, out: Path, embedder: Embedder):
    build(crops, out, embedder)
    before = contents(out)
    (crops / "0001_c1s1_000000_00.png").write_text("gone bad")
    report = build(crops, out, embedder, prune=True)
    assert len(report.failures) == 1
    assert contents(out) == before


def test_a_gallery_of_another_model_is_refused_even_with_force(
    crops: Path, out: Path, embedder: Embedder, other_model: Path
):
    from reidserve.embed import open_embedder

    build(crops, out, embedder)
    before = contents(out)
    other = open_embedder(other_model)
    for force in (False, True):
        with pytest.raises(GalleryModelError, match=embedder.contract.identity[:12]) as refusal:
            build(crops, out, other, force=force)
        assert other.contract.identity[:12] in str(refusal.value)
    assert contents(out) == before


def test_two_crops_of_one_path_are_refused(crops: Path, out: Path, embedder: Embedder):
    path = crops / "0001_c1s1_000000_00.png"
    with pytest.raises(DatasetError, match="two crops have the path 0001_c1s1_000000_00.png"):
        build_gallery([Crop(path), Crop(path)], crops, out, embedder)
    assert not out.exists()


def test_a_file_in_the_gallerys_place_is_refused_and_kept(crops: Path, out: Path, embedder: Embedder):
    out.write_text("precious")
    with pytest.raises(OutputExistsError, match="is no gallery"):
        build(crops, out, embedder, force=True)
    assert out.read_text() == "precious"


def test_a_second_writer_is_refused(crops: Path, out: Path, embedder: Embedder):
    with writer_lock(out), pytest.raises(GalleryLockedError, match=f"process {os.getpid()}"):
        build(crops, out, embedder)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "many"
    write_crops(folder, pids=300, camids=4)
    return folder


def start_build(crops: Path, out: Path, model: Path, **options) -> subprocess.Popen[str]:
    command = list(map(str, [BIN / "reid-index", "build", crops, "--model", model, "--out", out, "--json"]))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_an_interrupted_build_leaves_a_gallery_that_opens_and_is_resumed(
    many: Path, out: Path, model: Path, embedder: Embedder, number, code
):
    building = start_build(many, out, model)
    wait_for_entries(out, 256)
    building.send_signal(number)
    output, errors = building.communicate(timeout=60)
    assert building.returncode == code, errors
    assert "Traceback" not in errors

    half = contents(out)
    assert 256 <= len(half) < 1200, "the build was not interrupted half-way"
    resumed = start_build(many, out, model)
    output, errors = resumed.communicate(timeout=120)
    report = json.loads(output)
    assert (resumed.returncode, report["entries"], report["kept"]) == (0, 1200, len(half))
    assert report["embedded"] == 1200 - len(half)
    whole = contents(out)
    assert {name: whole[name] for name in half} == half
    assert sorted(whole) == sorted(path.name for path in many.iterdir())


def test_a_full_disk_ends_a_build_with_one_line_and_loses_nothing_committed(many: Path, out: Path, model: Path):
    def limit() -> None:
        # A file-size limit fails writes as a full disk does, without needing a disk to fill.
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    building = start_build(many, out, model, preexec_fn=limit)
    output, errors = building.communicate(timeout=60)
    assert building.returncode == 1
    assert json.loads(output)["error"]["reason"] == "GALLERY_INVALID"
    assert "what was committed before is safe" in errors
    assert "Traceback" not in errors
    survivors = len(contents(out))
    assert survivors % 256 == 0
    report = run_command("reid-index", "build", many, "--model", model, "--out", out, "--json")
    assert json.loads(report.stdout)["kept"] == survivors
    assert json.loads(report.stdout)["entries"] == 1200


def test_a_read_only_folder_is_read_and_refused_for_writing_with_the_reason(
    tmp_path: Path, crops: Path, out: Path, embedder: Embedder
):
    build(crops, out, embedder)
    for folder in [tmp_path, *tmp_path.parents][:4]:
        folder.chmod(0o755)
    out.chmod(0o555)
    # root writes everywhere, so the child becomes nobody once it has imported what it needs.
    script = (
        "import os, pathlib, sys; from reidserve.index import open_gallery\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "print(len(open_gallery(folder).snapshot))\n"
        "open_gallery(folder, write=True)"
    )
    child = subprocess.run([sys.executable, "-P", "-c", script, out], capture_output=True, text=True, check=False)
    out.chmod(0o755)
    assert child.returncode == 1
    assert child.stdout == "12\n"
    assert "GalleryError" in child.stderr
    assert "cannot be written: Permission denied" in child.stderr
