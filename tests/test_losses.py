from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pytorch_metric_learning.losses import ArcFaceLoss, CircleLoss, CosFaceLoss  # noqa: E402

from reidserve.export.train.losses import Loss, make_loss  # noqa: E402
from reidserve.export.train.sections import LossSettings  # noqa: E402
from reidserve.export.train.settings import NetworkSettings, Settings  # noqa: E402

CLASSES, DIM, IMAGES = 7, 24, 16
LABELS = np.repeat(np.arange(4), 4)
ALONE = LossSettings(smoothing=0.0, metric="none")


def draw(spread: float = 1.0, *, seed: int = 3, parts: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and features of four identities, which lie `spread` apart."""
    rng = np.random.default_rng(seed)
    shape = (parts,) if parts else ()
    scores = rng.standard_normal((IMAGES, *shape, CLASSES))
    centres = spread * rng.standard_normal((4, *shape, DIM))
    return scores, centres[LABELS] + rng.standard_normal((IMAGES, *shape, DIM))


def draw_cosines(*, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines of features with the rows of a classifier, and both."""
    rng = np.random.default_rng(seed)
    features, rows = rng.standard_normal((IMAGES, 3)), rng.standard_normal((CLASSES, 3))
    unit, unit_rows = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features, rows))
    return unit @ unit_rows.T, features, rows


def value(settings: LossSettings, scores: np.ndarray, features: np.ndarray) -> float:
    loss = Loss(settings, classes=CLASSES, dim=features.shape[-1], parts=1)
    return loss(torch.tensor(scores), torch.tensor(features), torch.tensor(LABELS)).item()


# The formulas, as their papers write them


def cross_entropy(scores: np.ndarray, smoothing: float = 0.0) -> float:
    log_share = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * np.eye(CLASSES)[LABELS] + smoothing / CLASSES
    return float(-(target * log_share).sum(axis=1).mean())


