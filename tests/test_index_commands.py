import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.commands.console import read_bytes, write_bytes
from reidserve.datasets import read_crops
from reidserve.embed import Embedder
from reidserve.errors import UsageError
from reidserve.index import Entry, Record, build_gallery, open_writer, read_snapshot
from reidserve.index.search.blocks import entry_bytes
from reidserve.index.storage.database import DATABASE, Origin
from reidserve.index.storage.store import BUILDING, STATE, create_store, open_store
from tests.conftest import BIN, draw_crop, run_command, start_server, stop_server, unit_rows, write_crops

FIRST = "0001_c1s1_000000_00.png"
COMMANDS = [
    *("build", "add", "remove", "update", "forget", "rebuild", "info", "search", "tune", "verify", "compact"),
    *("export", "import", "snapshot", "restore"),
]


@pytest.fixture
def shop(tmp_path: Path, embedder: Embedder) -> Path:
    """A folder with the crops `shop` and the gallery `shop.gallery` of them: 4 pids, 2 cameras."""
    write_crops(tmp_path / "shop", pids=4)
    build_gallery(read_crops(tmp_path / "shop"), tmp_path / "shop", tmp_path / "shop.gallery", embedder)
    return tmp_path


def call(folder: Path, *arguments: object, code: int = 0) -> dict:
    """What `reid-index ... --json` says, which it says on one line and nothing else."""
    result = run_command("reid-index", *arguments, "--json", cwd=folder)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def entries(folder: Path) -> dict[str, Entry]:
    return {entry.id: entry for entry in read_snapshot(folder).entries()}


