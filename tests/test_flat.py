import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.index import Entry
from reidserve.index.search import flat
from reidserve.index.search.blocks import Block
from reidserve.index.search.columns import Codes, Columns
from reidserve.index.search.flat import Part
from reidserve.index.search.ranking import rank_plainly
from tests.conftest import unit_rows
from tests.plain import assert_equal


def parts_of(rows, vectors, accepted, size) -> list[Part]:
    """Blocks of `size` rows, of which a search may find the accepted ones."""
    parts, codes = [], Codes()
    for start in range(0, len(rows), size):
        stop = min(start + size, len(rows))
        columns = Columns(codes, size)
        columns.append([Entry(f"e{row}") for row in rows[start:stop]])
        live = np.ones(stop - start, np.bool_)
        crc32s = np.zeros(stop - start, np.uint32)
        block = Block(rows[start:stop], vectors[start:stop], crc32s, columns, live, stop - start)
        ok = accepted[start:stop]
        parts.append(Part(block, None if ok.all() else ok, int(ok.sum())))
    return parts


def assert_ranks_plainly(queries, rows, vectors, accepted, top_k, size, left_out=None):
    ranking = flat.rank(queries, parts_of(rows, vectors, accepted, size), top_k=top_k, left_out=left_out)
    assert_equal(ranking, rank_plainly(queries, vectors, rows, top_k=top_k, accepted=accepted, left_out=left_out))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    dim=st.integers(1, 70),
    copies=st.integers(0, 40),
    share=st.floats(0, 1),
    top_k=st.integers(1, 70),
    size=st.integers(1, 30),
    many=st.sampled_from([0, 7]),
    leaves_out=st.booleans(),
    turn=st.sampled_from([1, 400, flat._TURN_BYTES]),
)
def test_a_ranking_equals_brute_force_with_copies_and_gaps(
    seed, count, dim, copies, share, top_k, size, many, leaves_out, turn
):
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng, count, dim)
    if count:
        # Copies of a row, and rows a rounding away from it, are where products and vecdot disagree.
        vectors[rng.integers(0, count, copies)] = vectors[0]
        nudged = rng.integers(0, count, copies // 2)
        vectors[nudged] = np.nextafter(vectors[nudged], np.float32(1))
    rows = np.sort(rng.choice(3 * count + 1, count, replace=False)).astype(np.int64)
    accepted = rng.random(count) < share
    queries = np.concatenate([unit_rows(rng, 3, dim), vectors[:2], unit_rows(rng, many, dim)])
    left_out = rng.integers(-1, 3 * count + 1, len(queries)) if leaves_out else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "_TURN_BYTES", turn)
        assert_ranks_plainly(queries, rows, vectors, accepted, top_k, size, left_out)


@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.24, 0.26, 0.7, 1])
@pytest.mark.parametrize("top_k", [1, 10, 63, 64, 2000])
def test_masked_gathered_and_bounded_rows_rank_like_brute_force(share, top_k):
    rng = np.random.default_rng(int(1000 * share) + top_k)
    vectors = unit_rows(rng, 9000, 16)
    vectors[4000:4400] = vectors[0]  # more equal rows than are asked for
    rows = np.cumsum(rng.integers(1, 4, 9000)).astype(np.int64)
    accepted = rng.random(9000) < share
    queries = np.concatenate([vectors[:2], unit_rows(rng, 8, 16)])
    left_out = rng.choice(rows, len(queries))
    left_out[0] = rows[4000]
    for count in (1, 3, len(queries)):
        assert_ranks_plainly(queries[:count], rows, vectors, accepted, top_k, 2048, left_out[:count])


def test_equal_scores_stand_in_row_order_whatever_the_block():
    vectors = np.tile(unit_rows(np.random.default_rng(0), 1, 512), (100, 1))
    ranking = flat.rank(vectors[:1], parts_of(np.arange(100), vectors, np.ones(100, bool), 7), top_k=30)
    assert ranking.rows[0].tolist() == list(range(30))
    assert len(set(ranking.scores[0].tolist())) == 1


def test_a_ranking_does_not_depend_on_the_batch_of_queries(monkeypatch):
    rng = np.random.default_rng(3)
    vectors = unit_rows(rng, 3000, 256)
    vectors[1500:] = vectors[:1500]
    parts = parts_of(np.arange(3000), vectors, np.ones(3000, bool), 1024)
    queries = unit_rows(rng, 40, 256)
    together = flat.rank(queries, parts, top_k=25)
    for place in range(len(queries)):
        alone = flat.rank(queries[place : place + 1], parts, top_k=25)
        np.testing.assert_array_equal(alone.rows[0], together.rows[place])
        np.testing.assert_array_equal(alone.scores[0], together.scores[place])
    # Nor on how many products fit the memory at once, nor on how many queries go together.
    for budget in (1, 4 * 1024 * 40, 4 * 3000 * 40):
        monkeypatch.setattr("reidserve.index.search.flat._PANEL_BYTES", budget)
        for most in (1, 7, 40):
            monkeypatch.setattr("reidserve.index.search.flat._MOST_QUERIES", most)
            assert_equal(flat.rank(queries, parts, top_k=25, left_out=np.full(40, -1)), together)
    for strides in (1, 5):
        monkeypatch.setattr("reidserve.index.search.flat._MOST_STRIDES", strides)
        assert_equal(flat.rank(queries, parts, top_k=25), together)


def test_fewer_rows_than_asked_for_leave_the_ranking_padded():
    vectors = unit_rows(np.random.default_rng(0), 5, 8)
    accepted = np.array([True, False, True, False, False])
    ranking = flat.rank(vectors[:1], parts_of(np.arange(10, 15), vectors, accepted, 2), top_k=4)
    assert ranking.rows[0].tolist() == [10, 12, -1, -1]
    assert ranking.scores[0, 2:].tolist() == [-np.inf, -np.inf]
