"""Comparison: whether two reports differ by more than chance.

The bootstrap (Efron and Tibshirani, 1993) asks how far a mean difference would move had other queries been drawn. It is
paired, since both subjects answered the same queries, and it draws identities, not queries: queries of one identity
succeed and fail together, and drawn one by one they would make differences look surer than they are (cluster
bootstrap; Davison and Hinkley, 1997, section 3.8).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.errors import EvaluationError
from reidserve.evaluate.report.document import Document, QueryFigures, Record

Values = NDArray[np.float64]

_DRAWN_AT_ONCE = 2**20
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Difference:
    """How a mean over the common queries changes from one subject to another.

    Attributes:
        before: the mean of the first.
        after: the mean of the second.
        change: `after` less `before`.
        low: lower end of the 95 % interval of the change.
        high: upper end of it.
    """

    before: float
    after: float
    change: float
    low: float
    high: float

    @property
    def may_be_noise(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two subjects on the queries that both were scored on.

    Attributes:
        before: stage of the first.
        after: stage of the second.
        queries: queries in common.
        identities: identities of these, which were drawn.
        only_before: queries of the first alone, left out.
        only_after: queries of the second alone, left out.
        rank1: difference of Rank-1.
        mAP: difference of mAP; None where rankings of either were cut short.
        notes: what else differs, a sentence each.
    """

    before: str
    after: str
    queries: int
    identities: int
    only_before: int
    only_after: int
    rank1: Difference
    mAP: Difference | None
    notes: Sequence[str]

    def lines(self) -> list[str]:
        """All of it in words, a line each."""
        found = [("Rank-1", self.rank1), *([("mAP", self.mAP)] if self.mAP is not None else [])]
        said = [_say(name, difference) for name, difference in found]
        said.append(
            f"Over {self.queries} queries of {self.identities} identities in common; identities were drawn, since "
            "queries of one are not independent."
        )
        if self.only_before or self.only_after:
            said.append(
                f"Left out: {self.only_before} queries of the first and {self.only_after} of the second, which the "
                "other does not have."
            )
        return [*said, *self.notes]


def compare(before: Document, after: Document, *, samples: int = 10_000, seed: int = 0) -> list[Comparison]:
    """Compare the subjects of equal name of two reports; where each has one subject only, these.

    Raises:
        EvaluationError: there are no such subjects, or they have no two identities' queries in common.
    """
    firsts, seconds = ({one.name: one for one in document.subjects} for document in (before, after))
    pairs = [(first, seconds[name]) for name, first in firsts.items() if name in seconds]
    if not pairs and len(firsts) == len(seconds) == 1:
        pairs = [(before.subjects[0], after.subjects[0])]
    if not pairs:
        raise EvaluationError(
            f"the reports have no stage in common: {', '.join(firsts) or 'none'} in one, "
            f"{', '.join(seconds) or 'none'} in the other"
        )
    notes = list(_notes(before, after))
    return [_compare(first, second, notes, samples, seed) for first, second in pairs]


def _compare(before: Record, after: Record, notes: Sequence[str], samples: int, seed: int) -> Comparison:
    firsts, seconds = _keyed(before.queries), _keyed(after.queries)
    common = [key for key in firsts if key in seconds]
    # What has no pid is an identity of its own.
    names: dict[object, int] = {}
    clusters = [names.setdefault(key if firsts[key].pid is None else firsts[key].pid, len(names)) for key in common]
    if len(names) < 2:
        raise EvaluationError(
            f"expected queries of at least two identities in both reports, got {len(names)}: are they of one dataset?"
        )
    pairs = [(firsts[key], seconds[key]) for key in common]
    owners = np.array(clusters, np.int64)

    def difference(values: Iterable[tuple[float, float]]) -> Difference:
        first, second = np.array(list(values)).T
        low, high = bootstrap(second - first, owners, samples=samples, seed=seed)
        return Difference(float(first.mean()), float(second.mean()), float((second - first).mean()), low, high)

    precisions = [
        (first.average_precision, second.average_precision)
        for first, second in pairs
        if first.average_precision is not None and second.average_precision is not None
    ]
    return Comparison(
        before=before.name,
        after=after.name,
        queries=len(common),
        identities=len(names),
        only_before=len(firsts) - len(common),
        only_after=len(seconds) - len(common),
        rank1=difference((float(first.first == 1), float(second.first == 1)) for first, second in pairs),
        mAP=difference(precisions) if len(precisions) == len(pairs) else None,
        notes=[*_changed(before, after), *notes],
    )


def bootstrap(changes: Values, owners: NDArray[np.int64], *, samples: int, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of changes (n,) whose owners, 0 to C - 1, are drawn C at a time."""
    totals, sizes = np.bincount(owners, changes), np.bincount(owners)
    count = len(totals)
    random = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, samples, step):
        drawn = random.integers(count, size=(min(step, samples - start), count))
        means[start : start + step] = totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _keyed(queries: Sequence[QueryFigures]) -> dict[tuple[int, str, str | None, int], QueryFigures]:
    """Queries by trial, source and pid, since under another one it asks for someone else, and features have no source.

    The last tells those apart that a dataset lists more than once.
    """
    seen: Counter[tuple[int, str, str | None]] = Counter()
    keyed = {}
    for query in queries:
        name = (query.trial, query.source, query.pid)
        keyed[*name, seen[name]] = query
        seen[name] += 1
    return keyed


def _notes(before: Document, after: Document) -> Iterable[str]:
    if before.rule != after.rule:
        yield f"The rules differ, so the figures are not of one kind: {before.rule}, then {after.rule}."
    if before.protocol != after.protocol:
        yield f"The protocols differ: {before.protocol}, then {after.protocol}."
    sizes = [document.counts.get("gallery") for document in (before, after)]
    if sizes[0] != sizes[1]:
        yield f"The galleries differ: {sizes[0]} entries, then {sizes[1]}."
    elif before.digests.get("labels") != after.digests.get("labels"):
        yield "The queries or the gallery differ: they are other files, or other labels."
    if before.seeds != after.seeds:
        yield f"Other galleries were drawn: the seeds are {dict(before.seeds)}, then {dict(after.seeds)}."


def _changed(before: Record, after: Record) -> Iterable[str]:
    """Which facts differ, such as the model's identity."""
    facts = [
        f"{name} {before.facts.get(name, 'none')[:_SHOWN]} -> {after.facts.get(name, 'none')[:_SHOWN]}"
        for name in dict.fromkeys([*before.facts, *after.facts])
        if before.facts.get(name) != after.facts.get(name)
    ]
    if facts:
        yield f"What was scored differs: {'; '.join(facts)}."


def _say(name: str, difference: Difference) -> str:
    figures = (
        f"{name} {100 * difference.before:.2f} -> {100 * difference.after:.2f}: {100 * difference.change:+.2f} points, "
        f"95 % interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    )
    if difference.change == difference.low == difference.high == 0:
        return f"{figures}: no query differs."
    if difference.may_be_noise:
        return f"{figures}, which contains 0: this may be noise."
    return f"{figures}, which does not contain 0: this is not noise."