def hardest(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each image the distance to its farthest positive and to its nearest negative."""
    distances = np.sqrt(((features[:, None] - features[None]) ** 2).sum(axis=2))
    same = LABELS[:, None] == LABELS[None]
    return np.where(same, distances, -np.inf).max(axis=1), np.where(same, np.inf, distances).min(axis=1)


def triplet(features: np.ndarray, margin: float) -> float:
    farthest, nearest = hardest(features)
    return float(np.maximum(farthest - nearest + margin, 0).mean())


def soft_triplet(features: np.ndarray) -> float:
    farthest, nearest = hardest(features)
    return float(np.log(1 + np.exp(farthest - nearest)).mean())


def circle(features: np.ndarray, margin: float, scale: float) -> float:
    """Sun et al., 2020, equation 6: log(1 + sum exp(scale a_n (s_n - m)) sum exp(-scale a_p (s_p - 1 + m)))."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    losses = []
    for row in range(IMAGES):
        cosines, same = unit @ unit[row], LABELS[row] == LABELS
        positive, negative = cosines[same & (np.arange(IMAGES) != row)], cosines[~same]
        pull = np.exp(-scale * np.maximum(1 + margin - positive, 0) * (positive - 1 + margin)).sum()
        push = np.exp(scale * np.maximum(negative + margin, 0) * (negative - margin)).sum()
        losses.append(np.log(1 + pull * push))
    return float(np.mean(losses))


def own(cosines: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cosines, that of the own class replaced."""
    return np.where(np.eye(CLASSES, dtype=bool)[LABELS], target, cosines)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_cross_entropy_is_that_of_smoothed_labels(smoothing: float):
    scores, features = draw()
    found = value(replace(ALONE, smoothing=smoothing), scores, features)
    assert found == pytest.approx(cross_entropy(scores, smoothing), rel=1e-6)


@pytest.mark.parametrize(("margin", "spread"), [(0.3, 1.0), (0.3, 8.0), (0.0, 0.1)])
def test_triplets_are_of_the_farthest_positive_and_the_nearest_negative(margin: float, spread: float):
    scores, features = draw(spread)
    found = value(replace(ALONE, metric="triplet", margin=margin), scores, features)
    assert found == pytest.approx(cross_entropy(scores) + triplet(features, margin), rel=1e-5)


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
def test_a_soft_margin_is_the_logarithm_of_one_plus_the_exponential(spread: float):
    scores, features = draw(spread)
    found = value(replace(ALONE, metric="soft-triplet", margin=0.9), scores, features)
    assert found == pytest.approx(cross_entropy(scores) + soft_triplet(features), rel=1e-5)


@pytest.mark.parametrize(("margin", "scale"), [(0.25, 8.0), (0.4, 32.0)])
def test_the_circle_loss_weighs_each_pair_by_its_distance_from_its_optimum(margin: float, scale: float):
    scores, features = draw()
    found = value(replace(ALONE, metric="circle", margin=margin, circle_scale=scale), scores, features)
    assert found == pytest.approx(cross_entropy(scores) + circle(features, margin, scale), rel=1e-5)


def test_arcface_adds_its_margin_to_the_angle():
    cosines, features, _ = draw_cosines()
    angles = np.arccos(cosines)
    margin = np.radians(60)
    # Beyond a straight angle the cosine would grow again: there the margin is taken off the cosine.
    beyond = angles > np.pi - margin
    target = np.where(beyond, cosines - margin * np.sin(margin), np.cos(angles + margin))
    assert beyond[np.arange(IMAGES), LABELS].any()
    settings = replace(ALONE, classification="arcface", classification_margin=60.0, classification_scale=8.0)
    assert value(settings, cosines, features) == pytest.approx(cross_entropy(8 * own(cosines, target)), rel=1e-5)


def test_cosface_takes_its_margin_off_the_cosine():
    cosines, features, _ = draw_cosines()
    settings = replace(ALONE, classification="cosface", classification_margin=0.35, classification_scale=8.0)
    expected = cross_entropy(8 * own(cosines, cosines - 0.35))
    assert value(settings, cosines, features) == pytest.approx(expected, rel=1e-5)


def test_circle_softmax_is_the_circle_loss_of_features_and_rows():
    cosines, features, rows = draw_cosines()
    settings = replace(ALONE, classification="circle", classification_margin=0.35, classification_scale=8.0)
    target = 8 * np.maximum(1.35 - cosines, 0) * (cosines - 0.65)
    others = 8 * np.maximum(cosines + 0.35, 0) * (cosines - 0.35)
    found = value(settings, cosines, features)
    assert found == pytest.approx(cross_entropy(own(others, target)), rel=1e-5)
    library = CircleLoss(m=0.35, gamma=8.0)(
        torch.tensor(features), torch.tensor(LABELS), ref_emb=torch.tensor(rows), ref_labels=torch.arange(CLASSES)
    )
    assert found == pytest.approx(library.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "kind", "margin"), [("arcface", ArcFaceLoss, 28.6), ("cosface", CosFaceLoss, 0.35)])
def test_margins_are_those_of_the_library_with_its_own_classifier(name, kind, margin):
    cosines, features, rows = draw_cosines()
    library = kind(num_classes=CLASSES, embedding_size=3, margin=margin, scale=64)
    library.W.data = torch.tensor(rows.T)
    settings = replace(ALONE, classification=name, classification_margin=margin)
    expected = library(torch.tensor(features), torch.tensor(LABELS)).item()
    assert value(settings, cosines, features) == pytest.approx(expected, rel=1e-5)


def test_the_centre_loss_is_half_the_mean_squared_distance_to_centres_that_learn():
    scores, features = draw()
    loss = Loss(replace(ALONE, centre_weight=0.25), classes=CLASSES, dim=DIM, parts=1)
    centres = np.random.default_rng(0).standard_normal((CLASSES, DIM)).astype(np.float32)
    assert (loss.centres == 0).all()
    with torch.no_grad():
        loss.centres[0] = torch.tensor(centres)
    total = loss(torch.tensor(scores), torch.tensor(features), torch.tensor(LABELS))
    distances = ((features - centres[LABELS]) ** 2).sum(axis=1)
    assert total.item() == pytest.approx(cross_entropy(scores) + 0.25 * distances.mean() / 2, rel=1e-5)
    total.backward()
    # Wen et al., 2016: each centre goes towards its features.
    towards = np.stack([(centres[pid] - features[pid == LABELS]).sum(axis=0) / IMAGES for pid in range(CLASSES)])
    np.testing.assert_allclose(loss.centres.grad[0].numpy(), 0.25 * towards, atol=1e-6)


def test_terms_are_weighted_and_summed():
    scores, features = draw()
    settings = LossSettings(smoothing=0.1, metric="triplet", metric_weight=0.5, margin=0.3, centre_weight=2.0)
    expected = cross_entropy(scores, 0.1) + 0.5 * triplet(features, 0.3) + 2.0 * (features**2).sum(axis=1).mean() / 2
    assert value(settings, scores, features) == pytest.approx(expected, rel=1e-5)


def test_parts_are_compared_with_the_same_parts_and_summed():
    scores, features = draw(parts=3)
    settings = Settings(
        network=NetworkSettings(parts=3), loss=LossSettings(smoothing=0.1, metric="triplet", centre_weight=0.5)
    )
    loss = make_loss(settings, classes=CLASSES, dim=DIM)
    found = loss(torch.tensor(scores), torch.tensor(features), torch.tensor(LABELS)).item()
    each = [value(settings.loss, scores[:, part], features[:, part]) for part in range(3)]
    assert found == pytest.approx(sum(each), rel=1e-5)


def test_only_centres_are_parameters_and_state():
    named = {"centres": (2, CLASSES, DIM)}
    for classification in ("softmax", "arcface"):
        settings = LossSettings(classification=classification, metric="circle", centre_weight=0.1)
        loss = Loss(settings, classes=CLASSES, dim=DIM, parts=2)
        assert {name: tuple(tensor.shape) for name, tensor in loss.state_dict().items()} == named
        assert [name for name, _ in loss.named_parameters()] == ["centres"]
    assert list(Loss(ALONE, classes=CLASSES, dim=DIM, parts=1).state_dict()) == []


@pytest.mark.parametrize("classification", ["softmax", "arcface", "cosface", "circle"])
@pytest.mark.parametrize("metric", ["none", "triplet", "soft-triplet", "circle"])
@pytest.mark.parametrize("mixed", [False, True], ids=["fp32", "autocast"])
def test_gradients_are_finite_also_where_features_coincide_and_cosines_are_one(classification, metric, mixed: bool):
    settings = LossSettings(
        classification=classification, classification_margin=0.35, metric=metric, margin=0.3, centre_weight=5e-4
    )
    loss = Loss(settings, classes=CLASSES, dim=DIM, parts=1)
    _, features = draw(30.0)
    features[0:4] = features[0]
    seen = torch.tensor(features, dtype=torch.float32, requires_grad=True)
    rows = torch.tensor(features[[0, 4, 8, 12, 1, 5, 9]], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        unit = [torch.nn.functional.normalize(x) for x in (seen, rows)]
        scores = unit[0] @ unit[1].T
        total = loss(scores, seen.bfloat16() if mixed else seen, torch.tensor(LABELS))
    assert total.dtype == torch.float32
    assert total.isfinite()
    total.backward()
    assert seen.grad.isfinite().all()
