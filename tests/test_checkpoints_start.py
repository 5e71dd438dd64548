"""Starting from another network's weights."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from reidserve.errors import CheckpointError

torch = pytest.importorskip("torch", reason="needs reidserve[train]")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import (  # noqa: E402
    load_pretrained,
    write_checkpoint,
)
from reidserve.export.model import Architecture, Network, build_network  # noqa: E402
from tests.states import FEED, SMALL, STRONG, bare, hollow, lively, save  # noqa: E402

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


def built(architecture: Architecture, seed: int = 4) -> Any:
    return build_network(architecture, seed=seed)


def test_pretrained_weights_are_every_tensor_but_the_classifier(own: Path, network: Network):
    start = built(dataclasses.replace(SMALL, classes=9, last_stride=2))
    classifier = start.classifier.weight.detach().clone()
    left = load_pretrained(start, own)
    assert [line.partition(":")[0] for line in left] == ["classifier.weight"]
    assert torch.equal(start.classifier.weight, classifier)
    source = network.state_dict()
    for name, tensor in start.state_dict().items():
        assert name == "classifier.weight" or torch.equal(tensor, source[name]), name
    assert start.training
    assert not start.neck.bias.requires_grad


def test_an_imagenet_networks_weights_leave_the_neck_as_initialised(path: Path):
    start = built(Architecture(backbone="resnet18", ibn="b", classes=5, embedding_dim=8))
    embedding = start.embedding.weight.detach().clone()
    left = load_pretrained(start, save(bare(ibn="b", classes=1000), path))
    assert [line.partition(":")[0] for line in left][:2] == ["fc.weight", "fc.bias"]
    assert left[2].startswith("embedding.weight, embedding.bias, neck.weight, neck.bias")
    assert left[2].endswith("not in the file, stays as initialised")
    assert torch.equal(start.embedding.weight, embedding)
    assert start.backbone.conv1.weight.eq(1).all()


def test_a_strong_baselines_neck_is_left_out_where_there_is_none(path: Path):
    start = built(dataclasses.replace(SMALL, neck="no"))
    left = load_pretrained(start, save(STRONG, path))
    assert "bottleneck.weight: the network to start has none" in left


def test_pretrained_weights_of_another_backbone_are_refused(path: Path):
    start = built(dataclasses.replace(SMALL, ibn="none"))
    with pytest.raises(CheckpointError, match="is a resnet18_ibn_a, the network to start is a resnet18"):
        load_pretrained(start, save(STRONG, path))


def test_pretrained_weights_of_another_shape_are_refused_and_nothing_is_taken(path: Path, own: Path):
    start = built(dataclasses.replace(SMALL, embedding_dim=8))
    before = start.backbone.conv1.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"neck\.weight is \(512,\), the network to start has \(8,\)"):
        load_pretrained(start, own)
    assert torch.equal(start.backbone.conv1.weight, before)
    with pytest.raises(CheckpointError, match="left over: base.more"):
        load_pretrained(start, save(STRONG | hollow({"base.more": (3,)}), path))
