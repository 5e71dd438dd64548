from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reidserve.errors import EntryNotFoundError, GalleryError, GalleryModelError, QueryError
from reidserve.index import MAX_TOP_K, Gallery, open_gallery
from reidserve.index.snapshot import BLOCK_ROWS
from reidserve.index.store import create_store
from tests.conftest import unit_rows
from tests.test_store import ORIGIN, damage, record


@pytest.fixture
def store(tmp_path: Path):
    opened = create_store(tmp_path / "g.gallery", ORIGIN)
    opened.write([record(f"e{number}", number, pid=str(number % 3)) for number in range(10)])
    yield opened
    opened.close()


@pytest.fixture
def gallery(store):
    opened = open_gallery(store.folder)
    yield opened
    opened.close()


def names(hits):
    return [hit.entry.id for hit in hits]


def like_entry(snapshot, name, top_k):
    return snapshot.hits(snapshot.search_entry(name, top_k=top_k))[0]


def test_an_entrys_own_embedding_finds_it_first(gallery: Gallery):
    for number in range(10):
        (hits,) = gallery.snapshot.hits(gallery.snapshot.search(record("", number).vector[None], top_k=3))
        assert hits[0].entry.id == f"e{number}"
        assert hits[0].score == pytest.approx(1)
        assert [hit.rank for hit in hits] == [1, 2, 3]


def test_an_entry_is_left_out_of_its_own_hits_and_nothing_else_is(gallery: Gallery):
    snapshot = gallery.snapshot
    (everything,) = snapshot.hits(snapshot.search(record("", 4).vector[None], top_k=10))
    others = [(hit.entry, hit.score) for hit in everything if hit.entry.id != "e4"]
    hits = like_entry(snapshot, "e4", 10)
    assert [(hit.entry, hit.score) for hit in hits] == others
    assert [hit.rank for hit in hits] == list(range(1, 10))
    assert names(like_entry(snapshot, "e4", 2)) == names(hits)[:2]


def test_a_twin_of_an_entry_is_not_left_out_with_it(store, gallery: Gallery):
    store.write([record("twin", 4)])
    gallery.refresh()
    assert names(like_entry(gallery.snapshot, "e4", 1)) == ["twin"]
    assert names(like_entry(gallery.snapshot, "twin", 1)) == ["e4"]


def test_an_entry_that_is_not_there_is_named(gallery: Gallery):
    with pytest.raises(EntryNotFoundError, match="the gallery has no entry 'nobody'"):
        like_entry(gallery.snapshot, "nobody", 1)


@pytest.mark.parametrize("top_k", [0, -1, MAX_TOP_K + 1, 10**9])
def test_top_k_has_limits(gallery: Gallery, top_k):
    with pytest.raises(QueryError, match=f"top_k must be 1 to 10,000, got {top_k}"):
        gallery.snapshot.search(record("", 0).vector[None], top_k=top_k)
    with pytest.raises(QueryError, match=f"got {top_k}"):
        like_entry(gallery.snapshot, "e0", top_k)


def test_more_hits_than_entries_are_all_entries(gallery: Gallery):
    assert gallery.snapshot.search(record("", 0).vector[None], top_k=MAX_TOP_K).rows.shape == (1, 10)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.ones((1, 7), np.float32), "have 8 dimensions, the query has 7"),
        (np.ones((1, 8), np.float32), "must be of unit length"),
        (np.full((1, 8), np.nan, np.float32), "must be of unit length"),
        (np.zeros((1, 8), np.float32), "must be of unit length"),
    ],
)
def test_a_query_that_is_no_unit_vector_of_the_gallery_is_refused(gallery: Gallery, query, message):
    with pytest.raises(QueryError, match=message):
        gallery.snapshot.search(query, top_k=1)


def test_a_snapshot_never_changes(store, gallery: Gallery):
    before = gallery.snapshot
    ranking = before.search(record("", 0).vector[None], top_k=10)
    store.write([record("e0", 77), record("new", 0)], delete=["e1", "e2"])
    assert gallery.refresh()
    again = before.search(record("", 0).vector[None], top_k=10)
    np.testing.assert_array_equal(again.rows, ranking.rows)
    assert (len(before), before.generation) == (10, 1)
    assert (len(gallery.snapshot), gallery.snapshot.generation) == (9, 2)
    assert names(gallery.snapshot.hits(gallery.snapshot.search(record("", 0).vector[None], top_k=1))[0]) == ["new"]


def test_refreshing_without_a_write_changes_nothing(gallery: Gallery):
    before = gallery.snapshot
    assert not gallery.refresh()
    assert gallery.snapshot is before


