"""Open set: what score means "the same identity", how often that is wrong, and how often it is missed.

Two questions, two error rates. *Pairs* (verification): of all impostor pairs, which share reaches the threshold (FPR),
and which share of all genuine pairs (TPR)? *Searches* (open-set identification; Liao et al., 2014; ISO/IEC 19795): with
a query's own identity taken out of the gallery, how often does anything reach the threshold (false alarms), and with it
in, how often is the best entry right and reaches it (identification)?
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.errors import EvaluationError
from reidserve.evaluate.distribution import BINS
from reidserve.evaluate.evaluation import Evaluation
from reidserve.evaluate.metrics import first_ranks
from reidserve.index.search.ranking import SETTLED_WITHIN

RATES = (1e-2, 1e-3, 1e-4)
"""False positive and false alarm rates that are reported."""

_ROUNDING = 1e-9
"""Of a rate times a count: 0.29 of 100 is 29."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and what it does.

    Attributes:
        rate: the false rate that was asked for.
        threshold: the lowest score whose false rate is not above it; a score that reaches it is accepted.
        false: the false rate at the threshold; of pairs at most, since theirs is counted in bins.
        true: the share that is rightly accepted at the threshold.
    """

    rate: float
    threshold: float
    false: float
    true: float


@dataclass(frozen=True, slots=True, eq=False)
class OpenSet:
    """How well scores tell an identity from all others.

    Attributes:
        genuine: how many pairs of a query and a right entry there are.
        impostors: how many pairs of a query and a wrong entry there are.
        searches: how many queries have right and wrong entries.
        pairs: TPR at each of RATES, FPR over impostor pairs; rates are left out that are finer than one impostor pair,
            or that no score keeps to, since doubles of other identities score 1.
        identification: rank-1 identification at each of RATES, false alarms over searches; as above.
    """

    genuine: int
    impostors: int
    searches: int
    pairs: Sequence[OperatingPoint]
    identification: Sequence[OperatingPoint]


def open_set(evaluation: Evaluation) -> OpenSet:
    """The operating points of an evaluation whose impostors were gathered."""
    genuine, impostors, searches = len(evaluation.outcomes.scores), _impostors(evaluation), count_searches(evaluation)
    return OpenSet(
        genuine=genuine,
        impostors=int(impostors.sum()),
        searches=searches,
        pairs=_those_there_are(pair_point, evaluation),
        identification=_those_there_are(search_point, evaluation),
    )


def _those_there_are(
    point: Callable[[Evaluation, float], OperatingPoint], evaluation: Evaluation
) -> Sequence[OperatingPoint]:
    found = []
    for rate in RATES:
        with contextlib.suppress(EvaluationError):
            found.append(point(evaluation, rate))
    return found


def pair_point(evaluation: Evaluation, rate: float) -> OperatingPoint:
    """The point at which at most the share `rate` of impostor pairs is accepted, exact to a bin.

    Raises:
        EvaluationError: there is no genuine pair, there are too few impostor pairs to show the rate, or more of them
            than that score 1.
    """
    genuine, impostors = np.sort(evaluation.outcomes.scores), _impostors(evaluation)
    total = int(impostors.sum())
    _check_enough(len(genuine), total, rate, "pairs of two identities")
    reaching = np.append(np.cumsum(impostors[::-1])[::-1], 0)  # of each bin's lower edge, and of 1
    lowest = int(np.argmax(reaching <= rate * total + _ROUNDING))
    # A bin holds products: what is counted as below its edge may score above it, by a rounding.
    threshold = -1 + lowest * 2 / BINS + SETTLED_WITHIN
    _check_reachable(threshold, rate)
    return OperatingPoint(
        rate=rate,
        threshold=threshold,
        false=float(reaching[lowest] / total),
        true=float(np.mean(genuine >= threshold)),
    )


def search_point(evaluation: Evaluation, rate: float) -> OperatingPoint:
    """The point at which at most the share `rate` of searches for someone absent is answered.

    Raises:
        EvaluationError: there are too few searches to show the rate, or in more of them than that a wrong entry
            scores 1.
    """
    accepted, alarms = search_scores(evaluation)
    _check_enough(len(alarms), len(alarms), rate, "searches")
    point = accept(accepted, alarms, rate, of=len(alarms))
    _check_reachable(point.threshold, rate)
    return point


def accept(
    right: NDArray[np.float32], wrong: NDArray[np.float32], rate: float, *, of: int | None = None
) -> OperatingPoint:
    """The point at which at most the share `rate` of the wrong scores is accepted.

    The threshold is the number just above the highest wrong score that must stay out; the share of right scores that
    reach it is over `of`, or over all of them.
    """
    descending = -np.sort(-wrong)
    let_in = int(rate * len(descending) + _ROUNDING)
    threshold = np.nextafter(descending[let_in], np.float32(np.inf)) if let_in < len(descending) else descending[-1]
    return OperatingPoint(
        rate=rate,
        threshold=float(threshold),
        false=float(np.mean(wrong >= threshold)),
        true=float(np.sum(right >= threshold) / (len(right) if of is None else of)),
    )


def search_scores(evaluation: Evaluation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores of right rank-1 answers, and of every search's best wrong entry; of queries that have both kinds."""
    outcomes = evaluation.outcomes
    both = (outcomes.found > 0) & (outcomes.wrong >= 0)
    right = both & (first_ranks(outcomes) == 1)
    return outcomes.scores[outcomes.starts[:-1][right]], outcomes.wrong_scores[both]


def roc(evaluation: Evaluation) -> tuple[Values, Values, Values]:
    """FPR, TPR over pairs and the threshold of each point, from the strictest to the laxest, all (BINS,)."""
    impostors, edges = _impostors(evaluation), _edges()
    genuine = np.sort(evaluation.outcomes.scores)
    false = np.cumsum(impostors[::-1]) / max(1, impostors.sum())
    below = np.searchsorted(genuine, edges[::-1]) / max(1, len(genuine))
    return false, 1 - below, edges[::-1]


def count_searches(evaluation: Evaluation) -> int:
    """How many queries have right and wrong entries."""
    return len(search_scores(evaluation)[1])


def _impostors(evaluation: Evaluation) -> NDArray[np.int64]:
    return np.zeros(BINS, np.int64) if evaluation.impostors is None else evaluation.impostors.counts


def _check_enough(right: int, wrong: int, rate: float, what: str) -> None:
    if not right or wrong * rate < 1:
        raise EvaluationError(
            f"{wrong:,} {what} cannot show a false alarm rate of {rate:g}: one of them is more than that; "
            f"ask for {_rounded_up(1 / max(wrong, 1)):g} or more, or bring more images"
        )


def _check_reachable(threshold: float, rate: float) -> None:
    if threshold > 1:
        raise EvaluationError(
            f"no score keeps false alarms to {rate:g}: more than that share of wrong entries score 1, as doubles do; "
            "is one image in the data under several identities? Ask for more, or correct the labels"
        )


def _rounded_up(share: float) -> float:
    """A share with two digits that is not below it."""
    step = 10.0 ** (math.floor(math.log10(share)) - 1)
    return math.ceil(share / step - _ROUNDING) * step


def _edges() -> Values:
    """The lower edge of each bin."""
    return np.linspace(-1, 1, BINS, endpoint=False)
