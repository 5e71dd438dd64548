import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reidserve.export.train.epoch import learning_rates  # noqa: E402
from reidserve.export.train.recipes import change  # noqa: E402
from reidserve.export.train.record import Record  # noqa: E402
from reidserve.export.train.schedule import count_plateaus, rate_factor, temperature  # noqa: E402
from reidserve.export.train.settings import HeadSettings, ScheduleSettings, Settings, Stage  # noqa: E402


def optimiser():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_the_learning_rate_warms_up_and_steps_down():
    settings = ScheduleSettings(warm_up=0.1, milestones=(0.5, 0.8), decay=0.1)
    rates = [rate_factor(step, steps=100, settings=settings) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:50], 1)
    np.testing.assert_allclose(rates[50:80], 0.1)
    np.testing.assert_allclose(rates[80:], 0.01)
    assert rate_factor(0, steps=100, settings=ScheduleSettings(warm_up=0)) == 1


def test_a_cosine_is_that_of_torch():
    moving = optimiser()
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(moving, T_max=40, eta_min=0.01)
    settings = ScheduleSettings(name="cosine", warm_up=0, floor=0.01)
    for step in range(40):
        assert rate_factor(step, steps=40, settings=settings) == pytest.approx(moving.param_groups[0]["lr"])
        moving.step()
        theirs.step()


def test_a_cosine_begins_where_the_warm_up_ends():
    settings = ScheduleSettings(name="cosine", warm_up=0.2, floor=0)
    rates = [rate_factor(step, steps=10, settings=settings) for step in range(10)]
    assert rates[:3] == [0.5, 1, 1]
    assert rates[6] == pytest.approx(0.5)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


@given(losses=st.lists(st.floats(0.01, 10), max_size=30), patience=st.integers(0, 4))
def test_a_plateau_is_found_where_torch_finds_it(losses: list[float], patience: int):
    moving = optimiser()
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(moving, factor=0.5, patience=patience, eps=0)
    for loss in losses:
        theirs.step(loss)
    assert 0.5 ** count_plateaus(losses, patience=patience) == moving.param_groups[0]["lr"]


def test_a_stage_has_the_schedule_for_itself_and_its_own_share_of_the_rate():
    settings = change(Settings(stages=(Stage(epochs=2), Stage(epochs=3, lr=0.1))), ["optim.lr=1.0"])
    settings = change(settings, ["schedule.warm_up=0", "schedule.milestones=[0.5]", "batch.accumulate=2"])
    rates = [learning_rates(settings, epoch, batches=5) for epoch in range(1, 6)]
    np.testing.assert_allclose(rates[:2], [[1] * 3, [0.1] * 3])
    np.testing.assert_allclose(rates[2:], [[0.1] * 3, [0.1, 0.1, 0.01], [0.01] * 3])


def test_a_plateau_looks_at_the_held_out_loss_of_its_own_stage_and_else_at_that_of_training():
    settings = change(Settings(stages=(Stage(epochs=2), Stage(epochs=9))), ["optim.lr=1.0", "schedule.name=plateau"])
    settings = change(settings, ["schedule.warm_up=0", "schedule.patience=1", "schedule.decay=0.5"])

    def rate(*losses: float, held_out: bool) -> float:
        records = [Record(epoch=0, val_loss=0.0)]
        for epoch, loss in enumerate(losses, 1):
            seen = Record(epoch=epoch, stage=1 + (epoch > 2), loss=loss)
            records.append(replace(seen, loss=1 / epoch, val_loss=loss) if held_out else seen)
        return learning_rates(settings, len(records), batches=1, before=records)[0]

    for held_out in (False, True):
        assert rate(0.1, 0.1, 3, 2, held_out=held_out) == 1
        assert rate(0.1, 0.1, 3, 3, held_out=held_out) == 1
        assert rate(0.1, 0.1, 3, 3, 3, held_out=held_out) == 0.5
        assert rate(0.1, 0.1, 3, 3, 3, 3, 3, held_out=held_out) == 0.25


def test_a_temperature_grows_or_shrinks_with_the_logarithm_of_the_epoch():
    for epoch in (1, 5, 60):
        assert temperature(HeadSettings(temperature=0.1), epoch) == 0.1
        growing = HeadSettings(temperature=0.1, temperature_schedule="growing")
        assert temperature(growing, epoch) == pytest.approx(0.1 * (1 + math.log(epoch)))
        shrinking = HeadSettings(temperature=0.1, temperature_schedule="shrinking")
        assert temperature(shrinking, epoch) == pytest.approx(0.1 / (1 + math.log(epoch)))
