"""The learning rate: functions of the step, and for a plateau of the losses so far, and of nothing else."""

import math
from collections.abc import Sequence

from reidserve.export.train.settings import HeadSettings, ScheduleSettings

PLATEAU_THRESHOLD = 1e-4
"""By what share a loss must be lower than the lowest before to count as lower, as in torch."""


def rate_factor(step: int, *, steps: int, settings: ScheduleSettings, losses: Sequence[float] = ()) -> float:
    """What the learning rate is multiplied by at the `step`-th of a stage's `steps` steps, counted from 0.

    `losses` are those of the stage's epochs so far, which a plateau looks at. Warm-up and milestones as in the bag of
    tricks (Luo et al., 2019), as shares of the stage; cosine: Loshchilov and Hutter, "SGDR", ICLR 2017.
    """
    warm_up = settings.warm_up * steps
    warmth = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    if settings.name == "steps":
        return warmth * settings.decay ** sum(step >= milestone * steps for milestone in settings.milestones)
    if settings.name == "cosine":
        share = max(0.0, step - warm_up) / max(1.0, steps - warm_up)
        return warmth * (settings.floor + (1 - settings.floor) * (1 + math.cos(math.pi * share)) / 2)
    return warmth * settings.decay ** count_plateaus(losses, patience=settings.patience)


def count_plateaus(losses: Sequence[float], *, patience: int) -> int:
    """How often the loss has not fallen for more than `patience` epochs, as torch's ReduceLROnPlateau counts."""
    lowest, waited, plateaus = math.inf, 0, 0
    for loss in losses:
        if loss < lowest * (1 - PLATEAU_THRESHOLD):
            lowest, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            waited, plateaus = 0, plateaus + 1
    return plateaus


def temperature(settings: HeadSettings, epoch: int) -> float:
    """What scores are divided by in an epoch, counted from 1."""
    if settings.temperature_schedule == "growing":
        return settings.temperature * (1 + math.log(epoch))
    if settings.temperature_schedule == "shrinking":
        return settings.temperature / (1 + math.log(epoch))
    return settings.temperature
