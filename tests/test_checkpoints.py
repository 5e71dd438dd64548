"""Every tensor of a foreign checkpoint is accounted for."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reidserve.errors import CheckpointError

torch = pytest.importorskip("torch", reason="needs reidserve[train]")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import read_checkpoint as read_strictly  # noqa: E402
from reidserve.export.checkpoints import (  # noqa: E402
    write_checkpoint,
)
from reidserve.export.checkpoints.accounts import Accounts, account  # noqa: E402
from reidserve.export.checkpoints.dialects import recognise  # noqa: E402
from reidserve.export.checkpoints.files import Contents  # noqa: E402
from reidserve.export.checkpoints.read import decide  # noqa: E402
from reidserve.export.model import Network, build_network  # noqa: E402
from tests.goldens import GOLDENS, keys  # noqa: E402
from tests.states import (  # noqa: E402
    FEED,
    OWN,
    PROJECTS,
    SMALL,
    STRONG,
    bare,
    damage,
    hollow,
    lively,
    save,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture(scope="module")
def network() -> Network:
    return lively(build_network(SMALL, seed=0))


@pytest.fixture(scope="module")
def own(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `network`, as reid-train would write it."""
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    write_checkpoint(path, network, {"epoch": "12", **FEED.to_metadata()})
    return path


@pytest.fixture(scope="module")
def images() -> Any:
    return torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def feature(network: Network, images: Any) -> np.ndarray:
    with torch.inference_mode():
        return network(images).numpy()


def read_checkpoint(path: Path, **said: Any) -> Any:
    return read_strictly(path, **said)


@pytest.mark.parametrize("how", ["removed", "renamed", "reshaped"])
@pytest.mark.parametrize("name", ["base.layer2.0.bn1.IN.weight", "base.bn1.running_mean", "bottleneck.running_var"])
def test_a_tensor_that_the_feature_reads_cannot_be_removed_renamed_or_reshaped(path: Path, name: str, how: str):
    state = dict(STRONG)
    expected = damage(state, name, how)
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(save(state, path), dialect="strong-baseline")
    assert all(f" {one}" in str(refusal.value) for one in expected)


def account_in_memory(which: str, state: dict[str, Any]) -> Accounts:
    """All that stands between a file's tensors and a network."""
    dialect, _ = PROJECTS[which]
    told = {"reidserve_format": "2", "architecture": json.dumps(dataclasses.asdict(OWN[which]))} if which in OWN else {}
    reading = recognise(Contents(Path("weights"), "", state, told), said=dialect)
    said = {"pooling": "average"} if which == "fast-reid-1.3 embedding" else {}
    architecture, _ = decide(reading, said, usual=True)
    return account(reading.contents, reading.dialect, architecture)


@pytest.mark.parametrize("which", PROJECTS)
def test_nor_can_any_other_of_any_dialect(which: str):
    _, whole = PROJECTS[which]
    dead = account_in_memory(which, whole).dead
    for name in whole.keys() - dead.keys():
        for how in ("removed", "renamed", "reshaped"):
            state = dict(whole)
            expected = damage(state, name, how)
            with pytest.raises(CheckpointError) as refusal:
                account_in_memory(which, state)
            # Without its exponent a file is asked for its pooling, before anything is left over.
            named = expected[:1] if name.endswith("pool_layer.p") else expected
            assert all(f" {one}" in str(refusal.value) for one in named), name


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDENS)
def test_nor_can_one_of_a_projects_own_network(shared: Path, name: str):
    whole = hollow(keys(shared / "data/goldens/dialects" / name))
    said = {choice: value for choice, value in GOLDENS[name].items() if choice not in ("dialect", "arch", "resize")}
    dialect, resize = (GOLDENS[name].get(choice) for choice in ("dialect", "resize"))

    def account_for(state: dict[str, Any]) -> Accounts:
        reading = recognise(Contents(Path("weights"), "", state, {}), said=dialect)
        architecture, _ = decide(reading, said, resize=resize, usual=dialect is not None)
        return account(reading.contents, reading.dialect, architecture)

    for name in whole.keys() - account_for(whole).dead.keys():
        for how in ("removed", "renamed", "reshaped"):
            state = dict(whole)
            expected = damage(state, name, how)
            with pytest.raises(CheckpointError) as refusal:
                account_for(state)
            named = expected[:1] if name.endswith("pool_layer.p") else expected
            assert all(f" {one}" in str(refusal.value) for one in named), name


def test_a_tensor_too_many_is_refused_by_name(path: Path):
    with pytest.raises(CheckpointError, match="left over: base.layer1.0.attention.weight"):
        read_checkpoint(save(STRONG | hollow({"base.layer1.0.attention.weight": (64,)}), path), dialect="dmt")


