"""What filters need of a run of entries, in arrays, so that a filter costs comparisons of arrays and not of objects.

One thread appends while others read rows below a count that it has handed out. That is safe: `append` writes only
rows at or above every such count, an array is filled with "missing" before its name leads to it, nothing is ever
moved or freed, and each step by which it becomes visible (a dict's new key, a list's new end) is one step under the
GIL, which also orders the writes to the arrays before it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidserve.index.entry import Entry
from reidserve.index.filters import Condition, Filter

MAX_COLUMNS = 64
"""So many names of attributes get an array for numbers, and so many one for codes; rows are asked one by one for the
rest. Names are a caller's choice, and every array costs memory for the whole capacity."""

MISSING = -1
UNKNOWN = -2
NO_TIME = np.iinfo(np.int64).min  # below every timestamp an entry can have

_FEW = 4
"""Up to so many values, one comparison each is faster than a table (at 8192 rows: 2 µs each against 8 µs)."""

_MAX_BITS = 24

Mask = NDArray[np.bool_]


class Codes:
    """Texts and booleans as small integers; one for many columns of a gallery. Codes are never taken back."""

    def __init__(self) -> None:
        self._codes: dict[str | bool, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def add(self, value: str | bool | None) -> int:
        """Its code, a new one if need be; MISSING for None. For the one thread that appends."""
        return MISSING if value is None else self._codes.setdefault(value, len(self._codes))

    def find(self, value: str | bool | None) -> int:
        """Its code, UNKNOWN if it has none; MISSING for None."""
        return MISSING if value is None else self._codes.get(value, UNKNOWN)


class _Members:
    """Which codes are among those of some values."""

    def __init__(self, codes: Codes, values: Iterable[str | bool]) -> None:
        found = (codes.find(value) for value in values)
        self._codes = np.array([code for code in found if code != UNKNOWN], np.int32)
        if len(self._codes) > _FEW:
            # One place more than codes, so that MISSING, the last place, is never among them.
            self._table = np.zeros(len(codes) + 1, np.bool_)
            self._table[self._codes] = True

    def among(self, column: NDArray[np.int32]) -> Mask:
        if len(self._codes) > _FEW:
            return self._table.take(column)
        return _any_equal(column, self._codes)


class _Names:
    """Which hashes may be those of some ids."""

    def __init__(self, ids: frozenset[str]) -> None:
        self._hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        if len(ids) > _FEW:
            # A table of the hashes' low bits, 64 places each while that is small: one row in 64 is a false alarm.
            bits = min(_MAX_BITS, (64 * len(ids)).bit_length())
            self._mask = np.int64(2**bits - 1)
            self._table = np.zeros(2**bits, np.bool_)
            self._table[self._hashes & self._mask] = True

    def may_be_among(self, column: NDArray[np.int64]) -> Mask:
        if len(self._hashes) > _FEW:
            return self._table.take(column & self._mask)
        return _any_equal(column, self._hashes)


class _Wanted:
    """The values of one condition, apart by how they are stored."""

    def __init__(self, codes: Codes, condition: Condition) -> None:
        self.condition = condition
        self.numbers = np.array([value for value in condition.values if not isinstance(value, str | bool)], np.float64)
        self.others = _Members(codes, (value for value in condition.values if isinstance(value, str | bool)))


class Sought:
    """A filter as columns compare it: translated once for all columns of a search, after their rows were written."""

    def __init__(self, codes: Codes, where: Filter) -> None:
        self.where = where
        self.ids = None if where.ids is None else _Names(where.ids)
        self.pids = None if where.pids is None else _Members(codes, where.pids)
        self.camids = None if where.camids is None else _Members(codes, where.camids)
        self.not_camids = _Members(codes, where.not_camids) if where.not_camids else None
        self.attributes = [_Wanted(codes, condition) for condition in where.attributes]


class Columns:
    """Up to `capacity` entries in arrays, each appended once and never changed.

    Attributes:
        codes: what its texts and booleans stand in.
        entries: all of them, in order.
    """

    def __init__(self, codes: Codes, capacity: int) -> None:
        self.entries: list[Entry] = []
        self.codes = codes
        self._capacity = capacity
        self._ids = np.empty(capacity, np.int64)
        self._pids = np.empty(capacity, np.int32)
        self._camids = np.empty(capacity, np.int32)
        self._timestamps = np.empty(capacity, np.int64)
        self._numbers: dict[str, NDArray[np.float64]] = {}  # NaN where there is none
        self._coded: dict[str, NDArray[np.int32]] = {}  # texts and booleans

    def append(self, entries: Sequence[Entry]) -> None:
        """Take further entries.

        Raises:
            ValueError: they do not fit the capacity; nothing was taken.
        """
        start = len(self.entries)
        stop = start + len(entries)
        if stop > self._capacity:
            raise ValueError(f"columns hold {self._capacity} entries, got {stop}")
        add = self.codes.add
        numbers: dict[str, dict[int, float]] = {}
        coded: dict[str, dict[int, int]] = {}
        for row, entry in enumerate(entries, start):
            for name, value in entry.attributes.items():
                if isinstance(value, str | bool):
                    coded.setdefault(name, {})[row] = add(value)
                else:
                    numbers.setdefault(name, {})[row] = value
        # All arrays before any value: where memory runs out, no value stays behind in a row that was not taken.
        for name in numbers:
            if name not in self._numbers and len(self._numbers) < MAX_COLUMNS:
                self._numbers[name] = np.full(self._capacity, np.nan)
        for name in coded:
            if name not in self._coded and len(self._coded) < MAX_COLUMNS:
                self._coded[name] = np.full(self._capacity, MISSING, np.int32)
        self._ids[start:stop] = [hash(entry.id) for entry in entries]
        self._pids[start:stop] = [add(entry.pid) for entry in entries]
        self._camids[start:stop] = [add(entry.camid) for entry in entries]
        self._timestamps[start:stop] = [NO_TIME if entry.timestamp is None else entry.timestamp for entry in entries]
        for name in self._numbers.keys() & numbers.keys():
            self._numbers[name][list(numbers[name])] = list(numbers[name].values())
        for name in self._coded.keys() & coded.keys():
            self._coded[name][list(coded[name])] = list(coded[name].values())
        self.entries += entries

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, bytes."""
        arrays: tuple[NDArray[Any], ...] = (
            self._ids,
            self._pids,
            self._camids,
            self._timestamps,
            *self._numbers.values(),
            *self._coded.values(),
        )
        return sum(array.nbytes for array in arrays)

    def find(self, name: str, count: int) -> list[int]:
        """Which of the first `count` entries have that id."""
        rows: list[int] = np.flatnonzero(self._ids[:count] == hash(name)).tolist()
        return [row for row in rows if self.entries[row].id == name]

    def matching(self, sought: Sought, count: int) -> Mask:
        """(count,): for each of the first `count` entries, which must be there, what the filter's `accepts` says."""
        where = sought.where
        found = np.ones(count, np.bool_)
        if sought.pids is not None:
            found &= sought.pids.among(self._pids[:count])
        if sought.camids is not None:
            found &= sought.camids.among(self._camids[:count])
        if sought.not_camids is not None:
            found &= ~sought.not_camids.among(self._camids[:count])
        if where.since is not None:
            found &= self._timestamps[:count] >= where.since
        if where.until is not None:
            times = self._timestamps[:count]
            found &= (times < where.until) & (times != NO_TIME)
        for wanted in sought.attributes:
            found &= self._meets(wanted, found)
        if where.ids is not None and sought.ids is not None:
            found &= sought.ids.may_be_among(self._ids[:count])
            for row in np.flatnonzero(found).tolist():
                found[row] = self.entries[row].id in where.ids
        return found

    def _meets(self, wanted: _Wanted, found: Mask) -> Mask:
        condition, count = wanted.condition, len(found)
        numbers = self._numbers.get(condition.name)
        coded = self._coded.get(condition.name)
        met = np.zeros(count, np.bool_)
        if (numbers is None and len(self._numbers) == MAX_COLUMNS) or (
            coded is None and len(self._coded) == MAX_COLUMNS
        ):
            for row in np.flatnonzero(found).tolist():
                met[row] = condition.accepts(self.entries[row].attributes)
            return met
        if numbers is not None and len(wanted.numbers):
            if condition.test in _ORDERS:
                met |= _ORDERS[condition.test](numbers[:count], wanted.numbers[0])
            else:
                met |= _any_equal(numbers[:count], wanted.numbers)
        if coded is not None:
            met |= wanted.others.among(coded[:count])
        return met


_ORDERS: dict[str, np.ufunc] = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}


def _any_equal(column: NDArray[Any], values: NDArray[Any]) -> Mask:
    if len(values) > _FEW:
        return np.isin(column, values)
    found = np.zeros(len(column), np.bool_)
    for value in values:
        found |= column == value
    return found
