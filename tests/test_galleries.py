"""What every gallery promises, wherever it is: one contract, held against each of tests/backends.py."""

import hashlib
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reidserve.datasets import Attribute, Attributes
from reidserve.errors import (
    EntryError,
    EntryNotFoundError,
    GalleryBehindError,
    GalleryError,
    GalleryLockedError,
    GalleryModelError,
    QueryError,
)
from reidserve.index import Entry, Filter, Origin, Record
from reidserve.index.places import open_gallery
from reidserve.index.storage.rows import Stored
from tests.backends import BACKENDS, Backend
from tests.conftest import backend_of, unit_rows
from tests.plain import Plain, assert_equal, assert_holds
from tests.test_filters import entries as any_entries
from tests.test_filters import filters as any_filters
from tests.test_gallery import ATTRIBUTES, FILTERS, content_of
from tests.test_store import ORIGIN, record


def full(count: int = 30) -> list[Record]:
    return [content_of(number, number % 12, number % 7) for number in range(count)]


def test_a_new_gallery_is_empty_and_says_what_it_is_of(backend: Backend):
    with backend.opened(ORIGIN) as gallery:
        assert (gallery.origin, len(gallery.snapshot), gallery.snapshot.generation) == (ORIGIN, 0, 0)
        assert gallery.snapshot.hits(gallery.snapshot.search(unit_rows(np.random.default_rng(0), 2, 8), top_k=3)) == [
            [],
            [],
        ]


def test_what_was_written_is_read_back_in_its_order(backend: Backend):
    plain = Plain()
    with backend.opened(ORIGIN) as gallery:
        plain.upsert(full())
        assert gallery.upsert(full()).changed == 30
        assert_holds(gallery.snapshot, plain)
        changed = [content_of(number, 4, number % 7) for number in (3, 9, 27)]
        assert gallery.upsert(changed).changed == plain.upsert(changed)
        assert_holds(gallery.snapshot, plain)
        np.testing.assert_array_equal(gallery.snapshot.rows(), [row for row, _ in plain.held.values()])


def test_every_text_that_an_entry_may_hold_comes_back(backend: Backend):
    texts = ['"', "\\", "'", "\n\r\t", "\0", "é 車", "\U0001f697", "{v0}", "%s", "a" * 4096, "é" * 4096]
    attributes: Attributes = {"text": 'a"b\\c\n\0', "flag": True, "whole": 1, "part": 1.0, "tiny": 5e-324, "big": 2**53}
    records = [
        Record(Entry(text, text, text, -(2**63) + 1, text, attributes), bytes([place]) * 32, record("", place).vector)
        for place, text in enumerate(texts)
    ]
    plain = Plain()
    plain.upsert(records)
    with backend.opened(ORIGIN) as gallery:
        assert gallery.upsert(records).changed == len(texts)
        assert gallery.upsert(records).changed == 0
        assert_holds(gallery.snapshot, plain)
        for text in texts:
            where = Filter(pids=frozenset({text}))
            assert [entry.id for entry in gallery.snapshot.matching(where)] == [text]
        assert gallery.delete(texts[:5]).changed == 5
        assert [entry.id for entry in gallery.snapshot.entries()] == texts[5:]


def test_equal_content_writes_nothing_and_a_change_is_one_generation(backend: Backend):
    with backend.opened(ORIGIN) as gallery:
        assert gallery.upsert([]).generation == 0
        first = gallery.upsert(full())
        assert gallery.upsert(full()) == type(first)(first.generation, 0)
        assert gallery.update([one.entry for one in full()]).changed == 0
        assert gallery.delete(["nobody"]).generation == gallery.snapshot.generation == 1
        assert gallery.delete(["e1", "nobody", "e1"]) == type(first)(2, 1)


def test_an_attribute_of_another_type_is_another(backend: Backend):
    with backend.opened(ORIGIN) as gallery:
        for place, said in enumerate(({"n": 1}, {"n": True}, {"n": 1.0}, {"n": "1"})):
            assert gallery.upsert([record("a", 1, attributes=said)]).generation == place + 1
            (entry,) = gallery.snapshot.entries()
            assert repr(dict(entry.attributes)) == repr(said)


