"""Attributes: what else is known of a crop, by name, such as colour or speed."""

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

Attribute = str | int | float | bool

Attributes = Mapping[str, Attribute]

NO_ATTRIBUTES: Attributes = MappingProxyType({})

MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_TEXT = 4096
MAX_ATTRIBUTE_INTEGER = 2**53
"""Up to here a float64, in which attributes are compared, holds every integer."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_RESERVED = frozenset({"id", "pid", "camid", "timestamp", "source", "and", "in", "not", "true", "false"})
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,15})")
_DECIMAL = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*|(?=[eE]))|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_attribute(text: str) -> Attribute:
    """What a person who wrote this meant: true or false, a number, else text; in double quotes it is always text.

    Digits that a number would not keep are text: 0017, and integers beyond 2**53.
    """
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text) and abs(integer := int(text)) <= MAX_ATTRIBUTE_INTEGER:
        return integer
    if _DECIMAL.fullmatch(text) and math.isfinite(decimal := float(text)):
        return decimal
    return text


def wrong_attributes(attributes: Attributes) -> str | None:
    """What is wrong with them, None if nothing: names are words, values text, finite numbers or booleans."""
    if len(attributes) > MAX_ATTRIBUTES:
        return f"may have {MAX_ATTRIBUTES} attributes, got {len(attributes)}"
    given: Iterable[tuple[object, object]] = attributes.items()
    for name, value in given:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
            return f"an attribute's name must be a word of letters, digits and _ that is not a field's, got {name!r}"
        if not _is_attribute(value):
            # Python refuses to write an integer of more than 4300 digits.
            big = isinstance(value, int) and value.bit_length() > 256
            got = "an integer of more than 256 bits" if big else repr(str(value)[:80])
            return (
                f"attribute {name} must be text (up to {MAX_ATTRIBUTE_TEXT} characters), a finite number, an integer "
                f"up to 2**53 or a boolean, got {got}"
            )
    return None


def _is_attribute(value: object) -> bool:
    match value:
        case bool():
            return True
        case int():
            return abs(value) <= MAX_ATTRIBUTE_INTEGER
        case float():
            return math.isfinite(value)
        case str():
            return len(value) <= MAX_ATTRIBUTE_TEXT and not _SURROGATE.search(value)
    return False
