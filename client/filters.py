"""Filters: which entries may be found, as the client says it."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from reidserve.errors import QueryError
from reidserve.proto.reid.v1 import reid_pb2

Attribute = str | int | float | bool

Test = Literal["==", "in", "<", "<=", ">", ">="]

Condition = tuple[str, Test, Attribute | Collection[Attribute]]
"""An attribute's name, how it is compared, and with what: `("speed", "<", 30)`, `("colour", "in", ["red", "blue"])`."""

_FIELDS: Mapping[str, str] = {
    "==": "equal",
    "in": "any_of",
    "<": "less",
    "<=": "at_most",
    ">": "greater",
    ">=": "at_least",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_INTEGER = 2**53
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries may be found: those of which all that is said here holds.

    None says nothing; nothing is one of none. An entry fails whatever is said of a field or an attribute that it does
    not have. Numbers compare with numbers, text with text and booleans with booleans; order is of numbers only.

    Attributes:
        ids: the entry is one of these; kept as a frozenset, as the next three are.
        pids: its identity is one of these.
        camids: its camera is one of these.
        not_camids: its camera is none of these; it may be unknown.
        since: it was taken then or later; a time with a time zone.
        until: it was taken before then.
        attributes: what is asked of attributes.

    Raises:
        QueryError: something in it cannot be asked.
    """

    ids: Collection[str] | None = None
    pids: Collection[str] | None = None
    camids: Collection[str] | None = None
    not_camids: Collection[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    attributes: Sequence[Condition] = ()

    def __post_init__(self) -> None:
        for name in ("ids", "pids", "camids", "not_camids"):
            if name == "not_camids" or getattr(self, name) is not None:
                object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("since", "until"):
            if getattr(self, name) is not None:
                _check_time(f"a filter's {name}", getattr(self, name))
        object.__setattr__(self, "attributes", _conditions(self.attributes))


def filter_message(where: Filter) -> reid_pb2.Filter:
    """The message that says a filter."""
    message = reid_pb2.Filter(
        exclude_camids=sorted(where.not_camids),
        since=write_time("since", where.since),
        until=write_time("until", where.until),
        attributes=map(_condition_message, where.attributes),
    )
    for name in ("ids", "pids", "camids"):
        texts = getattr(where, name)
        if texts is not None:
            getattr(message, name).CopyFrom(reid_pb2.Choice(any_of=sorted(texts)))
    return message


def read_time(time: Timestamp) -> datetime:
    """The time, in UTC, that a message says."""
    return _EPOCH + timedelta(seconds=time.seconds, microseconds=time.nanos // 1000)


def write_time(name: str, when: datetime | None) -> Timestamp | None:
    """The message that says a time.

    Raises:
        QueryError: it has no time zone, or no Timestamp may say it.
    """
    if when is None:
        return None
    _check_time(name, when)
    seconds, microseconds = divmod((when - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def write_attributes(attributes: Mapping[str, Attribute]) -> dict[str, reid_pb2.Value]:
    """The messages that say attributes, by name.

    Raises:
        QueryError: one is no text, finite number or boolean.
    """
    return {name: _write_value(_attribute(name, value, "")) for name, value in attributes.items()}


def read_attributes(values: Mapping[str, reid_pb2.Value]) -> dict[str, Attribute]:
    """The attributes that a message says, by name; a kind of value that this client does not know is left out."""
    kinds = {name: value.WhichOneof("kind") for name, value in values.items()}
    return {name: getattr(values[name], kind) for name, kind in sorted(kinds.items()) if kind is not None}


def _texts(name: str, given: object) -> frozenset[str]:
    # A text is a collection of texts too, and never what was meant.
    if isinstance(given, str) or not isinstance(given, Collection):
        raise QueryError(f"a filter's {name} must be a collection of texts, got {given!r}")
    for text in given:
        if not isinstance(text, str) or not _is_unicode(text):
            raise QueryError(f"a filter's {name} must be texts in Unicode, got {text!r}")
    return frozenset(given)


def _check_time(name: str, given: object) -> None:
    if not isinstance(given, datetime) or given.utcoffset() is None:
        raise QueryError(f"{name} must be a datetime with a time zone, got {given!r}")
    if not _FIRST <= given <= _LAST:
        raise QueryError(f"{name} must be of the years 1 to 9999 in UTC, got {given!r}")


def _conditions(given: object) -> tuple[Condition, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise QueryError(f"a filter's attributes must be a sequence of conditions, got {given!r}")
    return tuple(map(_condition, given))


def _condition(given: object) -> Condition:
    match given:
        case (str(name), *_) if not _is_unicode(name):
            raise QueryError(f"an attribute's name must be Unicode, got {name!r}")
        case (str(name), "in", Collection() as values) if not isinstance(values, str):
            return name, "in", tuple(_attribute(name, value) for value in values)
        case (str(name), "==", value):
            return name, "==", _attribute(name, value)
        case (str(name), "<" | "<=" | ">" | ">=" as test, value):
            if isinstance(value, bool | str):
                raise QueryError(f"{name} {test} must be followed by a number, got {value!r}")
            return name, test, _attribute(name, value)
    raise QueryError(
        f"a condition must be a name, one of {', '.join(_FIELDS)}, and a value (after in, a collection of values), "
        f"got {given!r}"
    )


def _attribute(name: str, value: object, how: str = "compared with ") -> Attribute:
    match value:
        case bool():
            return value
        case int():
            if abs(value) <= _MAX_INTEGER:
                return value
            # Python refuses to write an integer of more than 4300 digits.
            raise QueryError(f"{name} must be {how}integers up to 2**53, got {value.bit_length()} bits")
        case float() if isfinite(value):
            return value
        case str() if _is_unicode(value):
            return value
    raise QueryError(f"{name} must be {how}text in Unicode, a finite number or a boolean, got {value!r}")


def _is_unicode(text: str) -> bool:
    return not _SURROGATE.search(text)


def _condition_message(condition: Condition) -> reid_pb2.AttributeCondition:
    name, test, given = condition
    message = reid_pb2.AttributeCondition(name=name)
    if isinstance(given, str | int | float):
        getattr(message, _FIELDS[test]).CopyFrom(_write_value(given))
    else:
        message.any_of.CopyFrom(reid_pb2.Values(values=map(_write_value, given)))
    return message


def _write_value(value: Attribute) -> reid_pb2.Value:
    match value:
        case bool():
            return reid_pb2.Value(boolean=value)
        case int():
            return reid_pb2.Value(integer=value)
        case float():
            return reid_pb2.Value(number=value)
        case str():
            return reid_pb2.Value(text=value)
