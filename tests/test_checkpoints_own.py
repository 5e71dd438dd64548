"""Our own checkpoints: written, read back, and refused where their metadata do not read."""

import dataclasses
import hashlib
import json
import os
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
from reidserve.export.model import Network, build_network  # noqa: E402
from tests.states import FEED, SMALL, hollow, lively, save, shapes, small  # noqa: E402

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


def test_our_own_checkpoint_reads_back_as_it_was_written(own: Path, network: Network, images):
    checkpoint = read_checkpoint(own)
    assert checkpoint.dialect == "reidserve"
    assert checkpoint.architecture == checkpoint.network.architecture == SMALL
    assert checkpoint.feeding == FEED
    assert checkpoint.metadata["epoch"] == "12"
    assert checkpoint.sha256 == hashlib.sha256(own.read_bytes()).hexdigest()
    assert not checkpoint.network.training
    np.testing.assert_array_equal(feature(checkpoint.network, images), feature(network, images))
    frozen = [name for name, weight in checkpoint.network.named_parameters() if not weight.requires_grad]
    assert frozen == ["neck.bias"]


@pytest.mark.parametrize(
    "choices",
    [
        {"ibn": "b", "pooling": "gem", "embedding_dim": 24, "feature": "before_neck"},
        {"neck": "no", "last_stride": 2, "stem_pool": "ceil", "stem_relu": False, "classes": 0},
    ],
)
def test_our_own_checkpoint_keeps_every_choice(path: Path, choices: dict[str, Any], images):
    written = build_network(small(**choices), seed=0).eval()
    write_checkpoint(path, written, {})
    checkpoint = read_checkpoint(path)
    assert checkpoint.architecture == written.architecture
    assert checkpoint.feeding is None
    np.testing.assert_array_equal(feature(checkpoint.network, images), feature(written, images))


def test_equal_networks_give_equal_bytes(own: Path, network: Network, path: Path):
    write_checkpoint(path, network, {**FEED.to_metadata(), "epoch": "12"})
    assert path.read_bytes() == own.read_bytes()


def test_half_precision_is_read_exactly(path: Path, network: Network):
    halves: Any = Network(SMALL)
    halves.load_state_dict(network.state_dict())
    write_checkpoint(path, halves.half(), {})
    read = read_checkpoint(path).network.state_dict()
    assert read["backbone.conv1.weight"].dtype == torch.float32
    assert torch.equal(read["backbone.conv1.weight"], halves.backbone.conv1.weight.float())


@pytest.mark.parametrize("taken", ["architecture", "reidserve_format"])
def test_the_formats_own_names_are_no_metadata(path: Path, network: Network, taken: str):
    with pytest.raises(CheckpointError, match=f"may not be named {taken}"):
        write_checkpoint(path, network, {taken: "x"})


def test_a_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, network: Network, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        write_checkpoint(path, network, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"arch": "resnet50_ibn_a"}, "resnet50_ibn_a was asked for, the tensors are a resnet18_ibn_a's"),
        ({"dialect": "torchvision"}, "torchvision was asked for, the tensors are reidserve's"),
        ({"last_stride": 2}, "last_stride 2 was asked for, its own metadata say last_stride 1"),
        ({"stem_pool": "ceil"}, "stem_pool ceil was asked for, its own metadata say stem_pool padded"),
        ({"pooling": "gem"}, "pooling gem was asked for, its own metadata say pooling average"),
    ],
)
def test_what_our_own_checkpoint_says_of_itself_cannot_be_contradicted(own: Path, said: dict[str, Any], message: str):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(own, **said)


def test_what_agrees_with_our_own_checkpoint_may_be_said(own: Path):
    said: dict[str, Any] = {"arch": "resnet18_ibn_a", "dialect": "reidserve", "last_stride": 1, "pooling": "average"}
    assert read_checkpoint(own, **said).architecture == SMALL


def with_metadata(own: Path, path: Path, **changes: str | None) -> Path:
    data = own.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"] | changes
    header["__metadata__"] = {name: value for name, value in metadata.items() if value is not None}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path


def altered(**choices: int) -> str:
    return json.dumps(dataclasses.asdict(SMALL) | choices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reidserve_format": "3"}, "is of format 3, this reidserve reads 1 and 2"),
        ({"architecture": None}, "metadata do not read"),
        ({"architecture": "[]"}, "metadata do not read: Expected `object`"),
        ({"architecture": '{"backbone": "resnet18"}'}, "it has, or lacks, classes, embedding_dim"),
        ({"architecture": '{"backbone": "vgg16"}'}, "metadata do not read: Invalid enum value 'vgg16'"),
        ({"resize": None}, "say how the network was fed, but not its resize"),
        ({"resize": '"sharp"'}, "metadata do not read: .*'sharp'"),
        ({"height": "tall"}, "height in the metadata is no JSON: 'tall'"),
        ({"height": "0"}, "height must be 1 to 4096 pixels, got 0"),
        ({"std": "[0, 1, 1]"}, "std above 0"),
        ({"mean": "[0.5]"}, "metadata do not read"),
        ({"mean": "[" * 100_000}, "metadata do not read: maximum recursion depth"),
        ({"architecture": altered(embedding_dim=2**62)}, "embedding_dim must be 1 to 1048576, or None, got 46"),
        ({"architecture": altered(parts=2**62)}, "parts must be 0 to 1048576, got 46116860184"),
        ({"architecture": altered(parts=2**20, embedding_dim=2**20)}, "missing: embedding.weight, embedding.bias"),
    ],
)
def test_metadata_that_do_not_read_are_refused(own: Path, path: Path, changes: dict[str, str], message: str):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(with_metadata(own, path, **changes))


def test_metadata_of_another_network_are_refused(own: Path, path: Path):
    other = json.dumps(dataclasses.asdict(dataclasses.replace(SMALL, ibn="none")))
    with pytest.raises(CheckpointError, match=r"missing: .*layer1\.0\.bn1\.weight.*left over: .*layer1\.0\.bn1\.BN"):
        read_checkpoint(with_metadata(own, path, architecture=other))


def test_our_own_tensors_without_their_metadata_are_refused(path: Path):
    with pytest.raises(CheckpointError, match="has reidserve's tensors without their metadata"):
        read_checkpoint(save(hollow(shapes()), path))
