import contextlib
from pathlib import Path

import numpy as np
import pytest

from reidserve.errors import EntryNotFoundError, QueryError
from reidserve.index import MAX_TOP_K, Entry, Filter, Snapshot
from reidserve.index.gallery import open_gallery
from reidserve.index.storage.store import create_store
from tests.test_store import ORIGIN, record


@pytest.fixture
def gallery(tmp_path: Path):
    create_store(tmp_path / "g.gallery", ORIGIN).close()
    with contextlib.closing(open_gallery(tmp_path / "g.gallery", write=True)) as opened:
        opened.upsert([record(f"e{number}", number, pid=str(number % 3)) for number in range(10)])
        yield opened


@pytest.fixture
def snapshot(gallery):
    return gallery.snapshot


def names(hits):
    return [hit.entry.id for hit in hits]


def like_entry(snapshot: Snapshot, name, top_k, where=None):
    return snapshot.hits(snapshot.search_entry(name, top_k=top_k, where=where))[0]


def test_an_entrys_own_embedding_finds_it_first(snapshot: Snapshot):
    for number in range(10):
        (hits,) = snapshot.hits(snapshot.search(record("", number).vector[None], top_k=3))
        assert hits[0].entry.id == f"e{number}"
        assert hits[0].score == pytest.approx(1)
        assert [hit.rank for hit in hits] == [1, 2, 3]


def test_an_entry_is_left_out_of_its_own_hits_and_nothing_else_is(snapshot: Snapshot):
    (everything,) = snapshot.hits(snapshot.search(record("", 4).vector[None], top_k=10))
    others = [(hit.entry, hit.score) for hit in everything if hit.entry.id != "e4"]
    hits = like_entry(snapshot, "e4", 10)
    assert [(hit.entry, hit.score) for hit in hits] == others
    assert [hit.rank for hit in hits] == list(range(1, 10))
    assert names(like_entry(snapshot, "e4", 2)) == names(hits)[:2]


def test_a_twin_of_an_entry_is_not_left_out_with_it(gallery):
    gallery.upsert([record("twin", 4)])
    assert names(like_entry(gallery.snapshot, "e4", 1)) == ["twin"]
    assert names(like_entry(gallery.snapshot, "twin", 1)) == ["e4"]


def test_an_entry_that_is_not_there_is_named(snapshot: Snapshot):
    with pytest.raises(EntryNotFoundError, match="the gallery has no entry 'nobody'"):
        like_entry(snapshot, "nobody", 1)


def test_a_filter_narrows_the_hits_and_their_number(snapshot: Snapshot):
    where = Filter(pids=frozenset({"1"}))
    ranking = snapshot.search(record("", 0).vector[None], top_k=10, where=where)
    assert ranking.rows.shape == (1, 3)
    assert sorted(names(snapshot.hits(ranking)[0])) == ["e1", "e4", "e7"]
    assert sorted(names(like_entry(snapshot, "e4", 10, where))) == ["e1", "e7"]
    assert snapshot.search_entry("e4", top_k=10, where=where).rows[0, -1] == -1
    assert [entry.id for entry in snapshot.matching(where)] == ["e1", "e4", "e7"]
    assert snapshot.search(record("", 0).vector[None], top_k=10, where=Filter(ids=frozenset())).rows.shape == (1, 0)


@pytest.mark.parametrize("top_k", [0, -1, MAX_TOP_K + 1, 10**9])
def test_top_k_has_limits(snapshot: Snapshot, top_k):
    with pytest.raises(QueryError, match=f"top_k must be 1 to 10,000, got {top_k}"):
        snapshot.search(record("", 0).vector[None], top_k=top_k)
    with pytest.raises(QueryError, match=f"got {top_k}"):
        like_entry(snapshot, "e0", top_k)


def test_more_hits_than_entries_are_all_entries(snapshot: Snapshot):
    assert snapshot.search(record("", 0).vector[None], top_k=MAX_TOP_K).rows.shape == (1, 10)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones((1, 7), np.float32), "have 8 dimensions, the query has 7"),
        (np.ones((1, 8), np.float32), "must be of unit length"),
        (np.full((1, 8), np.nan, np.float32), "must be of unit length"),
        (np.full((1, 8), 1e30, np.float32), "must be of unit length"),
        (np.zeros((1, 8), np.float32), "must be of unit length"),
    ],
)
def test_a_query_that_is_no_unit_vector_of_the_gallery_is_refused(snapshot: Snapshot, query, message):
    with pytest.raises(QueryError, match=message):
        snapshot.search(query, top_k=1)


def test_queries_that_lie_strided_in_memory_find_the_same(snapshot: Snapshot):
    queries = np.stack([record("", number).vector for number in range(6)])
    plain = snapshot.search(queries, top_k=4)
    for strided in (np.asfortranarray(queries), np.repeat(queries, 2, axis=0)[::2], queries[::-1].copy()[::-1]):
        again = snapshot.search(strided, top_k=4)
        np.testing.assert_array_equal(again.rows, plain.rows)
        np.testing.assert_array_equal(again.scores, plain.scores)


def test_no_queries_have_an_empty_ranking(snapshot: Snapshot):
    assert snapshot.search(np.empty((0, 8), np.float32), top_k=3).rows.shape == (0, 3)


def test_entries_are_found_by_id_row_and_place(gallery):
    gallery.update([Entry("e2", pid="x")])
    gallery.delete(["e3"])
    snapshot = gallery.snapshot
    assert (snapshot.find("e2"), snapshot.row("e2")) == (Entry("e2", pid="x"), 11)
    assert snapshot.find("e3") is None
    with pytest.raises(EntryNotFoundError):
        snapshot.row("e3")
    np.testing.assert_array_equal(snapshot.vector(11), record("", 2).vector)
    assert [entry.id for entry in snapshot.entries()] == ["e0", "e1", "e4", "e5", "e6", "e7", "e8", "e9", "e2"]
    assert (len(snapshot), snapshot.kind) == (9, "flat")
