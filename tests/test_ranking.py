import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.index.search.ranking import (
    SETTLED_WITHIN,
    empty_ranking,
    merged,
    rank_plainly,
    settled_pairs,
    write_best,
)
from tests.conftest import unit_rows
from tests.plain import assert_equal


def by_hand(queries, vectors, rows, accepted, left_out, top_k):
    """The plain way, plainer still: every pair by itself, sorted by (-score, row)."""
    ranking = empty_ranking(len(queries), top_k)
    for place, query in enumerate(queries):
        found = [
            (-np.vecdot(vector, query), row)
            for row, vector, ok in zip(rows, vectors, accepted, strict=True)
            if ok and row != left_out[place]
        ]
        for column, (score, row) in enumerate(sorted(found)[:top_k]):
            ranking.scores[place, column], ranking.rows[place, column] = -score, row
    return ranking


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    dim=st.integers(1, 70),
    copies=st.integers(0, 30),
    share=st.floats(0, 1),
    top_k=st.integers(0, 50),
)
def test_the_plain_ranking_is_every_pair_sorted(seed, count, dim, copies, share, top_k):
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng, count, dim)
    if count:
        vectors[rng.integers(0, count, copies)] = vectors[0]
    rows = np.sort(rng.choice(3 * count + 1, count, replace=False)).astype(np.int64)
    accepted = rng.random(count) < share
    queries = np.concatenate([unit_rows(rng, 3, dim), vectors[:2]])
    left_out = rng.integers(-1, 3 * count + 1, len(queries))
    ranking = rank_plainly(queries, vectors, rows, top_k=top_k, accepted=accepted, left_out=left_out)
    assert_equal(ranking, by_hand(queries, vectors, rows, accepted, left_out, top_k))
    everything = rank_plainly(queries, vectors, rows, top_k=top_k)
    nobody = np.full(len(queries), -1)
    assert_equal(everything, by_hand(queries, vectors, rows, np.ones(count, bool), nobody, top_k))


@pytest.mark.parametrize("dim", [1, 7, 64, 511, 512, 2048])
def test_a_score_is_the_same_alone_gathered_and_in_place(dim):
    rng = np.random.default_rng(dim)
    vectors = unit_rows(rng, 300, dim)
    query = unit_rows(rng, 1, dim)[0]
    alone = np.array([np.vecdot(vector, query) for vector in vectors])
    for count in (1, 3, 149, 151, 300):
        positions = np.sort(rng.choice(300, count, replace=False))
        scores = settled_pairs(query[np.newaxis], np.zeros(count, np.intp), vectors, positions)
        np.testing.assert_array_equal(scores, alone[positions])
    np.testing.assert_array_equal(np.vecdot(vectors[::2], query), alone[::2])


def test_the_best_are_written_best_first_and_equal_ones_in_row_order():
    ranking = empty_ranking(2, 3)
    write_best(ranking, 1, np.array([4, 9, 2, 7]), np.array([0.5, 0.5, 0.25, 0.75], np.float32))
    assert ranking.rows.tolist() == [[-1, -1, -1], [7, 4, 9]]
    assert ranking.scores.tolist() == [[-np.inf] * 3, [0.75, 0.5, 0.5]]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 4), top_k=st.integers(1, 12))
def test_rankings_of_parts_merge_into_the_ranking_of_all(seed, parts, top_k):
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng, 24, 5)
    vectors[rng.integers(0, 24, 12)] = vectors[3]
    rows, queries = np.arange(24), unit_rows(rng, 4, 5)
    part_of = np.sort(rng.integers(0, parts, 24))
    rankings = [
        rank_plainly(queries, vectors[part_of == part], rows[part_of == part], top_k=top_k) for part in range(parts)
    ]
    assert_equal(merged(rankings, top_k=top_k), rank_plainly(queries, vectors, rows, top_k=top_k))


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
