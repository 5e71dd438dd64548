import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.errors import QueryError
from reidserve.index.entry import MAX_TEXT, MAX_TIMESTAMP, Entry
from reidserve.index.filters import Condition, Filter, all_of
from reidserve.index.grammar import format_filter, parse_filter

NEW_YEAR = 1_704_067_200_000_000  # 2024-01-01T00:00:00Z

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
few_texts = st.sampled_from(["", "0", "1", "c1", "red", "true", 'a "b"', "\\", "é", "and", "in", "\n"])
names = st.sampled_from(["a", "b", "colour", "pids", "attributes"])
integers = st.integers(-(2**53), 2**53)
floats = st.floats(allow_nan=False, allow_infinity=False)
few_values = st.sampled_from([0, 1, 1.0, 2, 0.5, -0.0, True, False, "1", "true", "red"])
values = few_values | integers | floats | st.booleans() | texts
moments = st.integers(-3, 3) | st.integers(-MAX_TIMESTAMP, MAX_TIMESTAMP)
sets = st.none() | st.frozensets(few_texts | texts, max_size=7)


@st.composite
def conditions(draw):
    test = draw(st.sampled_from(["==", "in", "in", "<", "<=", ">", ">="]))
    if test == "in":
        return Condition(draw(names), test, tuple(draw(st.lists(values, max_size=8))))
    numbers = st.sampled_from([0, 1, 1.0, 0.5, -0.0]) | integers | floats
    return Condition(draw(names), test, (draw(values if test == "==" else numbers),))


filters = st.builds(
    Filter,
    ids=sets,
    pids=sets,
    camids=sets,
    not_camids=st.frozensets(few_texts | texts, max_size=7),
    since=st.none() | moments,
    until=st.none() | moments,
    attributes=st.lists(conditions(), max_size=3).map(tuple),
)
entries = st.builds(
    Entry,
    id=st.text("ab", min_size=1, max_size=2),
    pid=st.none() | few_texts,
    camid=st.none() | few_texts,
    timestamp=st.none() | moments,
    attributes=st.dictionaries(names, values, max_size=3),
)

CAR = Entry("x", pid="7", camid="c1", timestamp=100, attributes={"colour": "red", "speed": 7, "parked": True})
BARE = Entry("y")


@pytest.mark.parametrize(
    ("where", "car", "bare"),
    [
        (Filter(), True, True),
        (Filter(ids=frozenset({"x", "z"})), True, False),
        (Filter(pids=frozenset({"7"})), True, False),
        (Filter(pids=frozenset({"07"})), False, False),
        (Filter(camids=frozenset({"c1"})), True, False),
        (Filter(camids=frozenset()), False, False),
        (Filter(ids=frozenset()), False, False),
        (Filter(not_camids=frozenset({"c1"})), False, True),
        (Filter(not_camids=frozenset({"c2"})), True, True),
        (Filter(camids=frozenset({"c1"}), not_camids=frozenset({"c1"})), False, False),
        (Filter(since=100), True, False),
        (Filter(since=101), False, False),
        (Filter(until=100), False, False),
        (Filter(until=101), True, False),
        (Filter(since=-MAX_TIMESTAMP), True, False),
        (Filter(since=200, until=100), False, False),
        (Filter(pids=frozenset({"7"}), camids=frozenset({"c2"})), False, False),
    ],
)
def test_an_entry_must_be_all_that_is_asked_and_one_without_the_field_is_not(where: Filter, car: bool, bare: bool):
    assert (where.accepts(CAR), where.accepts(BARE)) == (car, bare)


