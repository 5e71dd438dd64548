"""The small language that people write filters in."""

import re
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import NamedTuple, NoReturn

from reidserve.datasets import Attribute, read_attribute, read_timestamp, wrong_attributes
from reidserve.errors import DatasetError, QueryError
from reidserve.index.filters import ORDERS, Condition, Filter, all_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_filter(text: str) -> Filter:
    r"""The filter that a text asks for: clauses joined by `and`, all of which must hold.

        camid != c2 and timestamp >= 2024-05-01T08:00:00+02:00 and timestamp < 2024-05-01T20:00:00Z
        pid in (0017, 0018, "red car")
        camid not in (c1, c2) and colour == red and speed <= 13.9 and attributes.kind in (bus, truck)

    `id`, `pid`, `camid`: `==` TEXT or `in` (TEXT, ...); `camid` also `!=` and `not in`, which let an unknown camera
    through. `timestamp`: `>=` or `<` and a moment, ISO 8601 with a time zone or microseconds since 1970 UTC. Any
    other name is an attribute, `colour` or `attributes.colour`: `==`, `<`, `<=`, `>`, `>=` VALUE or `in` (VALUE, ...).

    A value is a bare word or stands in double quotes, in which \" is a quote and \\ a backslash; it needs them for
    spaces, ( ) , = ! < > and quotes, and to be `and`, `in` or `not`. A pid 0017 is always text; an attribute's value
    is what `read_attribute` makes of it: 7 a number, true a boolean, red and "7" text. A field may come more than
    once; `()` lets nothing through. An empty text is wrong: what deletes by filter must not take it for all.

    Raises:
        QueryError: the text is wrong: where, what was expected, and what came.
    """
    reader = _Reader(_tokens(text))
    clauses = [reader.clause()]
    while reader.next.text is not None:
        reader.take_word("and")
        clauses.append(reader.clause())
    return all_of(clauses)


def format_filter(where: Filter) -> str:
    """The text that `parse_filter` reads back to an equal filter; empty for one that says nothing."""
    clauses = []
    for name, texts in (("id", where.ids), ("pid", where.pids), ("camid", where.camids)):
        if texts is not None:
            clauses.append(f"{name} in ({', '.join(map(_written, sorted(texts)))})")
    if where.not_camids:
        clauses.append(f"camid not in ({', '.join(map(_written, sorted(where.not_camids)))})")
    for test, moment in ((">=", where.since), ("<", where.until)):
        if moment is not None:
            clauses.append(f"timestamp {test} {_written_moment(moment)}")
    for condition in where.attributes:
        values = ", ".join(map(_written, condition.values))
        clauses.append(
            f"attributes.{condition.name} {condition.test} {f'({values})' if condition.test == 'in' else values}"
        )
    return " and ".join(clauses)


def _written(value: Attribute) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value).lower()


def _written_moment(moment: int) -> str:
    try:
        return (_EPOCH + timedelta(microseconds=moment)).isoformat()
    except OverflowError:
        return str(moment)