def damage(folder: Path, row: int = 1) -> None:
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("UPDATE vector SET blob = zeroblob(length(blob)) WHERE row = ?", (row,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_teaches(command: str):
    result = run_command("reid-index", command, "--help")
    assert result.returncode == 0
    assert f"Usage: reid-index {command}" in result.stdout
    assert "--json" in result.stdout


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("512MB", 512 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("4096", 4096),
        ("2k", 2000),
        (" 1 tb ", 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int):
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "8XB", "8iB", "1e9", "nan", "8 GB RAM", "0.1"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(UsageError, match="expected a size"):
        read_bytes(text)


def test_sizes_are_written_for_people():
    assert [write_bytes(size) for size in (7, 1500, 2 * 10**6, 8 * 10**9)] == ["7 B", "1.5 kB", "2.0 MB", "8.0 GB"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["remove", "shop.gallery"], "one of both"),
        (["remove", "shop.gallery", FIRST, "--where", "pid == 1"], "one of both"),
        (["remove", "shop.gallery", "--where", ""], "--where: the filter is wrong"),
        (["remove", "shop.gallery", "--where", "pids == 1"], "--where: the filter is wrong at character 1"),
        (["export", "shop.gallery", "out", "--where", "nonsense"], "--where: the filter is wrong"),
        (
            ["search", FIRST, "--entry", "--gallery", "shop.gallery", "--where", "speed >"],
            "--where: the filter is wrong",
        ),
        (["search", FIRST, "--gallery", "shop.gallery", "--index", "hnsw"], "flat"),
        (["update", "shop.gallery", FIRST], "expected what to say"),
        (["update", "shop.gallery", FIRST, "--set", "colour"], "expected NAME=VALUE, got 'colour'"),
        (["update", "shop.gallery", FIRST, "--set", "pid=7"], "attribute's name"),
        (["update", "shop.gallery", FIRST, "--set", "a=1", "--set", "a=2"], "a comes twice"),
        (["update", "shop.gallery", FIRST, "--set", "a=1", "--unset", "a"], "--unset a forgets"),
        (["update", "shop.gallery", FIRST, "--timestamp", "yesterday"], "--timestamp: .*not ISO 8601"),
        (["add", "shop.gallery", "a.png", "b.png", "--id", "x"], "--id names one image"),
        (["add", "shop.gallery", "a.png", "--root", "shop"], "does not lie below --root"),
        (["build", "shop", "--max-memory", "lots"], "expected a size"),
        (["verify", "shop.gallery", "--model", "model"], "--model is for --repair"),
        (["rebuild", "shop.gallery"], "--model"),
    ],
)
def test_wrong_usage_exits_with_2_and_changes_nothing(shop: Path, arguments: list[str], fault: str):
    before = (shop / "shop.gallery" / DATABASE).read_bytes()
    result = run_command("reid-index", *arguments, "--json", cwd=shop)
    assert result.returncode == 2, result.stdout
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == "USAGE_WRONG"
    assert re.search(fault, error["message"])
    assert (shop / "shop.gallery" / DATABASE).read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["remove", "none", "x"],
        ["update", "none", "x", "--pid", "1"],
        ["add", "none", "a.png", "--model", "{model}"],
        ["rebuild", "none", "--model", "{model}", "--out", "new"],
        ["export", "none", "out"],
        ["snapshot", "none", "out"],
        ["restore", "none", "out"],
        ["verify", "none"],
        ["verify", "none", "--repair"],
        ["compact", "none"],
        ["info", "none"],
        ["import", "new", "none"],
        ["remove", "empty", "x"],
        ["compact", "empty"],
        ["snapshot", "empty", "out"],
    ],
)
def test_a_gallery_that_is_not_there_is_one_error_and_leaves_nothing(tmp_path: Path, model: Path, arguments: list[str]):
    (tmp_path / "empty").mkdir()
    error = call(tmp_path, *(part.replace("{model}", str(model)) for part in arguments), code=1)["error"]
    assert error["reason"] in ("GALLERY_INVALID", "DATASET_INVALID")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_images_are_added_under_the_paths_of_the_built_folder(shop: Path, model: Path, tmp_path: Path):
    (shop / "shop" / "new").mkdir()
    for path in (shop / "shop/new/a.png", shop / "outside.png"):
        Image.fromarray(draw_crop(70, 1)).save(path)
    (shop / "shop/new/bad.png").write_text("no image")
    images = ["shop/new/../new/a.png", "outside.png", "shop/new/bad.png"]
    said = ["--pid", "70", "--camid", "c9", "--timestamp", "2024-05-01T08:00:00Z", "--set", "speed=7", "--set", "a=b=c"]
    report = call(shop, "add", "shop.gallery", *images, "--model", model, *said, code=1)
    assert (report["entries"], report["embedded"], report["reused"]) == (10, 1, 1)
    assert [Path(name).name for name, _ in report["failures"]] == ["bad.png"]
    found = entries(shop / "shop.gallery")
    assert found["new/a.png"].attributes == {"speed": 7, "a": "b=c"}
    assert found["new/a.png"].timestamp == 1714550400000000
    assert (found[str(shop / "outside.png")].pid, found[str(shop / "outside.png")].camid) == ("70", "c9")

    assert call(shop, "add", "shop.gallery", "outside.png", "--model", model, "--id", "mine")["ids"] == ["mine"]
    assert call(shop, "add", "shop.gallery", "outside.png", "--model", model, "--root", ".")["ids"] == ["outside.png"]


def test_entries_are_removed_by_id_or_by_filter(shop: Path):
    dry = call(shop, "remove", "shop.gallery", "--where", "pid == 0002 and camid != 1", "--dry-run")
    assert (dry["ids"], dry["removed"], dry["entries"]) == (["0002_c2s1_000000_00.png"], 0, 8)
    assert dry["where"] == 'pid in ("0002") and camid not in ("1")'
    done = call(shop, "remove", "shop.gallery", "--where", "pid == 0002 and camid != 1")
    assert (done["ids"], done["removed"], done["entries"], done["generation"]) == (dry["ids"], 1, 7, 2)
    done = call(shop, "remove", "shop.gallery", FIRST, FIRST, "nobody")
    assert (done["removed"], done["missing"], done["entries"]) == (1, 1, 6)
    again = call(shop, "remove", "shop.gallery", FIRST)
    assert (again["removed"], again["missing"], again["generation"]) == (0, 1, done["generation"])
    listed = run_command("reid-index", "remove", "shop.gallery", "--where", "pid == 0003", "--dry-run", cwd=shop)
    assert listed.stdout.splitlines()[-1] == '2 of 6 entries would be removed where pid in ("0003")'


def test_a_damaged_entry_is_removed_by_its_id(shop: Path):
    damage(shop / "shop.gallery")
    assert call(shop, "remove", "shop.gallery", FIRST)["removed"] == 1
    assert call(shop, "verify", "shop.gallery")["clean"]


