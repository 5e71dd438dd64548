import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.datasets import Attribute
from reidserve.index.entry import MAX_TIMESTAMP, Entry
from reidserve.index.filters import Condition, Filter
from reidserve.index.search.columns import MAX_COLUMNS, MISSING, UNKNOWN, Codes, Columns, Sought

# Few of each, so that filters find some of them; more than a handful, so that sets get large.
words = st.sampled_from(["", "0", "1", "c1", "c2", "red", "blue", "true", "é", "\U0001f697", "\x00", "a" * 50])
ids = st.integers(0, 40).map("img/{}.jpg".format)
moments = st.integers(-4, 4) | st.sampled_from([MAX_TIMESTAMP, -MAX_TIMESTAMP])
names = st.sampled_from(["a", "b", "colour"])
numbers = st.sampled_from([0, 1, 1.0, 2, 0.5, -0.0, -3, 7, 8, 9, 2**53, 2**53 - 1, float(2**53), 5e-324])
values = numbers | st.booleans() | words
sets = st.none() | st.frozensets(words, max_size=12)

entries = st.builds(
    Entry,
    id=ids,
    pid=st.none() | words,
    camid=st.none() | words,
    timestamp=st.none() | moments,
    attributes=st.dictionaries(names, values, max_size=3),
)


@st.composite
def conditions(draw):
    test = draw(st.sampled_from(["==", "in", "in", "<", "<=", ">", ">="]))
    if test == "in":
        return Condition(draw(names), test, tuple(draw(st.lists(values, max_size=15))))
    return Condition(draw(names), test, (draw(values if test == "==" else numbers),))


attributes = st.lists(conditions(), max_size=2).map(tuple)
# Of the whole, of one thing at a time (which lets more through), and of nothing.
filters = (
    st.builds(
        Filter,
        ids=st.none() | st.frozensets(ids, max_size=20),
        pids=sets,
        camids=sets,
        not_camids=st.frozensets(words, max_size=8),
        since=st.none() | moments,
        until=st.none() | moments,
        attributes=attributes,
    )
    | st.builds(Filter, ids=st.frozensets(ids, max_size=40))
    | st.builds(Filter, pids=sets)
    | st.builds(Filter, camids=sets, not_camids=st.frozensets(words, max_size=8))
    | st.builds(Filter, since=st.none() | moments, until=st.none() | moments)
    | st.builds(Filter, attributes=attributes)
)


def matching(columns: Columns, where: Filter, count: int) -> np.ndarray:
    return columns.matching(Sought(columns.codes, where), count)


def plainly(where: Filter, held: list[Entry]) -> list[bool]:
    return [where.accepts(entry) for entry in held]


def columns_of(*batches: list[Entry], codes: Codes | None = None, room: int = 0) -> Columns:
    columns = Columns(codes or Codes(), sum(map(len, batches)) + room)
    for batch in batches:
        columns.append(batch)
    return columns


@settings(max_examples=400, deadline=None)
@given(
    batches=st.lists(st.lists(entries, max_size=12), max_size=4),
    wheres=st.lists(filters, min_size=1, max_size=4),
    room=st.integers(0, 3),
    part=st.floats(0, 1),
)
def test_matching_says_what_accepts_says_of_each_entry(batches, wheres, room: int, part: float):
    columns = columns_of(*batches, room=room)
    held = [entry for batch in batches for entry in batch]
    assert columns.entries == held
    for where in wheres:
        for count in (len(held), int(part * len(held)), 0):
            found = matching(columns, where, count)
            assert found.dtype == np.bool_
            assert found.tolist() == plainly(where, held[:count])


@settings(deadline=None)
@given(batches=st.lists(st.lists(entries, max_size=8), max_size=3), name=ids, part=st.floats(0, 1))
def test_an_id_is_found_at_each_of_its_places(batches, name: str, part: float):
    columns = columns_of(*batches)
    count = int(part * len(columns.entries))
    assert columns.find(name, count) == [row for row, entry in enumerate(columns.entries[:count]) if entry.id == name]