_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>==|!=|<=|>=|[<>(),=!])|"(?P<quoted>(?:[^"\\]|\\["\\])*)"|(?P<word>[^\s()<>=!,"']+)|(?P<end>\Z))"""
)
_KEYWORDS = ("and", "in", "not")
_TESTS = {"id": ("==", "in"), "pid": ("==", "in"), "camid": ("==", "in", "!=", "not in"), "timestamp": (">=", "<")}
_ATTRIBUTE_TESTS = ("==", "in", *ORDERS)


class _Token(NamedTuple):
    place: int  # of its first character, from 1
    kind: str  # "mark", "quoted", "word" or "end"
    text: str | None  # None at the end


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    start = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, start)
        if found is None:
            place = len(text) - len(text[start:].lstrip())
            _refuse(place + 1, "a word or a text in double quotes", text[place : place + 20])
        kind = str(found.lastgroup)
        word = re.sub(r"\\(.)", r"\1", found[kind]) if kind == "quoted" else found[kind]
        tokens.append(_Token(found.start(kind) + (kind != "quoted"), kind, None if kind == "end" else word))
        start = found.end()
    return tokens


def _refuse(place: int, expected: str, got: str | None) -> NoReturn:
    came = "the end" if got is None else repr(got[:80])
    raise QueryError(f"the filter is wrong at character {place}: expected {expected}, got {came}")


class _Reader:
    """Reads clauses off tokens, the last of which is the end."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._position = 0

    @property
    def next(self) -> _Token:
        return self._tokens[self._position]

    def take(self, expected: str, fits: bool) -> _Token:
        token = self.next
        if not fits:
            _refuse(token.place, expected, token.text)
        self._position += 1
        return token

    def take_word(self, word: str) -> None:
        self.take(repr(word), self.next[1:] == ("word", word))

    def clause(self) -> Filter:
        field = self.take("id, pid, camid, timestamp or an attribute's name", self.next.kind == "word")
        name = str(field.text)
        tests = _TESTS.get(name, _ATTRIBUTE_TESTS)
        if name not in _TESTS:
            name = _attribute_name(field)
        test = self.test(tests)
        if name == "timestamp":
            moment = _moment(self.value())
            return Filter(since=moment) if test == ">=" else Filter(until=moment)
        values = self.values() if test.endswith("in") else [self.value()]
        if name in _TESTS:
            texts = frozenset(str(value.text) for value in values)
            if test in ("!=", "not in"):
                return Filter(not_camids=texts)
            return {"id": Filter(ids=texts), "pid": Filter(pids=texts), "camid": Filter(camids=texts)}[name]
        try:
            return Filter(attributes=(Condition(name, test, tuple(map(_attribute, values))),))  # type: ignore[arg-type]
        except QueryError as error:
            raise QueryError(f"the filter is wrong at character {field.place}: {error}") from error

    def test(self, tests: tuple[str, ...]) -> str:
        expected = f"{', '.join(tests[:-1])} or {tests[-1]}"
        token = self.next
        if token[1:] == ("word", "not") and "not in" in tests:
            self.take(expected, True)
            self.take_word("in")
            return "not in"
        fits = token.kind in ("mark", "word") and token.text in tests
        return str(self.take(expected, fits).text)

    def values(self) -> list[_Token]:
        self.take("'('", self.next[1:] == ("mark", "("))
        values: list[_Token] = []
        while self.next[1:] != ("mark", ")"):
            if values:
                self.take("',' or ')'", self.next[1:] == ("mark", ","))
            values.append(self.value())
        self._position += 1
        return values

    def value(self) -> _Token:
        token = self.next
        fits = token.kind == "quoted" or (token.kind == "word" and token.text not in _KEYWORDS)
        return self.take("a value (a word, or a text in double quotes)", fits)


def _attribute_name(field: _Token) -> str:
    """Its name without `attributes.`, which a name much like a field's needs: `pids` is a slip more often."""
    word = str(field.text)
    name = word.removeprefix("attributes.")
    if wrong := wrong_attributes({name: True}):
        _refuse(field.place, f"id, pid, camid, timestamp or an attribute's name ({wrong})", word)
    near = get_close_matches(word.lower(), _TESTS, n=1, cutoff=0.8)
    if near:
        _refuse(field.place, f"{near[0]} (or attributes.{name}, if there is one)", word)
    return name


def _attribute(value: _Token) -> Attribute:
    return str(value.text) if value.kind == "quoted" else read_attribute(str(value.text))


def _moment(value: _Token) -> int:
    text = str(value.text)
    if re.fullmatch(r"[+-]?[0-9]{1,19}", text):
        return int(text)
    try:
        return read_timestamp(text)
    except DatasetError as error:
        raise QueryError(f"the filter is wrong at character {value.place}: {error}") from error