def test_a_write_with_something_wrong_writes_nothing(backend: Backend):
    with backend.opened(ORIGIN) as gallery:
        gallery.upsert(full(3))
        long = Record(Entry("long"), bytes(32), np.ones(8, np.float32))
        with pytest.raises(EntryError, match="unit length"):
            gallery.upsert([record("new", 1), long])
        with pytest.raises(EntryError, match="comes twice"):
            gallery.upsert([record("new", 1), record("new", 2)])
        with pytest.raises(EntryError, match="8 dimensions"):
            gallery.upsert([record("new", 1), Record(Entry("b"), bytes(32), np.ones(1, np.float32))])
        with pytest.raises(EntryNotFoundError, match="'nobody'"):
            gallery.update([Entry("e0", pid="other"), Entry("nobody")])
        assert (len(gallery.snapshot), gallery.snapshot.generation) == (3, 1)
        assert gallery.snapshot.find("e0") == full(1)[0].entry


def test_what_is_said_of_an_entry_changes_and_its_embedding_stays(backend: Backend):
    with backend.opened(ORIGIN) as gallery:
        gallery.upsert(full(3))
        before = gallery.snapshot.vector(gallery.snapshot.row("e1"))
        assert gallery.update([Entry("e1", pid="else", attributes={"same": True})]).changed == 1
        assert gallery.snapshot.find("e1") == Entry("e1", pid="else", attributes={"same": True})
        np.testing.assert_array_equal(gallery.snapshot.vector(gallery.snapshot.row("e1")), before)
        assert [entry.id for entry in gallery.snapshot.entries()] == ["e0", "e2", "e1"]


@pytest.mark.parametrize("where", [None, *FILTERS])
def test_searches_are_brute_force_bit_by_bit(searched: tuple, where: Filter | None):
    gallery, plain = searched
    queries = unit_rows(np.random.default_rng(1), 5, 8)
    queries[2:4] = record("", 3).vector
    rows = np.array([row for row, _ in plain.held.values()])
    for top_k in (1, 3, 7, 10_000):
        for left_out in (None, rows[[0, 3, 5, 7, 20]]):
            said = {"top_k": top_k, "where": where, "left_out": left_out}
            assert_equal(gallery.snapshot.search(queries, **said), plain.search(queries, **said))
    whole = gallery.snapshot.rank_all(queries, where=where)
    assert_equal(whole, plain.search(queries, top_k=10_000, where=where))
    if where is not None:
        assert [entry.id for entry in gallery.snapshot.matching(where)] == plain.matching(where)


