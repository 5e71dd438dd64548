import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reidserve.embed import open_embedder, read_artifact
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.canaries import CANARIES_FILE, REFERENCE_ENGINE, compare_canaries, draw_canaries
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.images import FILTERS
from reidserve.errors import ArtifactError
from tests.conftest import DIM, HEIGHT, WIDTH


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """An artifact to damage."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads(path.read_bytes())
    edit(facts)
    path.write_text(json.dumps(facts))


def sign_again(folder: Path) -> None:
    """Make the contract name the files as they are now: a change that its hashes do not show."""
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (MODEL_FILE, CANARIES_FILE)}
    edit_json(folder / CONTRACT_FILE, lambda facts: facts["files"].update(hashes))


def canary_rows(folder: Path) -> np.ndarray:
    """The kept embeddings (8, dim), read without our code."""
    kept = json.loads((folder / CANARIES_FILE).read_bytes())["embeddings"][REFERENCE_ENGINE]
    return np.frombuffer(base64.b64decode(kept), "<f4").reshape(8, -1)


def test_a_whole_artifact_reads(model: Path):
    artifact = read_artifact(model)
    assert artifact.folder == model
    assert sorted(artifact.contract.files) == sorted({path.name for path in model.iterdir()} - {CONTRACT_FILE})
    assert (artifact.contract.height, artifact.contract.width, artifact.contract.dim) == (HEIGHT, WIDTH, DIM)
    assert artifact.canaries.images == draw_canaries(height=HEIGHT, width=WIDTH)


def test_a_folder_without_a_contract_is_no_model(copy: Path, tmp_path: Path):
    (copy / CONTRACT_FILE).unlink()
    for folder in (copy, tmp_path / "missing"):
        expected = f"no model at {folder}: expected {folder}/artifact.json; make one with reid-export --out {folder}"
        with pytest.raises(ArtifactError, match=expected):
            read_artifact(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, CANARIES_FILE])
def test_a_missing_file_is_refused(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{copy}/{name} cannot be read: No such file"):
        read_artifact(copy)


@pytest.mark.parametrize("name", [MODEL_FILE, CANARIES_FILE])
@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_changed_byte_is_refused(copy: Path, name: str, place: int):
    data = bytearray((copy / name).read_bytes())
    data[place] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(
        ArtifactError, match=rf"{copy}/{name} was changed after export: expected sha256 [0-9a-f]{{12}}, got"
    ):
        read_artifact(copy)


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "sub/secret.txt", "..", ".", ""])
def test_a_file_outside_the_folder_is_never_taken(copy: Path, name: str):
    (copy.parent / "secret.txt").write_bytes(b"")
    empty = hashlib.sha256(b"").hexdigest()
    edit_json(copy / CONTRACT_FILE, lambda facts: facts["files"].update({name: empty}))
    with pytest.raises(ArtifactError, match=r"names a file outside its folder|cannot be read"):
        read_artifact(copy)


def test_a_name_that_no_file_can_have_is_refused(copy: Path):
    edit_json(copy / CONTRACT_FILE, lambda facts: facts["files"].update({"a\0b": "ab" * 32}))
    with pytest.raises(ArtifactError, match=r"artifact\.json"):
        read_artifact(copy)


def test_an_artifact_without_canaries_is_refused(copy: Path):
    edit_json(copy / CONTRACT_FILE, lambda facts: facts["files"].pop(CANARIES_FILE))
    with pytest.raises(ArtifactError, match=r"artifact.json must name canaries.json, got \['model.onnx'\]"):
        read_artifact(copy)


@pytest.mark.parametrize(
    "edit",
    [
        lambda facts: facts.update(more=1),
        lambda facts: facts.pop("images"),
        lambda facts: facts["images"].append("no base64!"),
        lambda facts: facts["embeddings"].update({"other": facts["embeddings"].pop(REFERENCE_ENGINE)}),
        lambda facts: facts.update(images=[]),
        lambda facts: facts["images"].__setitem__(3, base64.b64encode(b"no image").decode()),
        lambda facts: facts["embeddings"].update({REFERENCE_ENGINE: base64.b64encode(bytes(5)).decode()}),
        lambda facts: facts["embeddings"].update({REFERENCE_ENGINE: base64.b64encode(bytes(8)).decode()}),
        lambda facts: facts["embeddings"].update({REFERENCE_ENGINE: base64.b64encode(b"\xff" * 8 * DIM * 4).decode()}),
    ],
    ids=["unknown", "no images", "no base64", "no reference", "empty", "no image", "5 bytes", "few", "NaN"],
)
def test_canaries_that_do_not_read_are_refused(copy: Path, edit):
    edit_json(copy / CANARIES_FILE, edit)
    sign_again(copy)
    with pytest.raises(ArtifactError, match="canar"):
        open_embedder(copy)


def test_the_canaries_are_what_the_embedder_computes(model: Path):
    embedder = open_embedder(model)
    computed = embedder.embed_encoded(draw_canaries(height=HEIGHT, width=WIDTH))
    np.testing.assert_array_equal(computed, canary_rows(model))
    assert compare_canaries(read_artifact(model).canaries, computed, engine=REFERENCE_ENGINE) == 0


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "bilinear"])
def test_canaries_catch_another_resize_filter(copy: Path, name: str):
    edit_json(copy / CONTRACT_FILE, lambda facts: facts.update(resize=name))
    read_artifact(copy)
    with pytest.raises(
        ArtifactError, match=r"canaries differ by .* on fp32/onnxruntime-cpu, at most 0.0001 was expected"
    ):
        open_embedder(copy)


def test_canaries_catch_other_weights_under_a_contract_that_names_them(copy: Path, other_model: Path):
    shutil.copy(other_model / MODEL_FILE, copy / MODEL_FILE)
    sign_again(copy)
    assert read_artifact(copy).contract.identity == read_artifact(other_model).contract.identity
    with pytest.raises(ArtifactError, match="canaries differ by"):
        open_embedder(copy)


def test_canaries_of_another_dimension_are_refused(model: Path):
    with pytest.raises(ArtifactError, match="the canaries have 192 numbers, the model gives 184"):
        compare_canaries(read_artifact(model).canaries, canary_rows(model)[:, 1:], engine=REFERENCE_ENGINE)


def test_a_graph_that_was_swapped_for_none_is_refused(copy: Path):
    (copy / MODEL_FILE).write_bytes(b"no graph")
    sign_again(copy)
    with pytest.raises(ArtifactError, match="ONNX Runtime does not take the graph"):
        open_embedder(copy)
