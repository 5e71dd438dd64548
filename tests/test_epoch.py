import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from reidserve.errors import ExportError  # noqa: E402
from reidserve.export.train import Material, Settings  # noqa: E402
from reidserve.export.train.epoch import learn_epoch, learn_step, learning_rates, prepare  # noqa: E402
from reidserve.export.train.learner import Learner, make_learner  # noqa: E402
from reidserve.export.train.recipes import change  # noqa: E402
from reidserve.export.train.sampler import draw_batches  # noqa: E402
from tests.runs import SMALL, read_small  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches as small as these are not worth a second thread, and where others compute it waits for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return read_small(tmp_path_factory.mktemp("epoch"))


PLAIN = ("optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "schedule.warm_up=0")


def learner_of(*changes: str) -> Learner:
    learner = make_learner(change(SMALL, changes), 12)
    prepare(learner, 1)
    return learner


def fix_norms(learner: Learner) -> None:
    for module in learner.network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def weights(learner: Learner) -> Tensor:
    return torch.cat([value.detach().flatten() for value in learner.network.parameters()])


def batch_of(material: Material, rows: slice) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.array(material.train.pixels[rows])), torch.from_numpy(material.labels[rows])


def test_an_epoch_is_recorded_batch_by_batch(material: Material):
    learner = learner_of()
    heard: list[tuple[float, float]] = []
    done: list[tuple[int, int]] = []
    record = learn_epoch(
        learner,
        material,
        2,
        on_step=lambda loss, accuracy: heard.append((loss, accuracy)),
        progress=lambda count, total: done.append((count, total)),
    )
    assert (record.epoch, record.stage, len(record.step_losses)) == (2, 1, 3)
    assert done == [(4, 9), (5, 9), (6, 9)]
    assert [loss for loss, _ in heard] == list(record.step_losses)
    assert record.loss == pytest.approx(np.mean(record.step_losses))
    assert record.accuracy == pytest.approx(np.mean([accuracy for _, accuracy in heard]))
    assert record.lr == learning_rates(SMALL, 2, batches=3)[-1]
    assert record.images_per_second is not None
    assert record.images_per_second > 0


def test_a_frozen_backbone_does_not_move_while_neck_and_classifier_learn(material: Material):
    settings = change(SMALL, ["stages.1.epochs=1", 'stages.1.learns=["head"]', "stages.2.epochs=1"])
    learner = make_learner(settings, 12)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}

    def moved() -> set[str]:
        return {name for name, tensor in learner.network.state_dict().items() if not torch.equal(tensor, before[name])}

    learn_epoch(learner, material, 1)
    statistics = {"neck.running_mean", "neck.running_var", "neck.num_batches_tracked"}
    assert moved() == {"neck.weight", "classifier.weight"} | statistics
    learn_epoch(learner, material, 2)
    assert before.keys() - moved() == {"neck.bias"}


def test_accumulated_batches_move_weights_as_one_larger_batch_does(material: Material):
    changes = (*PLAIN, "loss.metric=none", "optim.lr=0.1")
    parted, whole, single = (learner_of(*changes) for _ in range(3))
    for learner in (parted, whole, single):
        fix_norms(learner)
    first, second = batch_of(material, slice(0, 8)), batch_of(material, slice(8, 16))
    steps = learn_step(parted, [first, second], 0.1)
    ((loss, _),) = learn_step(whole, [batch_of(material, slice(0, 16))], 0.1)
    learn_step(single, [first], 0.1)
    assert float(sum(one for one, _ in steps)) / 2 == pytest.approx(float(loss), abs=1e-5)
    torch.testing.assert_close(weights(parted), weights(whole), rtol=1e-5, atol=1e-6)
    assert (weights(single) - weights(whole)).abs().max() > 1e-4


def test_the_last_step_of_an_epoch_accumulates_what_is_left(material: Material):
    settings = change(SMALL, [*PLAIN, "batch.accumulate=2"])
    assert len(learning_rates(settings, 1, batches=3)) == 2
    record = learn_epoch(make_learner(settings, 12), material, 1)
    assert len(record.step_losses) == 3