@pytest.mark.parametrize(
    ("name", "test", "asked", "accepted"),
    [
        ("speed", "==", (7,), True),
        ("speed", "==", (7.0,), True),
        ("speed", "==", ("7",), False),
        ("speed", "in", (1, 7.0), True),
        ("speed", "in", (), False),
        ("speed", "<", (7,), False),
        ("speed", "<=", (7,), True),
        ("speed", ">", (6.5,), True),
        ("speed", ">=", (7.5,), False),
        ("parked", "==", (True,), True),
        ("parked", "==", (1,), False),
        ("parked", "in", (1, "true", False), False),
        ("parked", ">=", (0,), False),
        ("colour", "==", ("red",), True),
        ("colour", "==", ("Red",), False),
        ("colour", ">", (0,), False),
        ("missing", "in", (1, True, "red"), False),
    ],
)
def test_numbers_compare_with_numbers_texts_with_texts_and_booleans_with_booleans(name, test, asked, accepted: bool):
    assert Filter(attributes=(Condition(name, test, asked),)).accepts(CAR) is accepted


def test_conditions_are_equal_when_they_ask_the_same_and_one_is_not_true():
    distinct = [Condition("a", "==", (value,)) for value in (1, True, "1", 2, False, 0)]
    for first, second in itertools.combinations(distinct, 2):
        assert first != second
        assert Filter(attributes=(first,)) != Filter(attributes=(second,))
    assert len(set(distinct)) == len(distinct)
    for first, second in [
        (Condition("a", "==", (1,)), Condition("a", "==", (1.0,))),
        (Condition("a", "in", (2, "x", True, 1)), Condition("a", "in", (1, True, "x", 2.0, 2))),
        (Condition("a", "in", ("x",)), Condition("a", "==", ("x",))),
    ]:
        assert first == second
        assert hash(first) == hash(second)
    assert Condition("a", "in", (1, True)) != Condition("a", "==", (1,))
    assert Condition("a", "==", (1,)) != ("a", "==", (1,))


@settings(deadline=None)
@given(st.lists(conditions(), max_size=4), st.randoms())
def test_the_order_of_conditions_does_not_matter(said: list[Condition], random):
    first = Filter(attributes=tuple(said))
    random.shuffle(said)
    assert Filter(attributes=(*said, *said)) == first
    assert hash(Filter(attributes=tuple(said))) == hash(first)


@settings(deadline=None)
@given(st.lists(filters, max_size=4), st.lists(entries, max_size=6))
def test_all_of_filters_lets_through_what_each_of_them_does(said: list[Filter], asked: list[Entry]):
    both = all_of(said)
    for entry in asked:
        assert both.accepts(entry) == all(each.accepts(entry) for each in said)


@pytest.mark.parametrize(
    ("name", "test", "asked", "message"),
    [
        ("a", "!=", (1,), "an attribute's test must be ==, in, <, <=, > or >=, got '!='"),
        ("a", "==", [1], "an attribute's test needs a tuple of values, got [1]"),
        ("a", "==", (), "a == needs one value, got 0"),
        ("a", "<", (1, 2), "a < needs one value, got 2"),
        ("a", "<", ("1",), 'a < needs a number, got "1"'),
        ("a", ">=", (True,), "a >= needs a number, got true"),
        ("pid", "==", ("1",), "an attribute's name must be a word of letters, digits and _ that is not a field's, got"),
        ("a b", "in", (), "an attribute's name must be a word"),
        (7, "in", (), "an attribute's name must be text, got 7"),
        ("a", "==", (math.nan,), "attribute a must be text (up to 4096 characters), a finite number, "),
        ("a", "in", (1, None), "attribute a must be text"),
        ("a", "==", (2**53 + 1,), "attribute a must be text"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(name, test, asked, message: str):
    with pytest.raises(QueryError) as refused:
        Condition(name, test, asked)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"pids": "abc"}, "a filter's pids must be a frozenset of texts, got 'abc'"),
        ({"not_camids": None}, "a filter's not_camids must be a frozenset of texts, got None"),
        ({"ids": frozenset({7})}, "a filter's ids must be Unicode texts of up to 4096 characters, got '7'"),
        ({"camids": frozenset({"x" * (MAX_TEXT + 1)})}, "a filter's camids must be Unicode texts of up to 4096"),
        ({"camids": frozenset({"\udcff"})}, "a filter's camids must be Unicode texts"),
        ({"since": 1.5}, "a filter's since must be microseconds of 64 bits, got 1.5"),
        ({"until": True}, "a filter's until must be microseconds of 64 bits, got True"),
        ({"until": 2**63}, "a filter's until must be microseconds of 64 bits, got 9223372036854775808"),
        ({"attributes": ("a",)}, "a filter's attributes must be a tuple of conditions, got ('a',)"),
    ],
)
def test_a_filter_of_values_that_no_entry_can_have_is_refused(said, message: str):
    with pytest.raises(QueryError) as refused:
        Filter(**said)
    assert str(refused.value).startswith(message)


