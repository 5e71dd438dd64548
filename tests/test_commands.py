import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import BIN, Server, draw_crop, foreign_model, run_command, save_onnx, write_crops

COMMANDS = ["reid-eval", "reid-export", "reid-index", "reid-search", "reid-serve", "reid-synth", "reid-train"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_and_names_the_exit_codes(command):
    result = run_command(command, "--help")
    assert result.returncode == 0
    assert f"Usage: {command}" in result.stdout
    assert "Exit codes: 0 done" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["reid-export", "--onx", "a.onnx"],
        ["reid-export", "--onnx", "a.onnx", "--size", "256"],
        ["reid-export", "--onnx", "a.onnx", "--size", "256x128", "--mean", "1,2"],
        ["reid-export", "--onnx", "a.onnx", "--size", "256x128", "--resize", "box"],
        ["reid-index", "bild", "crops"],
        ["reid-index", "build"],
        ["reid-serve"],
        ["reid-search", "a.jpg", "--top-k", "many"],
        ["reid-search", "a", "--entry", "--where", "camid ="],
        ["reid-search", "a", "--entry", "--where", ""],
        ["reid-search", "a", "--entry", "--server", "\udcff:1"],
        ["reid-eval"],
        ["reid-eval", "data", "--query-crops", "a"],
    ],
)
def test_wrong_usage_exits_with_2_and_one_error(arguments, tmp_path: Path):
    result = run_command(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.strip()
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_is_an_object_for_machines_too():
    result = run_command("reid-index", "bild", "crops", "--json")
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == "USAGE_WRONG"
    assert "build" in error["message"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_that_the_caller_closed_are_no_failure(gallery: Path, closed: str):
    result = subprocess.run(
        ["bash", "-c", f"{BIN}/reid-index info {gallery} {closed}"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_told_to_stop_leaves_nothing_half_written(tmp_path: Path, number: int):
    drawing = subprocess.Popen(
        [BIN / "reid-synth", tmp_path / "data", "--train-identities", "500"], stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    drawing.send_signal(number)
    _, errors = drawing.communicate(timeout=60)
    assert drawing.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["reid-export", "--onnx", "none.onnx", "--size", "64x32"], "EXPORT_FAILED"),
        (["reid-export", "--onnx", "none.onnx", "--size", "64x32", "--std", "0"], "EXPORT_FAILED"),
        (["reid-export", "--onnx", "none.onnx", "--size", "99999x32"], "EXPORT_FAILED"),
        (["reid-export", "--onnx", "none.onnx", "--size", "64x32", "--mean", "nan"], "EXPORT_FAILED"),
        (["reid-index", "info", "x\udcff"], "GALLERY_INVALID"),
        (["reid-export", "--onnx", "x\udcff", "--size", "64x32"], "EXPORT_FAILED"),
        (["reid-index", "build", "nowhere", "--model", "{model}"], "DATASET_INVALID"),
        (["reid-index", "build", "empty", "--model", "{model}"], "DATASET_INVALID"),
        (["reid-index", "build", "empty", "--model", "none"], "DATASET_INVALID"),
        (["reid-index", "build", "crops", "--model", "none"], "ARTIFACT_INVALID"),
        (["reid-index", "build", "crops", "--model", "{model}", "--pattern", "("], "DATASET_INVALID"),
        (["reid-index", "build", "crops", "--model", "{model}", "--device", "cuda"], "DEVICE_UNAVAILABLE"),
        (["reid-index", "info", "empty"], "GALLERY_INVALID"),
        (["reid-index", "search", "none.jpg", "--gallery", "empty", "--model", "{model}"], "GALLERY_INVALID"),
        (["reid-serve", "--model", "{model}", "--gallery", "empty", "--listen", "127.0.0.1:0"], "GALLERY_INVALID"),
        (["reid-serve", "--model", "none", "--gallery", "empty", "--listen", "127.0.0.1:0"], "ARTIFACT_INVALID"),
        (["reid-serve", "--model", "{model}", "--gallery", "empty", "--listen", "nonsense"], "CONFIG_INVALID"),
        (["reid-serve", "--model", "{model}", "--gallery", "empty", "--listen", "127.0.0.1:99999"], "CONFIG_INVALID"),
        (["reid-serve", "--model", "{model}", "--gallery", "empty", "--listen", "\udcff:1"], "CONFIG_INVALID"),
        (
            ["reid-search", "x", "--entry", "--server", "127.0.0.1:1", "--where", f"timestamp < {2**62}"],
            "QUERY_INVALID",
        ),
        (["reid-index", "build", "no_rows.csv", "--model", "{model}"], "DATASET_INVALID"),
        (
            ["reid-index", "build", "crops", "--model", "{model}", "--pattern", "a{9999999999999999999999}"],
            "DATASET_INVALID",
        ),
        (["reid-eval", "empty", "--model", "{model}"], "DATASET_INVALID"),
        (["reid-search", "none.jpg", "--server", "127.0.0.1:1"], "SYSTEM_ERROR"),
        (["reid-search", "x", "--entry", "--server", "127.0.0.1:1", "--timeout", "5"], "UNAVAILABLE"),
    ],
)
def test_a_failure_is_one_line_for_people_and_one_object_for_machines(arguments, reason, tmp_path: Path, model: Path):
    (tmp_path / "empty").mkdir()
    write_crops(tmp_path / "crops", pids=1)
    (tmp_path / "no_rows.csv").write_text("path\n")
    before = sorted(tmp_path.rglob("*"))
    result = run_command(*(part.replace("{model}", str(model)) for part in arguments), "--json", cwd=tmp_path)
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == reason
    assert result.stderr == f"error: {error['message']}\n"
    assert sorted(tmp_path.rglob("*")) == before, "a failed command left something behind"


def test_the_whole_way_by_the_commands_and_their_defaults(tmp_path: Path):
    write_crops(tmp_path / "shop", pids=4)
    save_onnx(foreign_model(), tmp_path / "foreign.onnx")

    exported = run_command("reid-export", "--onnx", "foreign.onnx", "--size", "64x32", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "wrote      model\n" in exported.stdout
    built = run_command("reid-index", "build", "shop", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "wrote      shop.gallery\nentries    8\n" in built.stdout
    info = json.loads(run_command("reid-index", "info", "shop.gallery", "--json", cwd=tmp_path).stdout)
    assert (info["entries"], info["pids"], info["camids"], info["dim"]) == (8, 4, 2, 24)

    query = "shop/0002_c1s1_000000_00.png"
    found = run_command("reid-index", "search", query, "--gallery", "shop.gallery", "--top-k", "1", cwd=tmp_path)
    assert found.stdout.splitlines()[1].split() == ["1", "1.000000", "0002", "1", "0002_c1s1_000000_00.png"]

    (tmp_path / "data").mkdir()
    for part in ("query", "bounding_box_test"):
        write_crops(tmp_path / "data" / part, pids=4)
    scored = json.loads(run_command("reid-eval", "data", "--json", cwd=tmp_path).stdout)
    (artifact,) = scored["subjects"]
    figures = artifact["figures"]
    assert (scored["layout"], figures["queries"], figures["cmc"][0], figures["mAP"]) == ("market1501", 8, 1.0, 1.0)
    assert artifact["facts"]["identity"] == info["identity"]


def test_the_command_line_and_the_server_give_one_ranking(server: Server, model: Path, gallery: Path, crops: Path):
    path = sorted(crops.iterdir())[5]
    asked = json.loads(run_command("reid-search", path, "--server", server.target, "--top-k", "6", "--json").stdout)
    bare = ["search", path, "--gallery", gallery, "--model", model, "--top-k", "6", "--json"]
    assert asked["hits"] == json.loads(run_command("reid-index", *bare).stdout)["hits"]
    by_entry = ["reid-search", path.name, "--entry", "--server", server.target, "--top-k", "5", "--json"]
    bare_entry = ["search", path.name, "--entry", "--gallery", gallery, "--top-k", "5", "--json"]
    hits = json.loads(run_command(*by_entry).stdout)["hits"]
    assert hits == json.loads(run_command("reid-index", *bare_entry).stdout)["hits"]
    assert [hit["entry_id"] for hit in hits] == [hit["entry_id"] for hit in asked["hits"][1:]]


def test_a_filter_on_the_command_line_is_the_one_that_is_searched_with(server: Server):
    where = "pid in (0002, 0003, 0004) and camid not in (2) and timestamp < 2099-01-01T00:00:00Z"
    ask = ["reid-search", "0001_c1s1_000000_00.png", "--entry", "--server", server.target, "--json"]
    assert json.loads(run_command(*ask, "--where", where).stdout)["hits"] == []  # of no time
    hits = json.loads(run_command(*ask, "--where", where.rpartition(" and ")[0]).stdout)["hits"]
    assert sorted((hit["pid"], hit["camid"]) for hit in hits) == [("0002", "1"), ("0003", "1"), ("0004", "1")]
    everyone = json.loads(run_command(*ask, "--top-k", "100", "--where", "attributes.speed < 3").stdout)
    assert everyone["hits"] == []


def test_images_left_out_are_named_counted_and_change_the_exit_code(tmp_path: Path, model: Path):
    write_crops(tmp_path / "crops", pids=2)
    (tmp_path / "crops" / "0003_c1s1_000000_00.jpg").write_text("no image")
    Image.fromarray(draw_crop(9, 1)).save(os.fsdecode(os.fsencode(tmp_path / "crops") + b"/0009_c1s1_\xff.png"), "PNG")
    built = run_command("reid-index", "build", "crops", "--model", model, cwd=tmp_path)
    assert built.returncode == 1
    assert "0003_c1s1_000000_00.jpg: expected a JPEG" in built.stderr
    assert "left out   1\n" in built.stdout
    assert "entries    5\n" in built.stdout


def test_a_reader_that_leaves_early_is_no_failure_worth_a_traceback(gallery: Path):
    # The pipe's reader is gone before the command has anything to say.
    command = f"sleep 0.1 | {BIN}/reid-index info {gallery} | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""
