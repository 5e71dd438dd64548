"""Filters: which entries a search may find, as values.

A filter is what `Filter.accepts` says of one entry; `Columns.matching` says the same of many at once.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from reidserve.datasets import Attribute, Attributes, wrong_attributes
from reidserve.errors import QueryError
from reidserve.index.entry import MAX_TEXT, MAX_TIMESTAMP, Entry

Test = Literal["==", "in", "<", "<=", ">", ">="]
Kind = Literal["boolean", "number", "text"]

ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda value, limit: value < limit,
    "<=": lambda value, limit: value <= limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def kind_of(value: Attribute) -> Kind:
    """What it compares with: numbers with numbers, texts with texts, booleans with booleans."""
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What one attribute must be; an entry without it fails.

    Equal conditions are written alike: values are sorted, each stands once, and `in` of one value becomes `==`.

    Attributes:
        name: the attribute's.
        test: `in` takes any number of values, the others one, `<`, `<=`, `>` and `>=` a number.
        values: what to compare with. 1 and 1.0 are the same number; neither is True or "1".

    Raises:
        QueryError: a name, test or value that no attribute can have, or a test that does not fit its values.
    """

    name: str
    test: Test
    values: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        if self.test not in ("==", "in", *ORDERS):
            raise QueryError(f"an attribute's test must be ==, in, <, <=, > or >=, got {self.test!r}")
        if not isinstance(self.values, tuple):
            raise QueryError(f"an attribute's test needs a tuple of values, got {self.values!r}")
        if not isinstance(self.name, str):
            raise QueryError(f"an attribute's name must be text, got {self.name!r}")
        for value in self.values or ("",):
            if wrong := wrong_attributes({self.name: value}):
                raise QueryError(wrong)
        if self.test != "in" and len(self.values) != 1:
            raise QueryError(f"{self.name} {self.test} needs one value, got {len(self.values)}")
        if self.test in ORDERS and kind_of(self.values[0]) != "number":
            raise QueryError(f"{self.name} {self.test} needs a number, got {json.dumps(self.values[0])}")
        distinct = {(kind_of(value), value): value for value in self.values}
        object.__setattr__(self, "values", tuple(distinct[key] for key in sorted(distinct)))
        if self.test == "in" and len(self.values) == 1:
            object.__setattr__(self, "test", "==")

    def accepts(self, attributes: Attributes) -> bool:
        """Whether these attributes meet it."""
        value = attributes.get(self.name)
        if value is None:
            return False
        if self.test in ORDERS:
            (limit,) = self.values
            if isinstance(value, str | bool) or isinstance(limit, str | bool):
                return False
            return ORDERS[self.test](value, limit)
        return any(value == other and kind_of(value) == kind_of(other) for other in self.values)

    @property
    def key(self) -> tuple[str, str, tuple[tuple[Kind, Attribute], ...]]:
        """What equal conditions share, and what orders them; of the values alone, 1 would equal True."""
        return self.name, self.test, tuple((kind_of(value), value) for value in self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked of an entry; all that is said must hold.

    None says nothing, an empty set lets nothing through, and an entry without the field fails what is asked of it.

    Attributes:
        ids, pids, camids: the field must be one of these.
        not_camids: the camera must be none of these; an unknown camera is none of them.
        since: microseconds since 1970 UTC; the timestamp must not be earlier.
        until: microseconds since 1970 UTC; the timestamp must be earlier.
        attributes: conditions, sorted, each once.

    Raises:
        QueryError: a value that no entry can have.
    """

    ids: frozenset[str] | None = None
    pids: frozenset[str] | None = None
    camids: frozenset[str] | None = None
    not_camids: frozenset[str] = frozenset()
    since: int | None = None
    until: int | None = None
    attributes: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        for name in ("ids", "pids", "camids", "not_camids"):
            texts = getattr(self, name)
            if texts is None and name != "not_camids":
                continue
            if not isinstance(texts, frozenset):
                raise QueryError(f"a filter's {name} must be a frozenset of texts, got {texts!r}")
            for text in texts:
                if not isinstance(text, str) or len(text) > MAX_TEXT or _SURROGATE.search(text):
                    raise QueryError(
                        f"a filter's {name} must be Unicode texts of up to {MAX_TEXT} characters, "
                        f"got {str(text)[:80]!r}"
                    )
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None and (type(moment) is not int or abs(moment) > MAX_TIMESTAMP):
                raise QueryError(f"a filter's {name} must be microseconds of 64 bits, got {str(moment)[:80]}")
        attributes: object = self.attributes
        if not isinstance(attributes, tuple) or not all(isinstance(each, Condition) for each in attributes):
            raise QueryError(f"a filter's attributes must be a tuple of conditions, got {attributes!r}")
        ordered = sorted(set(self.attributes), key=lambda condition: condition.key)
        object.__setattr__(self, "attributes", tuple(ordered))

    def accepts(self, entry: Entry) -> bool:
        """Whether an entry is all that is asked."""
        return (
            (self.ids is None or entry.id in self.ids)
            and (self.pids is None or entry.pid in self.pids)
            and (self.camids is None or entry.camid in self.camids)
            and entry.camid not in self.not_camids
            and (self.since is None or (entry.timestamp is not None and entry.timestamp >= self.since))
            and (self.until is None or (entry.timestamp is not None and entry.timestamp < self.until))
            and all(condition.accepts(entry.attributes) for condition in self.attributes)
        )


def all_of(filters: Sequence[Filter]) -> Filter:
    """The filter of what every one of these lets through."""

    def common(name: str) -> frozenset[str] | None:
        said = [texts for each in filters if (texts := getattr(each, name)) is not None]
        return frozenset.intersection(*said) if said else None

    return Filter(
        ids=common("ids"),
        pids=common("pids"),
        camids=common("camids"),
        not_camids=frozenset().union(*(each.not_camids for each in filters)),
        since=max((each.since for each in filters if each.since is not None), default=None),
        until=min((each.until for each in filters if each.until is not None), default=None),
        attributes=tuple(condition for each in filters for condition in each.attributes),
    )
