from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reidserve.export.train.optimiser import make_optimiser, set_rate  # noqa: E402
from reidserve.export.train.settings import OptimSettings  # noqa: E402


def stepped(settings: OptimSettings, *, steps: int = 3) -> dict[str, float]:
    """One weight each of backbone, head and loss, all 1 at first and with a gradient of 2, after some steps."""
    values = {name: nn.Parameter(torch.ones(1)) for name in ("backbone.conv1.weight", "classifier.weight", "centres")}
    network = {name: value for name, value in values.items() if name != "centres"}
    optimiser = make_optimiser(network, {"centres": values["centres"]}, settings)
    set_rate(optimiser, settings.lr)
    for _ in range(steps):
        for value in values.values():
            value.grad = torch.full((1,), 2.0)
        optimiser.step()
    return {name: value.item() for name, value in values.items()}


def plain_sgd(lr: float, momentum: float, decay: float) -> float:
    weight, velocity = 1.0, 0.0
    for _ in range(3):
        velocity = momentum * velocity + 2 + decay * weight
        weight -= lr * velocity
    return weight


def plain_adam(lr: float, decay: float, *, apart: bool) -> float:
    weight, first, second = 1.0, 0.0, 0.0
    for step in range(1, 4):
        gradient = 2.0 if apart else 2 + decay * weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight -= lr * decay * weight if apart else 0
        weight -= lr * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return weight


def test_weights_move_as_the_papers_say_the_head_by_its_multiple_and_centres_without_decay():
    common = OptimSettings(lr=0.01, head_lr=10, weight_decay=0.5, momentum=0.8)
    sgd = stepped(replace(common, name="sgd"))
    assert sgd == pytest.approx(
        {
            "backbone.conv1.weight": plain_sgd(0.01, 0.8, 0.5),
            "classifier.weight": plain_sgd(0.1, 0.8, 0.5),
            "centres": plain_sgd(0.01, 0.8, 0),
        }
    )
    for name, apart in (("adamw", True), ("adam", False)):
        assert stepped(replace(common, name=name)) == pytest.approx(
            {
                "backbone.conv1.weight": plain_adam(0.01, 0.5, apart=apart),
                "classifier.weight": plain_adam(0.1, 0.5, apart=apart),
                "centres": plain_adam(0.01, 0, apart=apart),
            }
        )


def test_the_rate_is_set_for_every_group_at_its_multiple():
    moved = stepped(OptimSettings(name="sgd", lr=1e-9, head_lr=0, weight_decay=0, momentum=0))
    assert moved["classifier.weight"] == 1