def test_facts_are_changed_and_nothing_is_embedded(shop: Path):
    before = read_snapshot(shop / "shop.gallery")
    vector = before.vector(before.row(FIRST))
    where = ["--where", "pid in (0001, 0002)"]
    report = call(
        shop, "update", "shop.gallery", *where, "--set", "speed=1.5", "--set", 'code="7"', "--timestamp", "-5"
    )
    assert (report["updated"], report["chosen"], report["generation"]) == (4, 4, 2)
    report = call(shop, "update", "shop.gallery", FIRST, "--pid", "new", "--unset", "camid", "--unset", "code")
    assert report["updated"] == 1
    after = read_snapshot(shop / "shop.gallery")
    assert after.find(FIRST) == Entry(FIRST, "new", None, -5, str(shop / "shop" / FIRST), {"speed": 1.5})
    assert entries(shop / "shop.gallery")["0002_c1s1_000000_00.png"].attributes == {"speed": 1.5, "code": "7"}
    assert entries(shop / "shop.gallery")["0003_c1s1_000000_00.png"].attributes == {}
    np.testing.assert_array_equal(after.vector(after.row(FIRST)), vector)
    again = call(shop, "update", "shop.gallery", FIRST, "--pid", "new")
    assert (again["updated"], again["generation"]) == (0, 3)
    error = call(shop, "update", "shop.gallery", FIRST, "nobody", "--pid", "x", code=1)["error"]
    assert error["reason"] == "ENTRY_NOT_FOUND"
    assert entries(shop / "shop.gallery")[FIRST].pid == "new"


def test_a_gallery_goes_out_and_comes_back_the_same(shop: Path, model: Path):
    out = call(shop, "export", "shop.gallery", "out")
    assert (out["wrote"], out["entries"], out["damaged"]) == ("out", 8, [])
    back = call(shop, "import", "back.gallery", "out")
    assert (back["entries"], back["written"], back["kept"]) == (8, 8, 0)
    search = ["search", f"shop/{FIRST}", "--model", model, "--gallery"]
    assert call(shop, *search, "back.gallery")["hits"] == call(shop, *search, "shop.gallery")["hits"]
    assert call(shop, "import", "back.gallery", "out", "--normalise")["written"] == 0
    assert call(shop, "export", "shop.gallery", "out", code=1)["error"]["reason"] == "OUTPUT_EXISTS"
    assert call(shop, "export", "shop.gallery", "some", "--where", "pid == 0001")["entries"] == 2


def test_an_export_names_what_it_leaves_out(shop: Path):
    damage(shop / "shop.gallery")
    result = run_command("reid-index", "export", "shop.gallery", "out", cwd=shop)
    assert result.returncode == 1
    assert f"left out {FIRST}: it fails its checksum" in result.stderr
    assert "entries     7\n" in result.stdout


def test_a_search_says_that_a_damaged_entry_was_left_out(shop: Path, model: Path):
    question = ("search", f"shop/{FIRST}", "--gallery", "shop.gallery", "--model", model)
    assert call(shop, *question)["damaged"] == 0
    damage(shop / "shop.gallery")
    assert call(shop, *question)["damaged"] == 1
    told = run_command("reid-index", *question, cwd=shop)
    assert (told.returncode, told.stderr) == (0, "1 damaged left out: reid-index verify names them\n")
    assert FIRST not in told.stdout


def test_copies_are_whole_galleries_and_replace_nothing(shop: Path):
    with open_writer(shop / "shop.gallery") as store:
        copied = call(shop, "snapshot", "shop.gallery", "copy")
        store.delete([FIRST])
    assert (copied["entries"], copied["generation"], copied["faults"], copied["damaged"]) == (8, 1, [], [])
    error = call(shop, "restore", "copy", "shop.gallery", code=1)["error"]
    assert error["reason"] == "OUTPUT_EXISTS"
    assert "restore under a name that is free" in error["message"]
    assert call(shop, "restore", "copy", "back.gallery")["entries"] == 8
    assert FIRST in entries(shop / "back.gallery")
    assert call(shop, "remove", "back.gallery", FIRST)["removed"] == 1

    damage(shop / "shop.gallery", row=2)
    damaged = call(shop, "snapshot", "shop.gallery", "damaged", code=1)
    assert [one["row"] for one in damaged["damaged"]] == [2]


