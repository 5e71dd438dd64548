"""Filters in Milvus' own words, which narrow what it looks at; what is found, `Filter.accepts` decides.

So an expression may say less than its filter, and must never say more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reidserve.datasets import Attribute
from reidserve.index.filters import Condition, Filter, kind_of
from reidserve.index.milvus.layout import NO_TIME, code_text

MOST_VALUES = 100
"""One condition on an attribute names so many values; of more, Milvus is asked for any."""

MOST_CHARACTERS = 2**22
"""So much text may one list of values be; a longer one is left to us."""

Value = str | int | float | bool | list[str] | list[int]

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition of Milvus, its values apart from its words.

    Attributes:
        text: with `{name}` where a value goes.
        values: by name.
    """

    text: str
    values: Mapping[str, Value]

    def inlined(self) -> str:
        """The same with its values written out, for servers that take no values apart (before 2.5)."""
        return self.text.format_map({name: literal(value) for name, value in self.values.items()})


def literal(value: Value) -> str:
    """A value as it stands in an expression: the one place where text is escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)


def expression(where: Filter | None = None, *, rows: tuple[int, int] | None = None) -> Expression:
    """What narrows a search to `where`, and to entries of rows from the first number up to the second, which is out."""
    words = _Words()
    first, end = rows or (0, None)
    words.say("row >= {}", first)
    if end is not None:
        words.say("row < {}", end)
    if where is not None:
        _say_fields(words, where)
        for condition in where.attributes:
            _say_condition(words, condition)
    return words.expression()


def among(field: str, values: Iterable[str] | Iterable[int]) -> Expression:
    """What holds of entries whose field, as it is stored, is one of these."""
    words = _Words()
    words.say(f"{field} in {{}}", list(values))  # type: ignore[arg-type]
    return words.expression()


class _Words:
    """An expression while it is put together."""

    def __init__(self) -> None:
        self._terms: list[str] = []
        self._values: dict[str, Value] = {}

    def value(self, value: Value) -> str:
        """Where a value goes."""
        name = f"v{len(self._values)}"
        self._values[name] = value
        return f"{{{name}}}"

    def say(self, words: str, *values: Value) -> None:
        """One more term, with values in the place of its brackets."""
        self._terms.append(words.format(*map(self.value, values)))

    def expression(self) -> Expression:
        """All of it."""
        return Expression(" and ".join(self._terms), self._values)


def _say_fields(words: _Words, where: Filter) -> None:
    for field, texts in (("id", where.ids), ("pid", where.pids), ("camid", where.camids)):
        if texts is None:
            continue
        if not texts:
            words.say("row < {}", 0)  # nothing is let through
        elif sum(map(len, texts)) <= MOST_CHARACTERS:
            words.say(f"{field} in {{}}", [code_text(text) for text in sorted(texts)])
    if where.not_camids and sum(map(len, where.not_camids)) <= MOST_CHARACTERS:
        words.say("camid not in {}", [code_text(text) for text in sorted(where.not_camids)])
    if where.since is not None:
        words.say("timestamp >= {}", where.since)
    if where.until is not None:
        words.say("timestamp < {}", where.until)
        words.say("timestamp >= {}", NO_TIME + 1)


def _say_condition(words: _Words, condition: Condition) -> None:
    name = f'attributes["{condition.name}"]'
    if not condition.values:
        words.say("row < {}", 0)
    elif condition.test not in ("==", "in"):
        words.say(f"{name} {condition.test} {{}}", _comparable(condition.values[0]))
    elif len(condition.values) <= MOST_VALUES:
        tests = (f"{name} == {words.value(_comparable(value))}" for value in condition.values)
        words._terms.append(f"({' or '.join(tests)})")


def _comparable(value: Attribute) -> Value:
    return float(value) if kind_of(value) == "number" else value
