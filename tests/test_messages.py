from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from reidserve.client import Filter as Asked
from reidserve.client.filters import filter_message, read_attributes, read_time
from reidserve.errors import QueryError
from reidserve.index import Entry, Hit
from reidserve.index.filters import Condition, Filter
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.wire.messages import MAX_CONDITIONS, MAX_TEXTS, MAX_VALUES, hit_message, read_filter

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = -62_135_596_800_000_000, 253_402_300_799_999_999

names = st.from_regex(r"[a-z]{1,3}_[0-9]{0,2}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = texts | numbers | st.booleans()
choices = st.none() | st.frozensets(texts, max_size=3)
times = st.none() | st.integers(FIRST, LAST)
conditions = (
    st.builds(Condition, names, st.just("=="), st.tuples(values))
    | st.builds(Condition, names, st.just("in"), st.lists(values, max_size=3).map(tuple))
    | st.builds(Condition, names, st.sampled_from(["<", "<=", ">", ">="]), st.tuples(numbers))
)
filters = st.builds(
    Filter,
    ids=choices,
    pids=choices,
    camids=choices,
    not_camids=st.frozensets(texts, max_size=3),
    since=times,
    until=times,
    attributes=st.lists(conditions, max_size=3).map(tuple),
)


def asked_for(where: Filter) -> Asked:
    """The same filter as a caller of the client writes it."""
    since, until = (
        None if time is None else EPOCH + timedelta(microseconds=time) for time in (where.since, where.until)
    )
    attributes = [
        (one.name, one.test, list(one.values) if one.test == "in" else one.values[0]) for one in where.attributes
    ]
    return Asked(where.ids, where.pids, where.camids, where.not_camids, since, until, attributes)


def types_of(where: Filter) -> list[list[type]]:
    """Python takes 1, 1.0 and True for equal."""
    return [[type(value) for value in condition.values] for condition in where.attributes]


@given(filters)
@example(Filter())
@example(Filter(ids=frozenset(), not_camids=frozenset(), since=FIRST, until=LAST))
@example(Filter(attributes=(Condition("a_", "in", (1, True, 1.0, "1")), Condition("b_", "in", ()))))
@example(Filter(attributes=(Condition("a_", "==", (2**53,)), Condition("a_", ">=", (-(2**53),)))))
def test_a_filter_of_the_client_arrives_as_it_was_meant(where: Filter):
    sent = filter_message(asked_for(where)).SerializeToString(deterministic=True)
    arrived = read_filter(reid_pb2.Filter.FromString(sent))
    assert arrived == where
    assert types_of(arrived) == types_of(where)


@given(times, st.dictionaries(names, values, max_size=5))
@example(FIRST, {"flag": True, "one": 1, "number": 1.0, "text": "1"})
@example(LAST, {})
@example(-1, {})
def test_a_hit_arrives_with_its_time_and_attributes(time, attributes):
    raw = hit_message(Hit(Entry("a", "7", None, time, None, attributes), 0.5, 3)).SerializeToString()
    hit = reid_pb2.Hit.FromString(raw)
    assert (hit.entry_id, hit.pid, hit.HasField("camid"), hit.score, hit.rank) == ("a", "7", False, 0.5, 3)
    arrived = read_attributes(hit.attributes)
    assert arrived == attributes
    assert {name: type(value) for name, value in arrived.items()} == {
        name: type(value) for name, value in attributes.items()
    }
    assert hit.HasField("timestamp") is (time is not None)
    if time is not None:
        assert read_time(hit.timestamp) == EPOCH + timedelta(microseconds=time)


@pytest.mark.parametrize("time", [FIRST - 1, LAST + 1, 2**63 - 1, -(2**63) + 1])
def test_a_time_that_no_timestamp_may_say_is_left_out_of_a_hit(time):
    assert not hit_message(Hit(Entry("a", timestamp=time), 0.5, 1)).HasField("timestamp")


def test_a_value_of_a_kind_this_client_does_not_know_is_left_out():
    assert read_attributes({"new": reid_pb2.Value(), "old": reid_pb2.Value(integer=1)}) == {"old": 1}


def condition(**fields) -> reid_pb2.Filter:
    return reid_pb2.Filter(attributes=[reid_pb2.AttributeCondition(**fields)])


NUMBER = reid_pb2.Value(number=1)

WRONG = {
    "no test": (condition(name="speed"), "'speed' must have a test, one of equal, any_of"),
    "no value": (condition(name="speed", equal=reid_pb2.Value()), "'speed' with nothing"),
    "no value among some": (condition(name="speed", any_of={"values": [NUMBER, {}]}), "'speed' with nothing"),
    "no name": (condition(equal=NUMBER), "name"),
    "a name that is a field's": (condition(name="pid", equal=NUMBER), "'pid'"),
    "a name that is no word": (condition(name="a b", any_of={}), "'a b'"),
    "order of text": (condition(name="colour", less={"text": "red"}), "number"),
    "order of booleans": (condition(name="parked", at_least={"boolean": True}), "number"),
    "an integer that no double holds": (condition(name="speed", equal={"integer": 2**53 + 1}), "2**53"),
    "the least of 64 bits": (condition(name="speed", at_most={"integer": -(2**63)}), "2**53"),
    "no finite number": (condition(name="speed", greater={"number": float("nan")}), "finite"),
    "infinity": (condition(name="speed", any_of={"values": [{"number": float("inf")}]}), "finite"),
    "a long text": (condition(name="colour", equal={"text": "x" * 4097}), "4096"),
    "half a microsecond": (reid_pb2.Filter(since=Timestamp(nanos=500)), "since must have whole microseconds"),
    "a negative rest": (reid_pb2.Filter(until=Timestamp(nanos=-1000)), "until must be of the years 1 to 9999"),
    "a second of nanoseconds": (reid_pb2.Filter(until=Timestamp(nanos=10**9)), "until must be of the years"),
    "the year 0": (reid_pb2.Filter(since=Timestamp(seconds=FIRST // 10**6 - 1)), "since must be of the years 1"),
    "the year 10,000": (reid_pb2.Filter(since=Timestamp(seconds=LAST // 10**6 + 1)), "since must be of the years 1"),
    "too many conditions": (
        reid_pb2.Filter(attributes=[reid_pb2.AttributeCondition(name="a")] * (MAX_CONDITIONS + 1)),
        "64 conditions",
    ),
    "too many texts": (
        reid_pb2.Filter(ids=reid_pb2.Choice(any_of=["a"] * MAX_TEXTS), exclude_camids=["1"]),
        "100,000 ids, pids and camids, got 100,001",
    ),
    "too many values": (condition(name="speed", any_of={"values": [NUMBER] * (MAX_VALUES + 1)}), "got 10,001"),
}


@pytest.mark.parametrize(("message", "reason"), WRONG.values(), ids=WRONG)
def test_a_message_that_means_no_filter_is_refused(message, reason):
    with pytest.raises(QueryError) as refusal:
        read_filter(message)
    assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"camids": "c1"}, "camids must be a collection of texts, got 'c1'"),
        ({"pids": 7}, "pids must be a collection of texts, got 7"),
        ({"pids": [7]}, "pids must be texts in Unicode, got 7"),
        ({"ids": ["a\udcff"]}, "ids must be texts in Unicode"),
        ({"not_camids": None}, "not_camids must be a collection of texts, got None"),
        ({"since": datetime(2026, 1, 1)}, "since must be a datetime with a time zone"),
        ({"until": 5}, "until must be a datetime with a time zone, got 5"),
        ({"since": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))}, "since must be of the years 1 to 9999"),
        ({"attributes": None}, "attributes must be a sequence of conditions, got None"),
        ({"attributes": ["speed"]}, "a condition must be a name, one of ==, in, <"),
        ({"attributes": [("speed", "=", 3)]}, "got ('speed', '=', 3)"),
        ({"attributes": [("colour", "in", "red")]}, "got ('colour', 'in', 'red')"),
        ({"attributes": [("colour", "<", "red")]}, "colour < must be followed by a number, got 'red'"),
        ({"attributes": [("parked", ">=", True)]}, "parked >= must be followed by a number, got True"),
        ({"attributes": [("speed", "==", 2**53 + 1)]}, "up to 2**53, got 54 bits"),
        ({"attributes": [("speed", "in", [10**5000])]}, "up to 2**53"),
        ({"attributes": [("speed", "<", float("nan"))]}, "finite number"),
        ({"attributes": [("speed", "==", [3])]}, "speed must be compared with"),
        ({"attributes": [("speed", "in", [None])]}, "got None"),
        ({"attributes": [("s\udcff", "==", 3)]}, "name must be Unicode"),
    ],
)
def test_a_filter_that_cannot_be_asked_is_refused_where_it_is_made(fields, reason):
    with pytest.raises(QueryError) as refusal:
        Asked(**fields)
    assert reason in str(refusal.value)


def test_a_filter_of_the_client_is_a_value():
    once = Asked(camids=["c2", "c1"], attributes=[("colour", "in", ["red"])])
    assert once == Asked(camids={"c1", "c2"}, attributes=(("colour", "in", ("red",)),))
    assert {once: 1}[once] == 1
    assert once.camids == frozenset({"c1", "c2"})
