from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from reidserve.export.checkpoints import write_checkpoint  # noqa: E402
from reidserve.export.model import Network, build_network, parse_architecture  # noqa: E402
from reidserve.export.train import Material, Settings  # noqa: E402
from reidserve.export.train.initialise import begin  # noqa: E402
from reidserve.export.train.learner import architecture_of, make_learner  # noqa: E402
from reidserve.export.train.recipes import change  # noqa: E402
from tests.runs import SMALL, read_small  # noqa: E402

PARTS = ["network.parts=2", "network.embedding_dim=8"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return read_small(tmp_path_factory.mktemp("initialise"), "evaluation.every=0")


def draw(settings: Settings) -> Network:
    return build_network(architecture_of(settings.network, classes=12), seed=settings.seed, head=settings.init.head)


def state_of(network: Network) -> dict:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def rows_of(network: Network) -> Tensor:
    """The weight of the classifier, which can go on learning."""
    assert network.classifier is not None
    assert network.classifier.weight.requires_grad
    return network.classifier.weight.detach()


def features_by_hand(network: Network, material: Material, settings: Settings) -> np.ndarray:
    """The features after the neck of all training images at once."""
    pixels = material.train.pixels / 255
    seen = (pixels - np.array(settings.input.mean)) / np.array(settings.input.std)
    network.eval()
    with torch.no_grad():
        after = network.features(torch.tensor(seen.transpose(0, 3, 1, 2), dtype=torch.float32))[1].numpy()
    network.train()
    return after


@pytest.mark.parametrize("changes", [[], PARTS], ids=["whole", "parts"])
def test_class_centres_are_the_unit_mean_features_of_each_class(material: Material, changes: list[str]):
    settings = change(SMALL, ["init.class_centres=true", *changes])
    network = draw(settings)
    before = state_of(network)
    assert begin(network, material, settings) == ["the classifier begins with the centres of 12 classes"]
    after = features_by_hand(network, material, settings)
    means = np.stack([after[material.labels == label].mean(axis=0) for label in range(12)])
    expected = means / np.linalg.norm(means, axis=-1, keepdims=True)
    # (classes, parts, dim), and the weight is (parts, classes, dim).
    expected = expected if not changes else expected.transpose(1, 0, 2)
    np.testing.assert_allclose(rows_of(network).numpy(), expected, atol=1e-5)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight"}


def test_the_modes_of_a_network_are_left_as_they_were(material: Material):
    settings = change(SMALL, ["init.class_centres=true"])
    network = draw(settings)
    network.backbone.layer1.eval()
    modes = [module.training for module in network.modules()]
    begin(network, material, settings)
    assert [module.training for module in network.modules()] == modes


def test_nothing_is_done_where_nothing_is_asked(material: Material):
    network = draw(SMALL)
    before = state_of(network)
    assert begin(network, material, SMALL) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_pretrained_weights_come_before_the_centres_of_their_features(material: Material, tmp_path: Path):
    path = tmp_path / "pretrained.safetensors"
    pretrained = build_network(parse_architecture("resnet18_ibn_a", classes=5), seed=9)
    write_checkpoint(path, pretrained, {})
    network = draw(SMALL)
    settings = change(SMALL, [f"init.pretrained={path}", "init.class_centres=true"])
    lines = begin(network, material, settings)
    assert lines[-1] == "the classifier begins with the centres of 12 classes"
    for name, tensor in pretrained.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(network.state_dict()[name], tensor), name
    after = features_by_hand(network, material, settings)
    mean = after[material.labels == 3].mean(axis=0)
    np.testing.assert_allclose(rows_of(network)[3].numpy(), mean / np.linalg.norm(mean), atol=1e-5)


def test_the_three_ways_to_begin_are_settings(material: Material, tmp_path: Path):
    """As torch begins, a head drawn as ReID projects do, and that with a pretrained backbone."""
    path = tmp_path / "pretrained.safetensors"
    write_checkpoint(path, build_network(parse_architecture("resnet18_ibn_a", classes=5), seed=9), {})
    networks = []
    for changes in (["init.head=default"], ["init.head=normal"], ["init.head=normal", f"init.pretrained={path}"]):
        settings = change(SMALL, changes)
        network = make_learner(settings, 12).network
        begin(network, material, settings)
        networks.append(network)
    default, normal, pretrained = networks
    # torch draws evenly up to 1 / sqrt(inputs), ReID projects normally with 0.001.
    assert rows_of(default).std().item() == pytest.approx(512**-0.5 / 3**0.5, rel=0.03)
    assert rows_of(normal).std().item() == pytest.approx(0.001, rel=0.03)
    assert torch.equal(rows_of(normal), rows_of(pretrained))
    assert torch.equal(default.backbone.conv1.weight, normal.backbone.conv1.weight)
    assert not torch.equal(normal.backbone.conv1.weight, pretrained.backbone.conv1.weight)