def test_verify_repairs_from_the_images(shop: Path, model: Path, other_model: Path):
    assert call(shop, "verify", "shop.gallery")["clean"]
    damage(shop / "shop.gallery")
    found = call(shop, "verify", "shop.gallery", code=1)
    assert (found["clean"], found["entries"], found["damaged"][0]["id"]) == (False, 7, FIRST)
    told = run_command("reid-index", "verify", "shop.gallery", cwd=shop)
    assert f"entry {FIRST}: it fails its checksum\n" in told.stderr
    assert "1 damaged: --repair --model MODEL, reid-index remove, or build again" in told.stdout
    wrong = call(shop, "verify", "shop.gallery", "--repair", "--model", other_model, code=1)
    assert wrong["error"]["reason"] == "GALLERY_MODEL_MISMATCH"
    assert call(shop, "verify", "shop.gallery", "--repair", code=1)["left"][0][0] == FIRST
    repaired = call(shop, "verify", "shop.gallery", "--repair", "--model", model)
    assert (repaired["clean"], repaired["repaired"], repaired["entries"]) == (True, [FIRST], 8)


def test_a_gallery_of_another_model_is_refused_by_name_with_the_way_out(shop: Path, other_model: Path):
    for arguments in (["build", "shop"], ["add", "shop.gallery", f"shop/{FIRST}"]):
        error = call(shop, *arguments, "--model", other_model, code=1)["error"]
        assert error["reason"] == "GALLERY_MODEL_MISMATCH"
        assert "reid-index rebuild GALLERY --model MODEL --out NEW" in error["message"]


def test_rebuild_lists_what_blocks_it_and_goes_on(shop: Path, other_model: Path):
    (shop / "shop" / FIRST).rename(shop / "away.png")
    command = ["rebuild", "shop.gallery", "--model", other_model, "--out", "new.gallery"]
    report = call(shop, *command, code=1)
    assert (report["finished"], [name for name, _ in report["failures"]]) == (False, [FIRST])
    error = call(shop, "info", "new.gallery", code=1)["error"]
    assert "is an unfinished rebuild" in error["message"]
    (shop / "away.png").rename(shop / "shop" / FIRST)
    report = call(shop, *command)
    assert (report["finished"], report["embedded"], report["kept"]) == (True, 1, 7)
    hits = call(shop, "search", f"shop/{FIRST}", "--gallery", "new.gallery", "--model", other_model)["hits"]
    assert (hits[0]["entry_id"], len(hits)) == (FIRST, 8)


def test_info_says_what_a_gallery_is_and_takes(shop: Path):
    call(shop, "update", "shop.gallery", FIRST, "--set", "colour=red")
    damage(shop / "shop.gallery", row=2)
    facts = call(shop, "info", "shop.gallery", "--index", "flat")
    assert (facts["entries"], facts["damaged"], facts["pids"], facts["camids"]) == (7, 1, 4, 2)
    assert (facts["attributes"], facts["index"]) == (["colour"], "flat")
    assert facts["memory_bytes"] == 7 * entry_bytes(24)
    files = [path for path in (shop / "shop.gallery").iterdir() if path.is_file()]
    assert facts["disk_bytes"] >= (shop / "shop.gallery" / DATABASE).stat().st_size
    assert files


def test_compact_gives_space_back_and_changes_no_answer(tmp_path: Path):
    rng = np.random.default_rng(0)
    store = create_store(tmp_path / "g", Origin("f" * 64, "none", 512))
    vectors = unit_rows(rng, 2000, 512)
    store.upsert([Record(Entry(f"e{row}"), bytes(32), vector) for row, vector in enumerate(vectors)])
    store.close()
    call(tmp_path, "remove", "g", *(f"e{row}" for row in range(1900)))
    (tmp_path / "g" / "cache").mkdir()
    (tmp_path / "g" / "cache" / "codes").write_bytes(bytes(10**6))
    facts = call(tmp_path, "compact", "g")
    assert facts["bytes_before"] > 5_000_000
    assert facts["bytes_after"] < 1_000_000
    assert not (tmp_path / "g" / "cache").exists()
    assert sorted(entries(tmp_path / "g")) == sorted(f"e{row}" for row in range(1900, 2000))
    assert call(tmp_path, "verify", "g")["clean"]


