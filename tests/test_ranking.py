import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.index.ranking import SETTLED_WITHIN, Block, rank
from tests.conftest import unit_rows


def brute_force(queries, rows, vectors, live, top_k):
    """The plain way: every score, sorted by (-score, row)."""
    scores = np.full((len(queries), top_k), -np.inf, np.float32)
    best = np.full((len(queries), top_k), -1, np.int64)
    for place, query in enumerate(queries):
        found = [
            (-np.vecdot(vector, query), row) for row, vector, alive in zip(rows, vectors, live, strict=True) if alive
        ]
        for column, (score, row) in enumerate(sorted(found)[:top_k]):
            scores[place, column], best[place, column] = -score, row
    return scores, best


def blocks_of(rows, vectors, live, size):
    return [
        Block(rows[start : start + size], vectors[start : start + size], live[start : start + size])
        for start in range(0, len(rows), size)
    ]


def assert_ranks_like_brute_force(queries, rows, vectors, live, top_k, size):
    ranking = rank(queries, blocks_of(rows, vectors, live, size), top_k=top_k)
    scores, best = brute_force(queries, rows, vectors, live, top_k)
    np.testing.assert_array_equal(ranking.rows, best)
    np.testing.assert_array_equal(ranking.scores, scores)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    dim=st.integers(1, 70),
    copies=st.integers(0, 40),
    dead=st.floats(0, 1),
    top_k=st.integers(1, 70),
    size=st.integers(1, 30),
    many=st.sampled_from([0, 7]),
)
def test_a_ranking_equals_brute_force_with_copies_and_gaps(seed, count, dim, copies, dead, top_k, size, many):
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng, count, dim)
    if count:
        # Copies of a row, and rows a rounding away from it, are where products and vecdot disagree.
        vectors[rng.integers(0, count, copies)] = vectors[0]
        nudged = rng.integers(0, count, copies // 2)
        vectors[nudged] = np.nextafter(vectors[nudged], np.float32(1))
    rows = np.sort(rng.choice(3 * count + 1, count, replace=False)).astype(np.int64)
    live = rng.random(count) >= dead
    queries = np.concatenate([unit_rows(rng, 3, dim), vectors[:2], unit_rows(rng, many, dim)])
    assert_ranks_like_brute_force(queries, rows, vectors, live, top_k, size)


def test_equal_scores_stand_in_row_order_whatever_the_block():
    vectors = np.tile(unit_rows(np.random.default_rng(0), 1, 512), (100, 1))
    ranking = rank(vectors[:1], blocks_of(np.arange(100), vectors, np.ones(100, bool), 7), top_k=30)
    assert ranking.rows[0].tolist() == list(range(30))
    assert len(set(ranking.scores[0].tolist())) == 1


def test_a_ranking_does_not_depend_on_the_batch_of_queries():
    rng = np.random.default_rng(3)
    vectors = unit_rows(rng, 3000, 256)
    vectors[1500:] = vectors[:1500]
    blocks = blocks_of(np.arange(3000), vectors, np.ones(3000, bool), 1024)
    queries = unit_rows(rng, 40, 256)
    together = rank(queries, blocks, top_k=25)
    for place in range(len(queries)):
        alone = rank(queries[place : place + 1], blocks, top_k=25)
        np.testing.assert_array_equal(alone.rows[0], together.rows[place])
        np.testing.assert_array_equal(alone.scores[0], together.scores[place])


def test_fewer_live_rows_than_asked_for_leave_the_ranking_padded():
    vectors = unit_rows(np.random.default_rng(0), 5, 8)
    live = np.array([True, False, True, False, False])
    ranking = rank(vectors[:1], blocks_of(np.arange(10, 15), vectors, live, 2), top_k=4)
    assert ranking.rows[0].tolist() == [10, 12, -1, -1]
    assert ranking.scores[0, 2:].tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("dim", [64, 256, 512, 2048])
@pytest.mark.parametrize("spread", [0.05, None])
def test_products_and_vecdot_differ_by_far_less_than_is_settled(dim, spread):
    rng = np.random.default_rng(dim)
    vectors = unit_rows(rng, 4000, dim)
    if spread is not None:
        # Features after a ReLU that are nearly one direction: the sums have no signs to cancel.
        vectors = (1 + spread * np.abs(vectors) * np.sqrt(dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = np.concatenate([vectors[:40], unit_rows(rng, 40, dim)])
    product = queries @ vectors.T
    settled = np.vecdot(queries[:, np.newaxis], vectors[np.newaxis])
    assert np.abs(product - settled).max() < SETTLED_WITHIN / 4