def test_a_step_is_no_longer_than_the_gradient_may_be(material: Material):
    learner = learner_of(*PLAIN, "optim.clip=0.5")
    before = weights(learner)
    learn_step(learner, [batch_of(material, slice(0, 16))], 1.0)
    assert (weights(learner) - before).double().norm().item() == pytest.approx(0.5, rel=1e-3)


def test_averaged_weights_are_the_moving_average_with_the_networks_own_statistics(material: Material):
    learner = learner_of("optim.ema=0.75")
    expected: Tensor | None = None
    for start in (0, 16, 32):
        learn_step(learner, [batch_of(material, slice(start, start + 16))], 1e-3)
        now = weights(learner)
        expected = now if expected is None else 0.75 * expected + 0.25 * now
    assert learner.result is not learner.network
    averaged = torch.cat([value.flatten() for value in learner.result.parameters()])
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-7)
    assert (averaged - weights(learner)).abs().max() > 1e-4
    for theirs, ours in zip(learner.result.buffers(), learner.network.buffers(), strict=True):
        assert torch.equal(theirs, ours)


def test_the_head_scores_as_the_epoch_says():
    changes = ("head.temperature=0.1", "head.temperature_schedule=growing", "head.unit_rows=true")
    learner = learner_of(*changes, "head.unit_features=true", "optim.ema=0.5")
    prepare(learner, 3)
    for network in (learner.network, learner.result):
        assert network.classifier.temperature == pytest.approx(0.1 * (1 + np.log(3)))
        assert network.classifier.unit_rows
        assert network.classifier.unit_features


def test_mixed_precision_learns_what_full_precision_learns(material: Material):
    batch = batch_of(material, slice(0, 16))
    losses = [learn_step(learner_of(f"precision={name}"), [batch], 1e-3)[0][0] for name in ("fp32", "bf16")]
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.02)


def test_a_network_of_parts_learns(material: Material):
    record = learn_epoch(learner_of("network.parts=2", "loss.metric=none"), material, 1)
    # Two parts of 12 classes by chance.
    assert record.step_losses[0] == pytest.approx(2 * np.log(12), rel=0.2)


class Spoiled(nn.Module):
    """A loss times a number, from a call on."""

    def __init__(self, loss: nn.Module, factor: float, *, since: int) -> None:
        super().__init__()
        self.loss, self.factor, self.left = loss, factor, since

    def forward(self, *arguments: Tensor) -> Tensor:
        self.left -= 1
        return self.loss(*arguments) * (self.factor if self.left <= 0 else 1)


def rows_of(settings: Settings, material: Material, epoch: int) -> list:
    shape = settings.batch
    return list(
        draw_batches(
            material.labels,
            batch_identities=shape.identities,
            batch_images=shape.images,
            seed=settings.seed,
            epoch=epoch,
        )
    )


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_refused_with_the_images_of_its_batch(material: Material, factor: float):
    learner = make_learner(SMALL, 12)
    spoiled = replace(learner, loss=Spoiled(learner.loss, factor, since=2))
    first = Path(material.train.crops[rows_of(SMALL, material, 3)[1][0]].path).name
    expected = rf"the loss is {factor:g} at epoch 3, step 2 \(.*{re.escape(first)}, .* and 12 more\): .* epoch 2"
    with pytest.raises(ExportError, match=expected):
        learn_epoch(spoiled, material, 3)


def test_weights_that_are_no_numbers_after_the_last_step_are_refused(material: Material):
    learner = learner_of(*PLAIN, "batch.identities=12", "optim.lr=10", "stages.1.lr=1e6", "stages.1.epochs=1")
    spoiled = replace(learner, loss=Spoiled(learner.loss, 1e36, since=1))
    with pytest.raises(ExportError, match="is not finite at epoch 1, after its last step"):
        learn_epoch(spoiled, material, 1)
