"""Losses: what each stage on the way from checkpoint to server takes away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reidserve.evaluate.report.document import Record

STAGES = ("checkpoint", "artifact", "gallery", "server")
"""What is scored on the way from training to deployment, in its order."""

LOST = 1e-4
"""A difference of Rank-1 or mAP up to this much is no loss: float32 on two engines comes as near."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What changes from one stage to the next.

    Attributes:
        before: the earlier stage.
        after: the later stage.
        rank1: Rank-1 after less Rank-1 before; None where one is not known.
        mAP: the same of mAP; None also where rankings were cut short.
        said: it in words.
    """

    before: str
    after: str
    rank1: float | None
    mAP: float | None
    said: str

    @property
    def loses(self) -> bool:
        """Whether the later stage is worse."""
        return any(change is not None and change < -LOST for change in (self.rank1, self.mAP))


def losses(subjects: Sequence[Record]) -> list[Loss]:
    """The change from each stage to the next one that was scored."""
    staged = sorted((one for one in subjects if one.name in STAGES), key=lambda one: STAGES.index(one.name))
    return [_loss(before, after) for before, after in pairwise(staged)]


def summarise_losses(found: Sequence[Loss]) -> str:
    """One sentence on all stages; empty where there is one stage only."""
    if not found:
        return ""
    losing = [f"the {loss.after}" for loss in found if loss.loses]
    if losing:
        return (
            f"Something is lost on the way: {' and '.join(losing)} {'scores' if len(losing) == 1 else 'score'} lower."
        )
    return f"Nothing is lost on the way from {found[0].before} to {found[-1].after}."


def _loss(before: Record, after: Record) -> Loss:
    rank1 = _difference(before.figures.rank(1), after.figures.rank(1))
    whole = before.whole and after.whole
    mean = _difference(before.figures.mAP, after.figures.mAP) if whole else None
    return Loss(before.name, after.name, rank1, mean, " ".join(_sentences(before, after, rank1, mean)))


def _sentences(before: Record, after: Record, rank1: float | None, mean: float | None) -> Iterator[str]:
    changes = [
        f"{name} {'falls' if change < 0 else 'rises'} by {100 * abs(change):.2f} points"
        for name, change in (("Rank-1", rank1), ("mAP", mean))
        if change is not None and abs(change) > LOST
    ]
    way = f"From {before.name} to {after.name}"
    if rank1 is None and mean is None:
        yield f"{way}: nothing can be compared, one of them has no figures."
    else:
        little = any(change for change in (rank1, mean))
        none = f"no difference beyond {100 * LOST:g} points" if little else "no difference"
        yield f"{way}: {' and '.join(changes) or none}."
    if not (before.whole and after.whole):
        cut = before.name if not before.whole else after.name
        yield f"Only Rank-1 is compared: the {cut} did not rank the whole gallery, so it has no mAP."
    if before.figures.queries != after.figures.queries or before.gallery != after.gallery:
        yield (
            f"They were not asked the same: {before.figures.queries} queries of {before.gallery} entries, then "
            f"{after.figures.queries} of {after.gallery}."
        )


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
