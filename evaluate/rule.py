"""The rule: which gallery entries count for a query, which of these are right, and what the means are over."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reidserve.datasets import JUNK, is_distractor
from reidserve.evaluate.labelled import Labels

Places = NDArray[np.intp]

_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Rule:
    """Which gallery entries count for a query. The defaults are the rule of Market-1501 (Zheng et al., 2015).

    What is dropped takes no rank; what counts and has the query's pid is right; all else that counts is wrong. A
    query's own source is always dropped, and an unknown camera or pid equals nothing.

    Attributes:
        cameras: what the query's camera drops: "market" its entries of the query's pid; "cross" all its entries
            (CUHK03); "any" nothing.
        junk: whether junk (pid "-1") counts, as wrong; else it is dropped.
        distractors: whether distractors (Market-1501's pid "0000", which no query has) count, as wrong; else they are
            dropped.
        queries: what the means are over: "matchable" leaves out queries without a right entry; with "all" these
            count as nothing found (the Matlab code of Market-1501; layumi).
    """

    cameras: Literal["market", "cross", "any"] = "market"
    junk: bool = False
    distractors: bool = True
    queries: Literal["matchable", "all"] = "matchable"


MARKET = Rule()
"""The rule of Market-1501."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of a query and a gallery entry, by query and then in gallery order.

    Attributes:
        owners: int (n,), places among the queries.
        rows: int (n,), places in the gallery.
    """

    owners: Places
    rows: Places


class Judge:
    """A rule between queries and a gallery, prepared so that a chunk of queries costs what it drops and finds.

    Attributes:
        never: int (n,), gallery places that count for no query.
        size: how many gallery places there are.
        counting: how many of them are left.
    """

    def __init__(self, rule: Rule, query: Labels, gallery: Labels) -> None:
        self._rule = rule
        pids, camids, sources = _Codes(), _Codes(), _Codes()
        self._pids, self._camids, self._sources = (
            _Groups(codes.of(labels))
            for codes, labels in ((pids, gallery.pids), (camids, gallery.camids), (sources, gallery.sources))
        )
        self._query_pids = pids.of([None if pid == JUNK else pid for pid in query.pids])
        self._query_camids = camids.of(query.camids)
        self._query_sources = sources.of(query.sources)
        self._is_never = np.zeros(len(gallery), np.bool_)
        if not rule.junk:
            self._is_never |= np.array([pid == JUNK for pid in gallery.pids], np.bool_)
        if not rule.distractors:
            # Where a query has that pid, it is an identity like any other.
            searched = set(query.pids)
            self._is_never |= np.array([is_distractor(pid) and pid not in searched for pid in gallery.pids], np.bool_)
        self.never: Places = np.flatnonzero(self._is_never)
        self.size = len(gallery)
        self.counting = self.size - len(self.never)

    def same(self, queries: slice) -> Pairs:
        """All entries of the pids of some queries, right or dropped; owners are counted from the first of them."""
        return self._pids.of(self._query_pids[queries])

    def is_right(self, queries: slice, same: Pairs) -> NDArray[np.bool_]:
        """Which entries of the pids of some queries (n,) are right."""
        right = ~self._is_never[same.rows]
        if self._rule.cameras != "any":
            right &= ~self._equal(self._camids, self._query_camids, queries, same)
        right &= ~self._equal(self._sources, self._query_sources, queries, same)
        return right

    def right(self, queries: slice) -> Pairs:
        """The right entries of some queries; owners are counted from the first of them."""
        same = self.same(queries)
        right = self.is_right(queries, same)
        return Pairs(same.owners[right], same.rows[right])

    def alike(self, queries: slice) -> list[Places]:
        """Places of some queries, counted from the first of them, together where they have one pid."""
        pids = self._query_pids[queries]
        order = np.argsort(pids, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(pids[order])) + 1)

    def dropped(self, queries: slice) -> Pairs:
        """What is dropped for some queries, beyond what counts for none; owners are counted from the first of them."""
        parts = [self._sources.of(self._query_sources[queries])]
        if self._rule.cameras == "cross":
            parts.append(self._camids.of(self._query_camids[queries]))
        elif self._rule.cameras == "market":
            same = self._pids.of(self._query_pids[queries])
            own = self._equal(self._camids, self._query_camids, queries, same)
            parts.append(Pairs(same.owners[own], same.rows[own]))
        size = np.int64(max(1, self.size))
        keys = np.unique(np.concatenate([part.owners * size + part.rows for part in parts]))
        rows = keys % size
        left = ~self._is_never[rows]
        return Pairs((keys // size)[left], rows[left])

    @staticmethod
    def _equal(groups: "_Groups", codes: NDArray[np.int64], queries: slice, pairs: Pairs) -> NDArray[np.bool_]:
        asked = codes[queries][pairs.owners]
        equal: NDArray[np.bool_] = (asked == groups.codes[pairs.rows]) & (asked != _UNKNOWN)
        return equal


class _Codes:
    """Texts as numbers, equal for equal texts; unknown texts are _UNKNOWN."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def of(self, texts: Sequence[str | None]) -> NDArray[np.int64]:
        codes = self._codes
        return np.array([_UNKNOWN if text is None else codes.setdefault(text, len(codes)) for text in texts], np.int64)


class _Groups:
    """Gallery places by the code of one label."""

    def __init__(self, codes: NDArray[np.int64]) -> None:
        self.codes = codes

    @cached_property
    def _order(self) -> Places:
        # Stable: each group is in gallery order.
        return np.argsort(self.codes, kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return self.codes[self._order]

    def of(self, codes: NDArray[np.int64]) -> Pairs:
        """All places of each query's code; none of an unknown one."""
        starts = np.searchsorted(self._sorted, codes, "left")
        lengths = np.searchsorted(self._sorted, codes, "right") - starts
        lengths[codes == _UNKNOWN] = 0
        owners = np.repeat(np.arange(len(codes)), lengths)
        inside = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return Pairs(owners, self._order[np.repeat(starts, lengths) + inside])
