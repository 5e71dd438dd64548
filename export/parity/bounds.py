"""Bounds: what a precision may lose, and when a measurement is enough to say that it does not.

A candidate passes if the lower end of the change's 95 % interval is not below minus the bound (non-inferiority, as
ICH E9, 1998, section 3.3.2, tests it), and the interval is not wider than the bound: that nothing was seen is no proof
where little could be seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite

from reidserve.embed import Precision
from reidserve.errors import EvaluationError

FEWEST_IDENTITIES = 20
"""Below it, damage that one identity in seven suffers is seen in none of them more than one time in twenty."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a candidate may lose against its reference.

    Attributes:
        points: of mAP, 0..100.
        cosine: the least that an image's two embeddings may have.

    Raises:
        EvaluationError: a bound that nothing or everything would pass.
    """

    points: float
    cosine: float

    def __post_init__(self) -> None:
        if not 0 < self.points <= 100:
            raise EvaluationError(f"the bound must be above 0 and at most 100 points of mAP, got {self.points:g}")
        if not -1 <= self.cosine < 1:
            raise EvaluationError(f"the cosine floor must be -1 or more and below 1, got {self.cosine:g}")


DEFAULT_BOUNDS: Mapping[Precision, Bounds] = {
    "fp32": Bounds(points=0.05, cosine=0.99999),
    "fp16": Bounds(points=0.2, cosine=0.999),
    "int8": Bounds(points=0.5, cosine=0.9),
}


@dataclass(frozen=True, slots=True)
class Change:
    """How mAP changes from the reference to a candidate, over the queries that both were scored on.

    Attributes:
        points: candidate less reference, 0..100.
        low: lower end of the 95 % interval.
        high: upper end of it.
        identities: of the queries, which were drawn.
    """

    points: float
    low: float
    high: float
    identities: int

    @property
    def width(self) -> float:
        """Of the interval, in points."""
        return self.high - self.low


def judge(bounds: Bounds, *, cosine: float, change: Change | None) -> list[str]:
    """Why a candidate is refused whose smallest cosine and whose change these are; nothing where it passes."""
    reasons = []
    # All written so that NaN fails.
    if not cosine >= bounds.cosine:
        reasons.append(f"an image's two embeddings have a cosine of {cosine:.6f}, at least {bounds.cosine:g} is asked")
    if change is None:
        return reasons
    interval = f"95 % interval {change.low:+.3f} to {change.high:+.3f}"
    if not change.points >= -bounds.points:
        reasons.append(f"{-change.points:.3f} points of mAP are lost ({interval}), at most {bounds.points:g} may be")
    elif not change.low >= -bounds.points:
        reasons.append(f"{-change.low:.3f} points of mAP may be lost ({interval}), at most {bounds.points:g} may be")
    if not change.width <= bounds.points:
        reasons.append(
            f"the 95 % interval is {change.width:.3f} points wide, wider than the bound of {bounds.points:g}: too few "
            f"queries prove nothing, {_enough(bounds, change)}"
        )
    if change.identities < FEWEST_IDENTITIES:
        reasons.append(
            f"{change.identities} identities were asked for, at least {FEWEST_IDENTITIES} are needed: "
            "what befalls few of many is not seen among so few"
        )
    return reasons


def _enough(bounds: Bounds, change: Change) -> str:
    """How many identities would do: an interval's width goes with the root of their number."""
    if not isfinite(change.width):
        return "and what is no number proves nothing at all"
    return f"about {ceil(change.identities * (change.width / bounds.points) ** 2):,} identities like these would do"
