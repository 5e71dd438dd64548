"""What reid-export --triton writes is a repository of what the artifact has, whole, or nothing."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format

from reidserve.embed import read_artifact
from reidserve.embed.artifact import decode_artifact
from reidserve.embed.place import CANARIES_KEY, CONTRACT_KEY, PRECISION_KEY
from reidserve.errors import ArtifactError, OutputExistsError
from reidserve.export.repository import write_repository
from reidserve.proto.inference import inference_pb2
from tests.conftest import HEIGHT, WIDTH, run_command


def config_of(folder: Path) -> inference_pb2.ModelConfig:
    config = inference_pb2.ModelConfig()
    return text_format.Parse((folder / "config.pbtxt").read_text(), config, allow_unknown_field=True)


def test_a_repository_holds_the_graph_and_the_contract(model: Path, tmp_path: Path):
    done = run_command("reid-export", model, "--triton", tmp_path / "repository", "--json")
    assert done.returncode == 0, done.stderr
    told, artifact = json.loads(done.stdout), read_artifact(model)
    folder = tmp_path / "repository" / "reid"
    assert (told["wrote"], told["files"]) == (str(folder), ["config.pbtxt", "1/model.onnx"])
    assert (told["identity"], told["url"]) == (artifact.contract.identity, "triton://HOST:8001/reid")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        *("1", "1/model.onnx", "config.pbtxt")
    ]
    assert (folder / "1" / "model.onnx").read_bytes() == (model / "model.onnx").read_bytes()
    config = config_of(folder)
    contract, canaries = (config.parameters[key].string_value for key in (CONTRACT_KEY, CANARIES_KEY))
    assert decode_artifact(contract.encode(), canaries.encode()) == (artifact.contract, artifact.canaries)
    assert (config.max_batch_size, config.parameters[PRECISION_KEY].string_value, config.name) == (32, "fp32", "")
    lines = (folder / "config.pbtxt").read_text().splitlines()
    assert 'backend: "onnxruntime"' in lines
    assert f'input {{ name: "crops" data_type: TYPE_UINT8 dims: [ {HEIGHT}, {WIDTH}, 3 ] }}' in lines
    assert "dynamic_batching { }" in lines


def test_what_is_there_stays_unless_it_is_forced_and_is_a_model(model: Path, other_model: Path, tmp_path: Path):
    folder = write_repository(model, tmp_path).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match="holds a model already: .*--force"):
        write_repository(other_model, tmp_path)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    write_repository(other_model, tmp_path, force=True)
    assert (folder / "1" / "model.onnx").read_bytes() == (other_model / "model.onnx").read_bytes()
    (folder / "2").mkdir()
    with pytest.raises(OutputExistsError, match=r"holds something else \(2\)"):
        write_repository(model, tmp_path, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reid"]


def test_what_the_artifact_has_not_is_not_written(model: Path, tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"the model has no model\.int8\.onnx"):
        write_repository(model, tmp_path, precision="int8")
    with pytest.raises(ArtifactError, match="expected one TensorRT plan in fp32, the model has none"):
        write_repository(model, tmp_path, plan=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--triton", "r", "--unverified"], "--triton writes what the model has"),
        (["--triton", "r", "--precision", "int8", "--calibrate", "crops"], "--triton writes what the model has"),
        (["--triton", "r", "--tensorrt", "--batch", "1,8"], "--triton writes what the model has"),
    ],
)
def test_making_and_writing_are_two_commands(model: Path, options: list[str], said: str, tmp_path: Path):
    done = run_command("reid-export", model, *options, cwd=tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert said in done.stderr


def test_a_checkpoint_is_exported_before_it_goes_into_a_repository(tmp_path: Path):
    done = run_command("reid-export", "--checkpoint", "a.pth", "--triton", tmp_path / "r")
    assert done.returncode == 2
    assert "--triton and --unverified are of a model that was exported" in done.stderr