def test_a_missing_neck_is_refused(path: Path):
    state = {name: tensor for name, tensor in STRONG.items() if not name.startswith("bottleneck.")}
    with pytest.raises(CheckpointError, match=r"has no neck: bottleneck\.weight, .* are missing"):
        read_checkpoint(save(state, path), dialect="strong-baseline")


def test_a_classifier_of_another_size_is_refused(path: Path):
    wrong = STRONG | hollow({"classifier.weight": (5, 2048)})
    with pytest.raises(CheckpointError, match=r"of another shape: classifier.weight \(expected 5x512, got 5x2048\)"):
        read_checkpoint(save(wrong, path), dialect="strong-baseline")
    wrong = bare() | hollow({"fc.bias": (4,)})
    with pytest.raises(CheckpointError, match=r"fc.bias \(expected 5, got 4\)"):
        read_checkpoint(save(wrong, path), dialect="torchvision")


def test_a_missing_classifier_is_said_and_harmless(path: Path, own: Path, images, network: Network):
    del (state := dict(STRONG))["classifier.weight"]
    checkpoint = read_checkpoint(save(state, path), dialect="strong-baseline")
    assert list(checkpoint.absent) == ["classifier.weight"]
    assert checkpoint.architecture.classes == 0
    assert any("not in the file: classifier.weight" in line for line in checkpoint.remarks)

    tensors = safetensors_torch.load_file(own)
    del tensors["classifier.weight"]
    safetensors_torch.save_file(tensors, path, dict(read_checkpoint(own).metadata))
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.absent) == ["classifier.weight"]
    np.testing.assert_array_equal(feature(checkpoint.network, images), feature(network, images))


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
def test_half_a_classifier_is_said_and_harmless(path: Path, name: str):
    del (state := bare())[name]
    checkpoint = read_checkpoint(save(state, path), dialect="torchvision")
    assert list(checkpoint.absent) == [name]
    assert {"fc.weight", "fc.bias"} - checkpoint.dead.keys() == {name}


def test_missing_counters_are_said_and_harmless(path: Path):
    state = {name: tensor for name, tensor in STRONG.items() if not name.endswith("num_batches_tracked")}
    checkpoint = read_checkpoint(save(state, path), dialect="strong-baseline")
    assert STRONG.keys() - state.keys() == checkpoint.absent.keys()
    assert checkpoint.network.backbone.bn1.num_batches_tracked == 0
    assert any("and 19 more: counts training batches" in line for line in checkpoint.remarks)


def test_dead_tensors_are_said(path: Path):
    dead = {"base.fc.weight": (1000, 512), "base.fc.bias": (1000,), "gap.p": (1,), "n_averaged": ()}
    checkpoint = read_checkpoint(save(STRONG | hollow(dead), path), dialect="strong-baseline")
    counters = {name for name in STRONG if name.endswith("num_batches_tracked")}
    assert checkpoint.dead.keys() == {*dead, *counters, "classifier.weight"}
    assert "not read: base.fc.weight, base.fc.bias: the ImageNet classifier, which the network never reads" in (
        checkpoint.remarks
    )


@pytest.mark.parametrize("name", ["base.layer3.1.bn1.IN.weight", "base.bn1.running_mean", "classifier.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(path: Path, name: str, value: float):
    state = STRONG | {name: torch.full((), value).expand(STRONG[name].shape)}
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        read_checkpoint(save(state, path), dialect="strong-baseline")


def test_a_weight_beyond_half_precision_is_no_infinity_here(path: Path):
    state = STRONG | {"bottleneck.weight": torch.full((512,), 1e38, dtype=torch.bfloat16)}
    weight = read_checkpoint(save(state, path), dialect="strong-baseline").network.neck.weight
    assert weight.isfinite().all()


def test_a_negative_variance_is_refused(path: Path):
    state = STRONG | {"bottleneck.running_var": torch.full((512,), -0.1)}
    with pytest.raises(CheckpointError, match="bottleneck.running_var holds a negative variance"):
        read_checkpoint(save(state, path), dialect="strong-baseline")


@pytest.mark.parametrize("kind", ["float64", "int8", "complex64"])
def test_weights_of_another_type_are_refused(path: Path, kind: str):
    state = STRONG | {"bottleneck.weight": torch.ones(512).to(getattr(torch, kind))}
    with pytest.raises(
        CheckpointError, match=f"bottleneck.weight is {kind}, float32, float16 or bfloat16 was expected"
    ):
        read_checkpoint(save(state, path), dialect="strong-baseline")
