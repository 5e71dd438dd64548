import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from reidserve.export.model import Architecture, build_network  # noqa: E402
from reidserve.export.train.settings import InputSettings  # noqa: E402
from reidserve.export.train.stages import let_learn  # noqa: E402
from reidserve.export.train.validation import classify, embed, judge  # noqa: E402

MEAN, STD = InputSettings().mean, InputSettings().std
FEED = {"mean": MEAN, "std": STD}


def network_of(**choices):
    network = build_network(Architecture(backbone="resnet18", ibn="a", classes=12, **choices), seed=0)
    let_learn(network, {}, ("layer4", "head"))
    return network


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 32, 3), dtype=np.uint8)


def seen(pixels: np.ndarray) -> Tensor:
    normalised = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    return torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32)


def test_embeddings_are_the_evaluation_features_at_unit_length_whatever_the_mode():
    network = network_of()
    modes = [module.training for module in network.modules()]
    pixels = noise(5)
    rows = embed(network, pixels, **FEED)
    assert [module.training for module in network.modules()] == modes
    network.eval()
    with torch.no_grad():
        plain = network(seen(pixels)).numpy()
    np.testing.assert_allclose(rows, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("parts", [0, 2])
def test_a_verdict_is_the_cross_entropy_and_the_share_of_right_classes(parts: int):
    network = network_of(parts=parts)
    with torch.no_grad():
        network.classifier.weight.mul_(300)
    pixels, labels = noise(70), np.random.default_rng(1).integers(0, 12, 70)
    verdict = judge(network, pixels, labels, **FEED)
    network.eval()
    with torch.no_grad():
        scores = network.classifier(network.features(seen(pixels))[1]).double().numpy().reshape(70, -1, 12)
    log_shares = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
    losses = -log_shares[np.arange(70), :, labels].sum(axis=1)
    assert verdict.loss == pytest.approx(losses.mean(), rel=1e-4)
    assert verdict.accuracy == pytest.approx((scores.mean(axis=1).argmax(axis=1) == labels).mean())
    assert losses.std() > 0.01


def test_parts_are_classified_by_their_mean_score():
    scores = torch.tensor([[[3.0, 0, 2], [0, 1, 2]], [[0, 5.0, 1], [0, 0, 3]]])
    assert classify(scores).tolist() == [2, 1]
    assert classify(scores[:, 0]).tolist() == [0, 1]