class Same(str):
    """Texts that all have one hash."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


@pytest.mark.parametrize("asked", [1, 9])
def test_ids_of_one_hash_are_told_apart(asked: int):
    columns = columns_of([Entry(Same(number)) for number in range(20)])
    where = Filter(ids=frozenset(Same(number) for number in range(0, 2 * asked, 2)))
    assert np.flatnonzero(matching(columns, where, 20)).tolist() == list(range(0, 2 * asked, 2))
    assert columns.find(Same(3), 20) == [3]
    assert columns.find(Same(99), 20) == []


@pytest.mark.parametrize(
    "where",
    [
        Filter(ids=frozenset(f"img/{number}" for number in range(0, 9000, 3))),
        Filter(pids=frozenset(map(str, range(0, 500, 2)))),
        Filter(camids=frozenset({"c1", "unheard of"})),
        Filter(not_camids=frozenset(f"c{number}" for number in range(6))),
        Filter(since=100, until=7000),
        Filter(attributes=(Condition("speed", "<", (1500,)), Condition("colour", "in", ("red", 3, True)))),
        Filter(attributes=(Condition("speed", "in", tuple(range(0, 9000, 7))),)),
        Filter(),
    ],
)
def test_many_entries_in_several_columns(where: Filter):
    codes = Codes()
    rng = np.random.default_rng(0)
    colours: list[Attribute] = ["red", "blue", 3, True]
    held = [
        Entry(
            f"img/{number}",
            pid=str(number % 1000),
            camid=None if number % 11 == 0 else f"c{number % 8}",
            timestamp=None if number % 13 == 0 else number,
            attributes={"speed": int(rng.integers(5000)), "colour": colours[number % 4]},
        )
        for number in range(8000)
    ]
    blocks = [columns_of(held[start : start + 2000], codes=codes) for start in range(0, 8000, 2000)]
    found = np.concatenate([matching(block, where, 2000) for block in blocks])
    assert found.tolist() == plainly(where, held)
    assert found.any()


def test_a_name_that_comes_late_is_missing_before():
    columns = Columns(Codes(), 10)
    columns.append([Entry("1"), Entry("2", attributes={"a": 1})])
    columns.append([Entry("3", attributes={"a": "x", "late": 1.5}), Entry("4", attributes={"late": "x"})])
    for condition, rows in [
        (Condition("late", ">", (0,)), [2]),
        (Condition("late", "in", ("x", 1.5)), [2, 3]),
        (Condition("a", "in", ("x", 1)), [1, 2]),
        (Condition("never", "in", ("x", 1)), []),
    ]:
        assert np.flatnonzero(matching(columns, Filter(attributes=(condition,)), 4)).tolist() == rows


@pytest.mark.parametrize("value", [1, "x"])
def test_names_beyond_the_arrays_cost_no_memory_and_are_asked_one_by_one(value):
    columns = Columns(Codes(), 100)
    held = [Entry(str(number), attributes={f"n{number}": value, "all": "y"}) for number in range(100)]
    columns.append(held[:50])
    columns.append(held[50:])
    assert columns.nbytes <= 100 * (24 + (8 + 4) * MAX_COLUMNS)
    for number in range(100):
        where = Filter(attributes=(Condition(f"n{number}", "in", (1, "x")), Condition("all", "==", ("y",))))
        assert matching(columns, where, 100).tolist() == plainly(where, held)


def test_more_entries_than_the_capacity_are_refused_whole():
    columns = Columns(Codes(), 3)
    columns.append([Entry("1"), Entry("2")])
    with pytest.raises(ValueError, match="columns hold 3 entries, got 4"):
        columns.append([Entry("3", attributes={"a": 1}), Entry("4")])
    columns.append([Entry("5")])
    assert [entry.id for entry in columns.entries] == ["1", "2", "5"]
    assert not matching(columns, Filter(attributes=(Condition("a", "==", (1,)),)), 3).any()


def test_codes_are_kept_and_unknown_values_get_none():
    codes = Codes()
    assert [codes.add(value) for value in ("a", True, "True", False, "a", None)] == [0, 1, 2, 3, 0, MISSING]
    assert [codes.find(value) for value in ("a", True, "True", "b", None)] == [0, 1, 2, UNKNOWN, MISSING]
    assert len(codes) == 4


def test_rows_below_a_count_stay_what_they_are_while_a_thread_appends() -> None:
    columns = Columns(Codes(), 6000)
    held = [
        Entry(
            f"{number}",
            pid=str(number % 97),
            camid=str(number % 5),
            timestamp=number,
            attributes={f"n{number // 60}": number, "kind": f"k{number % 50}"},
        )
        for number in range(6000)
    ]
    wheres = [
        Filter(camids=frozenset("024")),
        Filter(pids=frozenset(map(str, range(0, 97, 3)))),
        Filter(ids=frozenset(map(str, range(0, 6000, 7)))),
        Filter(attributes=(Condition("kind", "in", tuple(f"k{number}" for number in range(0, 50, 2))),)),
        Filter(attributes=(Condition("n0", "<", (30,)),), until=4000),
        Filter(attributes=(Condition("n80", "<", (4830,)),)),
    ]
    expected = [np.array(plainly(where, held)) for where in wheres]
    wrong: list[object] = []
    done = threading.Event()

    def read() -> None:
        try:
            last = False
            while not last:
                last = done.is_set()
                count = len(columns.entries)
                for where, right in zip(wheres, expected, strict=True):
                    if not np.array_equal(matching(columns, where, count), right[:count]):
                        wrong.append((where, count))
        except Exception as error:  # noqa: BLE001 - of a thread, for the test
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for start in range(0, 6000, 20):
        columns.append(held[start : start + 20])
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
