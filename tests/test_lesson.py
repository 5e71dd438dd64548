import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from reidserve.errors import UsageError  # noqa: E402
from reidserve.export.adapt import AdaptSettings  # noqa: E402
from reidserve.export.adapt.clusters import NOISE, Clusters  # noqa: E402
from reidserve.export.adapt.lesson import classifier_like, learn, losses, make_lesson  # noqa: E402
from reidserve.export.adapt.settings import check_settings  # noqa: E402
from reidserve.export.adapt.steps import Pixels, Step, draw_steps  # noqa: E402
from reidserve.export.train import Settings  # noqa: E402
from reidserve.export.train.epoch import prepare  # noqa: E402
from reidserve.export.train.learner import make_learner  # noqa: E402
from reidserve.export.train.recipes import change  # noqa: E402
from reidserve.export.train.validation import normalise  # noqa: E402
from tests.conftest import unit_rows  # noqa: E402
from tests.runs import SMALL  # noqa: E402

# Settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "both"}, "adapt.mode must be joint, target, mixed, got 'both'"),
        ({"eps": 0.0}, "adapt.eps must be 1e-06 to 2, got 0"),
        ({"min_samples": 1}, "adapt.min_samples must be 2 to 10000, got 1"),
    ],
)
def test_a_value_out_of_its_range_is_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        AdaptSettings(**wrong)


def test_the_training_of_an_adaptation_has_one_stage_and_one_learning_rate():
    before = change(Settings(), ["optim.lr=4e-4", "stages.1.epochs=9", "stages.2.epochs=5", "batch.images=8"])
    after = AdaptSettings(epochs=3, lr=0.25).training(before, start="x.safetensors")
    assert [stage.epochs for stage in after.stages] == [3]
    assert (after.optim.lr, after.schedule.warm_up, after.schedule.milestones) == (1e-4, 0, ())
    assert (after.init.pretrained, after.init.class_centres, after.batch.images) == ("x.safetensors", True, 8)
    check_settings(after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["init.pretrained="], "an adaptation begins with a checkpoint trained on the source: name it as init.pretra"),
        (["optim.ema=0.9", "batch.accumulate=2"], "batch.accumulate must be 1, is 2; optim.ema must be 0, is 0.9"),
        (["stages.2.epochs=3"], "it has one stage, not 2"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused_by_name(changes, message):
    settings = AdaptSettings().training(SMALL, start="x.safetensors")
    with pytest.raises(UsageError, match=message):
        check_settings(change(settings, changes))


# Steps


def test_a_step_sees_a_batch_of_both_domains_and_no_noise():
    source = np.repeat(np.arange(6), 4)
    clusters = Clusters(np.array([NOISE, 0, 0, 1, 1, NOISE, 2, 2, 2, 0, 1, 1] * 4))
    steps = draw_steps(source, clusters, "joint", SMALL, epoch=1)
    assert len(steps) == 40 // (3 * 4)
    for step in steps:
        assert np.bincount(source[step.source]).max() == 4
        assert (len(step.source), len(step.target), len(step)) == (16, 12, 28)
        assert sorted(np.bincount(clusters.labels[step.target])) == [4, 4, 4]


def test_a_short_source_begins_again_where_the_target_is_long():
    clusters = Clusters(np.repeat(np.arange(8), 20))
    steps = draw_steps(np.repeat(np.arange(4), 4), clusters, "mixed", SMALL, epoch=1)
    assert len(steps) == 10
    assert {tuple(sorted(step.source)) for step in steps} == {tuple(range(16))}


def test_in_target_mode_no_source_is_seen():
    steps = draw_steps(np.repeat(np.arange(6), 4), Clusters(np.repeat(np.arange(8), 4)), "target", SMALL, epoch=1)
    assert [(len(step.source), len(step.target)) for step in steps] == [(0, 16), (0, 16)]


# What is learnt


@pytest.fixture
def prepared():
    learner = make_learner(change(SMALL, ["optim.clip=1.0"]), 5)
    prepare(learner, 1)
    return learner


def draw_pixels(own: int) -> Pixels:
    """So many images of the source, four of the target."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (own + 4, 64, 32, 3), dtype=np.uint8))
    rows = Step(np.arange(own), np.arange(4))
    return Pixels(rows, images, torch.tensor([0, 0, 4, 4])[:own], torch.tensor([2, 2, 1, 1]))


def test_the_classifier_of_clusters_is_made_like_the_sources_with_their_centres_for_rows(prepared):
    prepared.network.classifier.temperature = 0.5
    centres = unit_rows(np.random.default_rng(0), 3, 512)
    made = classifier_like(prepared.network.classifier, centres)
    features = torch.from_numpy(unit_rows(np.random.default_rng(1), 2, 512))
    np.testing.assert_allclose(made(features).detach(), features.numpy() @ centres.T / 0.5, atol=1e-6)
    assert len(prepared.network.classifier.weight) == 5


@pytest.mark.parametrize("mode", ["joint", "target", "mixed"])
def test_the_loss_of_each_mode_is_its_formula(prepared, mode):
    centres = unit_rows(np.random.default_rng(0), 3, 512)
    pixels = draw_pixels(0 if mode == "target" else 4)
    found = losses(make_lesson(prepared, mode, centres), pixels)

    feed = prepared.settings.input
    before, after = prepared.network.features(normalise(pixels.images, mean=feed.mean, std=feed.std).contiguous())
    ours, theirs = after @ prepared.network.classifier.weight.T, after @ torch.from_numpy(centres).T
    own = len(pixels.source)

    def term(scores, features, labels):
        distances = torch.cdist(features, features)
        same = labels[:, None] == labels
        far = torch.where(same, distances, -torch.inf).amax(1)
        near = torch.where(same, torch.inf, distances).amin(1)
        return functional.cross_entropy(scores, labels, label_smoothing=0.1) + (far - near + 0.3).relu().mean()

    expected = {"target": term(theirs[own:], before[own:], pixels.target)}
    if mode == "joint":
        expected["source"] = term(ours[:4], before[:4], pixels.source)
    if mode == "mixed":
        # 5 identities and 3 clusters are 8 classes of one cross-entropy.
        scores, labels = torch.cat([ours, theirs], dim=1), torch.cat([pixels.source, 5 + pixels.target])
        assert scores.shape == (8, 8)
        expected = {"mixed": term(scores, before, labels)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize(("mode", "moves"), [("joint", True), ("target", False), ("mixed", True)])
def test_a_step_moves_backbone_and_clusters_and_the_sources_classifier_where_it_is_learnt_from(prepared, mode, moves):
    lesson = make_lesson(prepared, mode, unit_rows(np.random.default_rng(0), 3, 512))
    tensors = (lesson.clusters.weight, prepared.network.backbone.conv1.weight, prepared.network.classifier.weight)
    before = [tensor.detach().clone() for tensor in tensors]
    learn(lesson, draw_pixels(0 if mode == "target" else 4))
    assert [not torch.equal(*pair) for pair in zip(before, tensors, strict=True)] == [True, True, moves]
