"""How a network is adapted: what it learns from, how target images are clustered, and for how long."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from reidserve.errors import UsageError
from reidserve.export.train import Settings
from reidserve.export.train.sections import ScheduleSettings, check
from reidserve.export.train.settings import Stage

Mode = Literal["joint", "target", "mixed"]
Distance = Literal["rerank", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSettings:
    """All that decides what an adaptation computes, beside the data and the settings of its training.

    The values for re-ranked distances are those of SpCL (Ge et al., 2020, "Self-paced Contrastive Learning with
    Hybrid Memory for Domain Adaptive Object Re-ID").

    Attributes:
        mode: "joint" learns source and target together, each with a classifier and a cross-entropy of its own;
            "target" learns the clustered target alone; "mixed" learns both with one cross-entropy over the classes of
            both, which is published as the wrong way and is here to be compared with.
        distance: between target images, "rerank" (k-reciprocal) or "cosine"; both 0 to 1 for what is at all alike.
        eps: images up to so far from each other are neighbours (DBSCAN); of cosine distances about 0.2.
        min_samples: neighbours, itself counted, that make an image one of a cluster's core (DBSCAN).
        k1: of re-ranked distances, as in `Reranking`.
        k2: likewise.
        epochs: times that the target is clustered and learnt from.
        lr: the learning rate, as a share of the one that the source was learnt with; it stays as it is.

    Raises:
        UsageError: a value is out of its range.
    """

    mode: Mode = "joint"
    distance: Distance = "rerank"
    eps: float = 0.6
    min_samples: int = 4
    k1: int = 30
    k2: int = 6
    epochs: int = 20
    lr: float = 0.1

    def __post_init__(self) -> None:
        ranges = {
            "eps": (1e-6, 2),
            "min_samples": (2, 10_000),
            "k1": (1, 10_000),
            "k2": (1, 10_000),
            "epochs": (1, 100_000),
            "lr": (1e-9, 1e6),
        }
        check("adapt.", self, ranges, {"mode": Mode, "distance": Distance})

    def differences(self, before: "AdaptSettings") -> list[str]:
        """What differs from the settings that an adaptation began with, in words."""
        ours, theirs = asdict(self), asdict(before)
        return [f"{name} was {theirs[name]}, is {ours[name]}" for name in ours if ours[name] != theirs[name]]

    def training(self, settings: Settings, *, start: str) -> Settings:
        """The settings of an adaptation's training, from those that the source was learnt with.

        It begins with the checkpoint `start`, and has one stage with one learning rate: each epoch has other labels,
        and no end that a schedule could prepare.
        """
        return replace(
            settings,
            stages=(Stage(epochs=self.epochs),),
            optim=replace(settings.optim, lr=settings.optim.lr * self.lr),
            schedule=ScheduleSettings(warm_up=0.0, milestones=()),
            init=replace(settings.init, pretrained=start, class_centres=True),
            evaluation=replace(settings.evaluation, held_out=0.0),
        )


def check_settings(settings: Settings) -> None:
    """Refuse training settings that mean nothing where classes are new in each epoch.

    Raises:
        UsageError: there are such; all are named.
    """
    if not settings.init.pretrained:
        raise UsageError("an adaptation begins with a checkpoint trained on the source: name it as init.pretrained")
    only = {"network.parts": 0, "batch.accumulate": 1, "optim.ema": 0.0, "loss.centre_weight": 0.0}
    values = settings.values()
    wrong = [f"{name} must be {value:g}, is {values[name]:g}" for name, value in only.items() if values[name] != value]
    if len(settings.stages) > 1:
        wrong.append(f"it has one stage, not {len(settings.stages)}")
    if wrong:
        raise UsageError(f"an adaptation has new classes in each epoch: {'; '.join(wrong)}")
