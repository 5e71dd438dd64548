"""The learning rate: a linear warm-up, then steps down, a function of the step and of nothing else."""

from reidserve.export.train.settings import Settings


def learning_rate(step: int, *, steps: int, settings: Settings) -> float:
    """The rate of the `step`-th of `steps` steps of a whole run, counted from 0.

    Warm-up and milestones as in the bag of tricks (Luo et al., 2019), as shares of the run.
    """
    warm_up = settings.warm_up * steps
    warmth = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    passed = sum(step >= milestone * steps for milestone in settings.milestones)
    return settings.lr * warmth * settings.decay**passed
