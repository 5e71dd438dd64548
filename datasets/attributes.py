"""Attributes: what else is known of a crop, by name, such as colour or speed."""

import math
import re
from collections.abc import Mapping
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
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def read_attribute(text: str) -> Attribute:
    """What a person who wrote this meant: true or false, a number, else text; in double quotes it is always text."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    if _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return text


def wrong_attributes(attributes: Attributes) -> str | None:
    """What is wrong with them, None if nothing: names are words, values text, finite numbers or booleans."""
    if len(attributes) > MAX_ATTRIBUTES:
        return f"may have {MAX_ATTRIBUTES} attributes, got {len(attributes)}"
    for name, value in attributes.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
            return f"an attribute's name must be a word of letters, digits and _ that is not a field's, got {name!r}"
        if not _is_attribute(value):
            return (
                f"attribute {name} must be text (up to {MAX_ATTRIBUTE_TEXT} characters), a finite number, an integer "
                f"up to 2**53 or a boolean, got {str(value)[:80]!r}"
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
            return len(value) <= MAX_ATTRIBUTE_TEXT and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return False