def test_a_filter_and_an_index_are_asked_for_by_name(shop: Path, model: Path):
    search = ["search", f"shop/{FIRST}", "--gallery", "shop.gallery", "--model", model]
    every = call(shop, *search)["hits"]
    some = call(shop, *search, "--where", "camid != 1 and pid in (0001, 0002)", "--index", "flat")["hits"]
    assert [(hit["entry_id"], hit["score"]) for hit in some] == [
        (hit["entry_id"], hit["score"]) for hit in every if hit["camid"] != "1" and hit["pid"] in ("0001", "0002")
    ]
    near = call(shop, "search", FIRST, "--entry", "--gallery", "shop.gallery", "--where", "pid == 0001")["hits"]
    assert [hit["entry_id"] for hit in near] == ["0001_c2s1_000000_00.png"]


def test_info_says_that_a_gallery_may_be_half_built(shop: Path):
    assert not call(shop, "info", "shop.gallery")["building"]
    with open_writer(shop / "shop.gallery") as store:
        store.write_note(STATE, BUILDING)
    assert call(shop, "info", "shop.gallery")["building"]
    assert "is under way or was cut off" in run_command("reid-index", "info", "shop.gallery", cwd=shop).stderr


def test_a_writer_is_told_who_writes(shop: Path, model: Path):
    commands: list[list[object]] = [
        ["build", "shop", "--model", model],
        ["add", "shop.gallery", f"shop/{FIRST}", "--model", model],
        ["remove", "shop.gallery", FIRST],
        ["update", "shop.gallery", FIRST, "--pid", "x"],
        ["compact", "shop.gallery"],
    ]
    with open_writer(shop / "shop.gallery"):
        for arguments in commands:
            error = call(shop, *arguments, code=1)["error"]
            assert (error["reason"], f"process {os.getpid()}" in error["message"]) == ("GALLERY_LOCKED", True)
        assert call(shop, "info", "shop.gallery")["entries"] == 8


def test_a_long_copy_is_interrupted_at_once_and_leaves_nothing(tmp_path: Path):
    rng = np.random.default_rng(0)
    store = create_store(tmp_path / "g", Origin("f" * 64, "none", 2048))
    for start in range(0, 20_000, 1000):
        vectors = unit_rows(rng, 1000, 2048)
        store.upsert([Record(Entry(f"e{start + row}"), bytes(32), vector) for row, vector in enumerate(vectors)])
    store.close()
    child = subprocess.Popen(
        [BIN / "reid-index", "snapshot", tmp_path / "g", tmp_path / "copy"], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".copy.partial-*/gallery.db")) and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors.decode().splitlines()[-1]) == (130, "error: interrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]


def test_a_server_serves_the_rest_of_a_damaged_gallery_and_says_so(shop: Path, model: Path):
    damage(shop / "shop.gallery")
    process = subprocess.Popen(
        [
            *(BIN / "reid-serve", "--listen", "127.0.0.1:0", "--model", model, "--gallery", shop / "shop.gallery"),
            *("--index", "flat", "--max-memory", "1GB", "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert (ready["galleries"], ready["damaged"]) == ({"shop": 7}, {"shop": 1})
    assert f"gallery shop serves without entry '{FIRST}': it fails its checksum (reid-index verify)" in log
    refused = run_command(
        *("reid-serve", "--listen", "127.0.0.1:0", "--model", model, "--gallery", shop / "shop.gallery"),
        *("--max-memory", "2kB", "--json"),
    )
    assert json.loads(refused.stdout)["error"]["reason"] == "GALLERY_FULL"


def test_what_a_command_writes_a_running_server_serves(shop: Path, model: Path):
    server = start_server("--model", model, "--gallery", shop / "shop.gallery", "--read-only")
    call(shop, "update", "shop.gallery", FIRST, "--pid", "renamed")
    deadline = time.monotonic() + 20
    pid = None
    while pid != "renamed" and time.monotonic() < deadline:
        asked = run_command("reid-search", shop / "shop" / FIRST, "--server", server.target, "--top-k", "1", "--json")
        pid = json.loads(asked.stdout)["hits"][0]["pid"]
    assert pid == "renamed"
    assert stop_server(server) == 0
    assert open_store(shop / "shop.gallery").count() == 8