@pytest.fixture(scope="module", params=BACKENDS)
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A gallery of many equal vectors, and what it should hold."""
    plain = Plain()
    with backend_of(request, tmp_path_factory.mktemp("searched")).opened(ORIGIN) as gallery:
        for records in (full(60), [content_of(number, 3, 6) for number in range(0, 60, 5)]):
            gallery.upsert(records)
            plain.upsert(records)
        gallery.delete(["e7", "e8", "e21"])
        plain.delete(["e7", "e8", "e21"])
        yield gallery, plain


def test_an_entry_is_searched_with_and_left_out(searched: tuple):
    gallery, plain = searched
    row, held = plain.held["e9"]
    ranking = gallery.snapshot.search_entry("e9", top_k=5)
    assert_equal(ranking, plain.search(held.vector[np.newaxis], top_k=5, left_out=np.array([row])))
    (hits,) = gallery.snapshot.hits(ranking)
    assert [(hit.entry.id, hit.score, hit.rank) for hit in hits] == [
        (gallery_id(plain, row), score, rank)
        for rank, (row, score) in enumerate(zip(ranking.rows[0].tolist(), ranking.scores[0].tolist(), strict=True), 1)
    ]
    with pytest.raises(EntryNotFoundError, match="no entry 'nobody'"):
        gallery.snapshot.search_entry("nobody", top_k=5)


def gallery_id(plain: Plain, row: int) -> str:
    return next(name for name, (held, _) in plain.held.items() if held == row)


def test_entries_are_listed_from_any_row_on(searched: tuple):
    gallery, plain = searched
    listed = [(row, name) for name, (row, _) in plain.held.items()]
    for after in (-1, 0, listed[4][0], listed[-1][0]):
        found = [(row, entry.id) for row, entry in gallery.snapshot.listed(after=after)]
        assert found == [(row, name) for row, name in listed if row > after]


def test_a_wrong_question_is_refused_before_it_costs_anything(searched: tuple):
    snapshot = searched[0].snapshot
    query = record("", 1).vector[np.newaxis]
    with pytest.raises(QueryError, match=r"top_k must be 1 to 10,000, got 0"):
        snapshot.search(query, top_k=0)
    with pytest.raises(QueryError, match="have 8 dimensions, the query has 3"):
        snapshot.search(query[:, :3], top_k=1)
    with pytest.raises(QueryError, match="unit length"):
        snapshot.search(2 * query, top_k=1)


def test_entries_that_a_filter_accepts_are_removed(backend: Backend):
    plain = Plain()
    plain.upsert(full())
    where = Filter(pids=frozenset({"p1"}), since=2)
    with backend.opened(ORIGIN) as gallery:
        gallery.upsert(full())
        assert gallery.delete(where=where).changed == plain.delete(plain.matching(where)) > 0
        assert_holds(gallery.snapshot, plain)


def test_another_reader_sees_a_write_when_it_waits_for_it(backend: Backend):
    with backend.opened(ORIGIN) as gallery, closing(open_gallery(gallery.place)) as reader:
        written = gallery.upsert(full())
        assert reader.wait(written.generation, timeout=30).find("e3") == full()[3].entry
        assert len(reader.snapshot) == 30
        assert not reader.refresh()
        with pytest.raises(GalleryBehindError, match="is at generation 1, 9 was waited for"):
            reader.wait(9, timeout=0.01)
        with pytest.raises(GalleryError, match="was opened for reading"):
            reader.delete(["e3"])


def test_what_a_gallery_holds_outlives_whoever_wrote_it(backend: Backend):
    plain = Plain()
    plain.upsert(full())
    with backend.opened(ORIGIN) as gallery:
        gallery.upsert(full())
        place = gallery.place
    with closing(open_gallery(place, identity=ORIGIN.identity, write=True)) as again:
        assert_holds(again.snapshot, plain)
        assert again.upsert([record("new", 5)]).generation == 2
        assert again.snapshot.row("new") == 31


def test_a_second_writer_is_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    if backend.address is not None:
        monkeypatch.setattr("reidserve.index.milvus.rows.LEASE_SECONDS", 1.5)
    with backend.opened(ORIGIN) as gallery:
        renewed = keep_refreshing(gallery)
        with pytest.raises(GalleryLockedError, match="is being written to by"):
            open_gallery(gallery.place, write=True)
        renewed.set()
        assert gallery.upsert(full()).generation == 1


def keep_refreshing(gallery):
    stop = threading.Event()

    def refresh() -> None:
        while not stop.wait(0.1):
            gallery.refresh()

    threading.Thread(target=refresh, daemon=True).start()
    return stop


def test_a_gallery_of_another_model_is_refused_by_both_names(backend: Backend):
    with backend.opened(ORIGIN) as gallery:
        place = gallery.place
    with pytest.raises(GalleryModelError, match=r"embeddings of model ffffffffffff, this is model 0000"):
        open_gallery(place, identity="0" * 64)


def test_a_place_without_a_gallery_says_how_to_make_one(backend: Backend):
    with pytest.raises(GalleryError, match=r"no gallery at .*: .*make one with reid-index build"):
        open_gallery(backend.free_place())


def test_rows_are_what_builds_and_copies_need(backend: Backend):
    records = full()
    with backend.opened(ORIGIN) as gallery:
        gallery.upsert(records)
        with closing(gallery.rows()) as rows:
            assert (rows.place, rows.origin, rows.count(), rows.generation()) == (gallery.place, ORIGIN, 30, 1)
            assert rows.contents() == {one.entry.id: (one.entry, one.content_sha256) for one in records}
            assert rows.known(["e3", "nobody"]) == {"e3": (records[3].entry, records[3].content_sha256)}
            assert rows.ids() == {one.entry.id for one in records}
            np.testing.assert_array_equal(rows.find_vector(bytes([2]) * 32), record("", 2).vector)
            assert rows.find_vector(bytes([200]) * 32) is None
            assert rows.get("nobody") is None
            scanned = list(rows.scan())
            assert [one.entry for one in scanned if isinstance(one, Stored)] == [one.entry for one in records]
            assert [one.row for one in scanned] == list(range(1, 31))
            assert rows.note("root") is None


def test_notes_are_kept(backend: Backend):
    place = backend.free_place()
    with closing(backend.make(place, ORIGIN)) as rows:
        rows.write_note("root", '/a "folder"')
        rows.write_note("state", "built")
    with closing(open_gallery(place)) as gallery, closing(gallery.rows()) as rows:
        assert (rows.note("root"), rows.note("state"), rows.generation()) == ('/a "folder"', "built", 0)


@pytest.fixture(scope="module")
def crowd() -> list[Record]:
    """Entries with every kind of text and number that a filter may ask for."""
    rng = np.random.default_rng(5)
    texts = ["", "0", "1", "c1", "red", "true", 'a "b"', "\\", "é", "and", "in", "\n"]
    values: list[Attribute] = [0, 1, 1.0, 2, 0.5, -0.0, True, False, "1", "true", "red", 2**53, -(2**53), 1e300, 5e-324]
    times = [None, -3, 0, 1, 3, -(2**63) + 1, 2**63 - 1]
    records = []
    for place in range(150):
        attributes: Attributes = {
            name: values[rng.integers(len(values))] for name in ("a", "b", "colour") if rng.random() < 0.6
        }
        pid, camid = (None if rng.random() < 0.2 else texts[rng.integers(len(texts))] for _ in range(2))
        time = times[rng.integers(len(times))]
        entry = Entry(f"{place}{texts[place % 12]}", pid, camid, time, None, attributes)
        vector = unit_rows(np.random.default_rng(place), 1, 8)[0]
        records.append(Record(entry, hashlib.sha256(vector.tobytes()).digest(), vector))
    return records


@pytest.fixture(scope="module", params=BACKENDS[1:])
def crowded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, crowd: list[Record]):
    plain = Plain()
    plain.upsert(crowd)
    with backend_of(request, tmp_path_factory.mktemp("crowd")).opened(ORIGIN) as gallery:
        gallery.upsert(crowd)
        yield gallery, plain


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(where=any_filters, top_k=st.sampled_from([1, 5, 200]), seed=st.integers(0, 150))
def test_any_filter_lets_through_in_milvus_what_it_does_elsewhere(crowded: tuple, where: Filter, top_k: int, seed: int):
    gallery, plain = crowded
    query = unit_rows(np.random.default_rng(seed), 1, 8)
    assert_equal(
        gallery.snapshot.search(query, top_k=top_k, where=where), plain.search(query, top_k=top_k, where=where)
    )
    assert [entry.id for entry in gallery.snapshot.matching(where)] == plain.matching(where)


@settings(max_examples=20, deadline=None)
@given(entry=any_entries, facts=st.sampled_from(ATTRIBUTES))
def test_any_entry_comes_back_as_it_was(crowded: tuple, entry: Entry, facts: dict):
    gallery, plain = crowded
    records = [record("again", 3, attributes=facts), Record(entry, bytes(32), record("", 4).vector)]
    before = plain.generation
    assert gallery.upsert(records).changed == plain.upsert(records)
    assert gallery.snapshot.generation == plain.generation >= before
    assert gallery.snapshot.find(entry.id) == entry


def test_origins_may_stand_beside_each_other_under_one_name(backend: Backend):
    place = backend.free_place()
    if isinstance(place, Path):
        pytest.skip("a folder holds the embeddings of one model")
    from reidserve.index.milvus import make_rows, switch_alias

    for identity, count in (("f" * 64, 2), ("0" * 64, 3)):
        with closing(make_rows(place, Origin(identity, "fp32/x", 8))) as rows:
            rows.upsert(full(count))
    for identity, count in (("f" * 64, 2), ("0" * 64, 3)):
        with closing(open_gallery(place, identity=identity)) as gallery:
            assert (gallery.origin.identity, len(gallery.snapshot)) == (identity, count)
    with closing(open_gallery(place)) as gallery:
        assert gallery.origin.identity == "f" * 64
    switch_alias(place, "0" * 64)
    with closing(open_gallery(place)) as gallery:
        assert (gallery.origin.identity, len(gallery.snapshot)) == ("0" * 64, 3)