def attribute(name, test, *asked) -> Filter:
    return Filter(attributes=(Condition(name, test, asked),))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("pid == 0017", Filter(pids=frozenset({"0017"}))),
        ("pid==true", Filter(pids=frozenset({"true"}))),
        (" id in ( a/b.jpg ,é,3 )\n", Filter(ids=frozenset({"a/b.jpg", "é", "3"}))),
        ('pid == "red car \\"7\\" \\\\ (x)"', Filter(pids=frozenset({'red car "7" \\ (x)'}))),
        ('pid == ""', Filter(pids=frozenset({""}))),
        ("pid in ()", Filter(pids=frozenset())),
        ('pid == "and"', Filter(pids=frozenset({"and"}))),
        ("camid != c1", Filter(not_camids=frozenset({"c1"}))),
        ("camid not in (c1,c2) and camid != c3", Filter(not_camids=frozenset({"c1", "c2", "c3"}))),
        ("camid in (a, b) and camid in (b, c)", Filter(camids=frozenset({"b"}))),
        ("camid == a and camid == b", Filter(camids=frozenset())),
        ("timestamp >= 2024-01-01T00:00:00Z", Filter(since=NEW_YEAR)),
        ('timestamp < "2024-01-01 02:00:00+02:00"', Filter(until=NEW_YEAR)),
        ("timestamp >= 5 and timestamp >= -7 and timestamp < 9 and timestamp < 8", Filter(since=5, until=8)),
        ("speed == 7", attribute("speed", "==", 7)),
        ('speed == "7"', attribute("speed", "==", "7")),
        ("speed == 007", attribute("speed", "==", "007")),
        ("speed<=-1.5e3", attribute("speed", "<=", -1500)),
        ("parked == true", attribute("parked", "==", True)),
        ("attributes.colour in (red, 1, false)", attribute("colour", "in", "red", 1, False)),
        ("colour in ()", attribute("colour", "in")),
        ("attributes.pids == 1", attribute("pids", "==", 1)),
        ("attributes == 1", attribute("attributes", "==", 1)),
        ("a > 1 and a <= 2", all_of([attribute("a", ">", 1), attribute("a", "<=", 2)])),
    ],
)
def test_a_text_becomes_the_filter_it_asks_for(text: str, where: Filter):
    assert parse_filter(text) == where