def test_a_gallery_grows_over_many_blocks_without_copying_the_sealed_ones(store, gallery: Gallery):
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng, 2 * BLOCK_ROWS + 5, 8)
    for start in range(0, len(vectors), 5000):
        store.write(
            [
                type(one)(type(one.entry)(f"n{place}"), one.content_sha256, vectors[place])
                for place, one in ((place, record("x")) for place in range(start, min(start + 5000, len(vectors))))
            ]
        )
        gallery.refresh()
    sealed = gallery.snapshot.blocks[0].vectors
    store.write([record("last", 99)])
    gallery.refresh()
    assert [len(block.rows) for block in gallery.snapshot.blocks] == [BLOCK_ROWS, BLOCK_ROWS, 16]
    assert gallery.snapshot.blocks[0].vectors is sealed
    for place in (0, BLOCK_ROWS - 11, BLOCK_ROWS - 10, 2 * BLOCK_ROWS + 4):
        row = gallery.snapshot.row_of[f"n{place}"]
        np.testing.assert_array_equal(gallery.snapshot.vector(row), vectors[place])


def test_a_gallery_of_another_model_is_refused_by_both_names(store):
    with pytest.raises(GalleryModelError, match=r"embeddings of model ffffffffffff, this is model 0000"):
        open_gallery(store.folder, identity="0" * 64)


def test_damage_that_comes_later_leaves_the_last_good_state_in_service(store, gallery: Gallery):
    before = gallery.snapshot
    store.write([record("bad", 50)])
    damage(store, "UPDATE vector SET crc32 = 1 WHERE row = 11")
    with pytest.raises(GalleryError, match="'bad' fails its checksum"):
        gallery.refresh()
    assert gallery.snapshot is before


def test_what_could_not_be_read_is_read_again(store, gallery: Gallery):
    store.write([record("bad", 50)])
    (crc32,) = damage(store, "SELECT crc32 FROM vector WHERE row = 11")
    damage(store, "UPDATE vector SET crc32 = 1 WHERE row = 11")
    with pytest.raises(GalleryError):
        gallery.refresh()
    damage(store, f"UPDATE vector SET crc32 = {crc32} WHERE row = 11")
    assert gallery.refresh()
    assert "bad" in gallery.snapshot.row_of


def test_a_gallery_whose_entries_are_all_gone_has_no_hits(store, gallery: Gallery):
    store.write([], delete=[f"e{number}" for number in range(10)])
    gallery.refresh()
    assert gallery.snapshot.hits(gallery.snapshot.search(record("", 0).vector[None], top_k=5)) == [[]]


class GalleryAgainstDict(RuleBasedStateMachine):
    """Any sequence of writes, deletes, refreshes and reopenings leaves what a dict would hold."""

    @initialize(folder=st.just(None))
    def make(self, folder) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = create_store(Path(self.folder.name) / "g", ORIGIN)
        self.gallery = open_gallery(self.store.folder)
        self.model: dict[str, int] = {}

    @rule(numbers=st.lists(st.integers(0, 12), max_size=5, unique=True), content=st.integers(1, 200))
    def write(self, numbers, content) -> None:
        self.store.write([record(f"e{number}", content) for number in numbers])
        self.model |= {f"e{number}": content for number in numbers}

    @rule(numbers=st.lists(st.integers(0, 12), max_size=5, unique=True))
    def delete(self, numbers) -> None:
        self.store.write([], delete=[f"e{number}" for number in numbers])
        for number in numbers:
            self.model.pop(f"e{number}", None)

    @rule()
    def refresh(self) -> None:
        self.gallery.refresh()

    @rule()
    def reopen(self) -> None:
        self.gallery.close()
        self.gallery = open_gallery(self.store.folder)

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        if not hasattr(self, "gallery"):
            return
        self.gallery.refresh()
        snapshot = self.gallery.snapshot
        assert set(snapshot.row_of) == set(self.model)
        for name, content in self.model.items():
            np.testing.assert_array_equal(snapshot.vector(snapshot.row_of[name]), record("", content).vector)
        for top_k in (3, 20):
            (hits,) = snapshot.hits(snapshot.search(record("", 0).vector[None], top_k=top_k))
            assert len(hits) == min(top_k, len(self.model))
            assert set(names(hits)) <= set(self.model)

    def teardown(self) -> None:
        if hasattr(self, "gallery"):
            self.gallery.close()
            self.store.close()
            self.folder.cleanup()


TestGalleryAgainstDict = GalleryAgainstDict.TestCase
TestGalleryAgainstDict.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
