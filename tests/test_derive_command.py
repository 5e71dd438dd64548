"""reid-export MODEL: flavours and plans by the command, its gate, its exit codes and what it says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reidserve.commands.export import app
from reidserve.embed import read_artifact
from reidserve.errors import DatasetError, UsageError
from tests.conftest import foreign_model, run_command, save_onnx, write_crops

HALF, INTEGER = "model.fp16.onnx", "model.int8.onnx"


@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of crops with the names of Market-1501."""
    folder = tmp_path_factory.mktemp("verify") / "crops"
    write_crops(folder, pids=24)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of Market-1501's layout, whose training part has identities that `verify` has not."""
    root = tmp_path_factory.mktemp("train") / "market"
    for part in ("query", "bounding_box_test", "bounding_box_train"):
        write_crops(root / part, pids=36)
    for path in (root / "bounding_box_train").iterdir():
        if int(path.name[:4]) <= 24:
            path.unlink()
    return root


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "models" / "model"))


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process, its cache in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: int(app([str(argument) for argument in arguments]) or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_fp16_is_made_proven_and_shown(folder: Path, verify: Path, export, capsys):
    before = read_artifact(folder).contract
    assert export(folder, "--precision", "fp16", "--verify", verify) == 0
    said = capsys.readouterr().out
    assert "fp16/onnxruntime-cpu  the reference's" in said
    assert "48 queries of 24 identities in a gallery of 48" in said
    assert "verified      yes" in said
    after = read_artifact(folder).contract
    assert after.identity == before.identity
    assert not after.flavours[HALF].unverified


def test_int8_calibrates_on_the_training_part_alone(folder: Path, verify: Path, train: Path, export, capsys):
    # query/ and bounding_box_test/ of the training dataset hold the very images that are verified on.
    arguments = [folder, "--precision", "int8", "--calibrate", train, "--verify", verify, "--bound", 8, "--json"]
    assert export(*arguments) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["files"] == [INTEGER, "model.int8.tensorrt.onnx"]
    assert made["contract"]["flavours"][INTEGER]["checks"][0]["bound"] == 8
    assert {row["engine"] for row in made["parity"]["rows"]} >= {"int8/onnxruntime-cpu", "int8-signed/onnxruntime-cpu"}
    assert made["identity"] == read_artifact(folder).contract.identity
    with pytest.raises(DatasetError, match="of --calibrate is among the images of --verify too"):
        export(folder, "--precision", "int8", "--calibrate", verify, "--verify", verify, "--force")


def test_a_flavour_that_fails_leaves_the_model_as_it_was_and_shows_the_table(
    folder: Path, verify: Path, export, capsys
):
    before = contents(folder)
    arguments = [folder, "--precision", "fp16", "--verify", verify, "--cosine-floor", "0.9999999999"]
    assert export(*arguments) == 1
    shown = capsys.readouterr()
    assert "REFUSED" in shown.out
    assert shown.err.startswith("error: nothing was written: fp16/onnxruntime-cpu: an image's two embeddings")
    assert export(*arguments, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["reason"] == "PARITY_LOST"
    assert document["parity"]["rows"][1]["refused"] is not None
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


def test_an_unproven_flavour_must_be_asked_for_by_name(folder: Path, export, capsys):
    with pytest.raises(UsageError, match="fp16 may rank otherwise: prove it with --verify DATA, or say --unverified"):
        export(folder, "--precision", "fp16")
    with pytest.raises(UsageError, match="a TensorRT plan may rank otherwise"):
        export(folder, "--tensorrt")
    assert HALF not in contents(folder)
    assert export(folder, "--precision", "fp16", "--unverified") == 0
    assert "verified      NO: the contract and the server say so" in capsys.readouterr().out
    assert read_artifact(folder).contract.flavours[HALF].unverified


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected what to make of the model"),
        (["--precision", "fp32"], "fp32 is model.onnx itself"),
        (["--precision", "int8", "--unverified"], "int8 takes its ranges from training images"),
        (["--precision", "fp16", "--unverified", "--size", "64x32"], "--size is of --checkpoint and --onnx, not of"),
        (["--precision", "fp16", "--unverified", "--out", "x"], "--out is of --checkpoint and --onnx, not of a model"),
        (["--precision", "fp16", "--unverified", "--bound", "1"], "--bound and --cosine-floor are of --verify"),
        (["--precision", "fp16", "--unverified", "--verify", "x"], "--verify and --unverified exclude each other"),
        (["--precision", "fp16", "--verify", "x", "--bound", "0"], "the bound must be above 0"),
        (["--tensorrt", "--unverified", "--calibrate", "x"], "--calibrate is of --precision fp16 and int8"),
        (["--precision", "fp16", "--unverified", "--batch", "1"], "--batch is of --tensorrt"),
        (
            ["--precision", "fp16", "--unverified", "--int8-budget", "1"],
            "are of --precision int8",
        ),
        (["--tensorrt", "--unverified", "--batch", "1,x"], "--batch must be numbers with commas between"),
    ],
)
def test_what_does_not_fit_together_is_wrong_usage(folder: Path, export, arguments: list[str], words: str):
    before = contents(folder)
    with pytest.raises(UsageError, match=words):
        export(folder, *arguments)
    assert contents(folder) == before