FIELD = "expected id, pid, camid, timestamp or an attribute's name"
VALUE = "expected a value (a word, or a text in double quotes)"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("", 1, f"{FIELD}, got the end"),
        ("  ", 3, f"{FIELD}, got the end"),
        ("pid == 1 and", 13, f"{FIELD}, got the end"),
        ("== 1", 1, f"{FIELD}, got '=='"),
        ('"pid" == 1', 1, f"{FIELD}, got 'pid'"),
        ("source == x", 1, f"{FIELD} (an attribute's name must be a word of letters, digits and _ that is not a "),
        ("and == x", 1, f"{FIELD} (an attribute's name"),
        ("attribute.colour == x", 1, f"{FIELD} (an attribute's name"),
        ("pids == 1", 1, "expected pid (or attributes.pids, if there is one), got 'pids'"),
        ("a == 1 and Camid == 1", 12, "expected camid (or attributes.Camid, if there is one), got 'Camid'"),
        ("pid", 4, "expected == or in, got the end"),
        ("pid 1", 5, "expected == or in, got '1'"),
        ("pid = 1", 5, "expected == or in, got '='"),
        ("pid != 1", 5, "expected == or in, got '!='"),
        ("pid not in (1)", 5, "expected == or in, got 'not'"),
        ("camid < 1", 7, "expected ==, in, != or not in, got '<'"),
        ("camid not (1)", 11, "expected 'in', got '('"),
        ("timestamp > 5", 11, "expected >= or <, got '>'"),
        ("colour != red", 8, "expected ==, in, <, <=, > or >=, got '!='"),
        ('colour "in" (1)', 8, "expected ==, in, <, <=, > or >=, got 'in'"),
        ("pid ==", 7, f"{VALUE}, got the end"),
        ("pid == and camid == 1", 8, f"{VALUE}, got 'and'"),
        ("pid == (1)", 8, f"{VALUE}, got '('"),
        ("pid in 1", 8, "expected '(', got '1'"),
        ("pid in (1, )", 12, f"{VALUE}, got ')'"),
        ("pid in (1 2)", 11, "expected ',' or ')', got '2'"),
        ("pid in (1, 2", 13, "expected ',' or ')', got the end"),
        ("pid == red car", 12, "expected 'and', got 'car'"),
        ("pid == 1 AND pid == 2", 10, "expected 'and', got 'AND'"),
        ("pid == 1 or pid == 2", 10, "expected 'and', got 'or'"),
        ("pid == 'x'", 8, "expected a word or a text in double quotes, got \"'x'\""),
        ('pid == "x', 8, "expected a word or a text in double quotes, got '\"x'"),
        ('pid == "\\n"', 8, "expected a word or a text in double quotes"),
        ("timestamp >= yesterday", 14, "the timestamp 'yesterday' is not ISO 8601"),
        ("timestamp >= 2024-01-01", 14, "the timestamp '2024-01-01' has no time zone (end it in Z for UTC)"),
        ("pid == 1 and speed < fast", 14, 'speed < needs a number, got "fast"'),
    ],
)
def test_a_wrong_text_is_refused_with_the_place_and_what_was_expected(text: str, place: int, problem: str):
    with pytest.raises(QueryError) as refused:
        parse_filter(text)
    assert str(refused.value).startswith(f"the filter is wrong at character {place}: {problem}")


@settings(max_examples=300, deadline=None)
@given(filters)
def test_a_filter_is_read_back_from_its_text(where: Filter):
    text = format_filter(where)
    if where == Filter():
        assert text == ""
    else:
        assert parse_filter(text) == where
        assert format_filter(parse_filter(text)) == text


def test_a_filter_is_written_for_people():
    where = parse_filter('camid != c2 and timestamp >= 2024-01-01T02:00:00+02:00 and colour in (red,"7",7) and v<1.50')
    assert format_filter(where) == (
        'camid not in ("c2") and timestamp >= 2024-01-01T00:00:00+00:00 and '
        'attributes.colour in (7, "7", "red") and attributes.v < 1.5'
    )


marks = ["==", "!=", "<", ">=", "=", "(", ")", ",", '"', "'", "\\", " ", "\n", "\x00", "\ud800"]
words = ["id", "pid", "camid", "timestamp", "colour", "attributes.", "and", "in", "not", "1", "-7.5", "true", "9" * 25]
pieces = st.sampled_from([*marks, *words, "2024-01-01T00:00:00Z"])


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters()) | st.lists(pieces | st.characters(), max_size=14).map(" ".join))
def test_any_text_is_a_filter_or_refused(text: str):
    try:
        where = parse_filter(text)
    except QueryError as error:
        str(error).encode()
    else:
        assert parse_filter(format_filter(where)) == where


def test_long_texts_are_read_in_time_that_grows_as_they_do():
    many = [f"p{number}" for number in range(20_000)]
    assert parse_filter(f"pid in ({','.join(many)})") == Filter(pids=frozenset(many))
    assert len(parse_filter(" and ".join(f"{name} == 1" for name in many)).attributes) == len(many)
    for hostile in ('pid == "' + "x" * 200_000, " " * 200_000 + "'", '"' * 200_000):
        with pytest.raises(QueryError):
            parse_filter(hostile)