def test_flavours_are_of_models_that_were_exported(tmp_path: Path, export):
    foreign = save_onnx(foreign_model(), tmp_path / "foreign.onnx")
    with pytest.raises(UsageError, match="are of a model that was exported: export it first"):
        export("--onnx", foreign, "--size", "64x32", "--out", tmp_path / "model", "--precision", "fp16")
    assert not (tmp_path / "model").exists()


def test_a_first_export_is_proven_before_it_takes_its_place(tmp_path: Path, verify: Path, export, capsys):
    foreign = save_onnx(foreign_model(), tmp_path / "foreign.onnx")
    out = tmp_path / "models" / "model"
    asked = ["--onnx", foreign, "--size", "64x32", "--out", out, "--verify", verify]
    assert export(*asked) == 0
    assert "fp32/onnx-by-hand" in capsys.readouterr().out
    assert {"parity.json", "model.onnx"} < set(contents(out))
    before = contents(out)
    assert export(*asked, "--force", "--seed", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["parity"]["seed"] == 3
    assert contents(out)["model.onnx"] == before["model.onnx"]


def test_a_checkpoint_is_proven_against_its_network_in_torch(tmp_path: Path, verify: Path, export, capsys):
    pytest.importorskip("torch", reason="needs reidserve[train]")
    from reidserve.export.checkpoints import Feed, write_checkpoint
    from reidserve.export.model import Architecture, build_network

    feed = Feed(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), height=64, width=32)
    network = build_network(Architecture(backbone="resnet18", ibn="a", classes=5), seed=0)
    write_checkpoint(tmp_path / "model.safetensors", network, feed.to_metadata())
    out = tmp_path / "model"
    asked = ["--checkpoint", tmp_path / "model.safetensors", "--out", out, "--verify", verify, "--json"]
    assert export(*asked) == 0
    parity = json.loads(capsys.readouterr().out)["parity"]
    assert parity["reference"] == "fp32/torch-cpu"
    assert [row["engine"] for row in parity["rows"][:2]] == ["fp32/torch-cpu", "fp32/onnxruntime-cpu"]
    assert all(row["refused"] is None for row in parity["rows"])
    assert "parity.json" in read_artifact(out).contract.files


def test_fp32_is_proven_on_every_other_engine_here(folder: Path, verify: Path, export, capsys):
    assert export(folder, "--verify", verify) == 0
    said = capsys.readouterr().out
    assert "wrote         canaries and figures of fp32" in said
    contract = read_artifact(folder).contract
    assert contract.flavours == {}
    assert "parity.json" in contract.files


def test_crops_without_labels_are_compared_by_their_rankings(
    folder: Path, verify: Path, tmp_path: Path, export, capsys
):
    plain = tmp_path / "plain"
    plain.mkdir()
    for place, path in enumerate(sorted(verify.iterdir())):
        shutil.copy(path, plain / f"{place}.png")
    assert export(folder, "--precision", "fp16", "--verify", plain) == 0
    assert "No query has a pid: rankings alone were compared" in capsys.readouterr().out


def test_by_the_installed_command(folder: Path, verify: Path):
    taught = run_command("reid-export", "--help").stdout
    for option in ("--precision", "--calibrate", "--verify", "--int8-budget", "--bound", "--tensorrt", "--unverified"):
        assert option in taught
    strict = ["--precision", "fp16", "--verify", verify, "--cosine-floor", 0.9999999999]
    failed = run_command("reid-export", folder, *strict)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: nothing was written")
    assert "Traceback" not in failed.stderr
