import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.errors import QueryError
from reidserve.index import Ranking, read_snapshot
from reidserve.index.expansion import expand
from reidserve.index.search.ranking import rank_plainly
from tests.conftest import unit_rows

GALLERY = np.array([[0.8, 0.6], [0.6, -0.8], [-1, 0]], np.float32)
QUERY = np.array([[1, 0]], np.float32)


def rank(queries, gallery, top_k):
    return rank_plainly(queries, gallery, np.arange(len(gallery)), top_k=top_k)


def by_hand(query, rows, scores, gallery, alpha):
    total = query.astype(np.float64)
    for row, score in zip(rows, scores, strict=True):
        if row >= 0 and score > 0:
            total = total + float(score) ** alpha * gallery[row]
    return total / np.sqrt(sum(value**2 for value in total))


@pytest.mark.parametrize(
    ("top_k", "alpha", "direction"),
    [
        (1, 0, [1.8, 0.6]),
        (2, 0, [2.4, -0.2]),
        (1, 1, [1 + 0.8 * 0.8, 0.8 * 0.6]),
        (2, 3, [1 + 0.512 * 0.8 + 0.216 * 0.6, 0.512 * 0.6 - 0.216 * 0.8]),
        # The third points away: it weighs nothing, at any alpha.
        (3, 0, [2.4, -0.2]),
        (3, 2, [1 + 0.64 * 0.8 + 0.36 * 0.6, 0.64 * 0.6 - 0.36 * 0.8]),
    ],
)
def test_an_expanded_query_is_what_the_papers_say(top_k, alpha, direction):
    expanded = expand(QUERY, rank(QUERY, GALLERY, top_k), GALLERY.__getitem__, alpha=alpha)
    assert expanded.dtype == np.float32
    np.testing.assert_allclose(expanded, [np.array(direction) / np.linalg.norm(direction)], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 30),
    dim=st.integers(1, 40),
    top_k=st.integers(1, 40),
    alpha=st.floats(0, 10),
)
def test_every_expanded_query_is_the_weighted_mean_said_plainly(seed, count, dim, top_k, alpha):
    rng = np.random.default_rng(seed)
    queries, gallery = unit_rows(rng, 4, dim), unit_rows(rng, count, dim)
    # Where fewer are found than asked for, a ranking ends in -1 and -inf.
    ranking = rank(queries, gallery, top_k)
    expanded = expand(queries, ranking, gallery.__getitem__, alpha=alpha)
    expected = [
        by_hand(query, rows, scores, gallery, alpha)
        for query, rows, scores in zip(queries, ranking.rows, ranking.scores, strict=True)
    ]
    np.testing.assert_allclose(expanded, expected, atol=2e-6)
    alone = expand(queries[:1], Ranking(ranking.scores[:1], ranking.rows[:1]), gallery.__getitem__, alpha=alpha)
    np.testing.assert_array_equal(alone[0], expanded[0])


def test_a_query_that_finds_nothing_stays_what_it_is():
    ranking = Ranking(np.full((1, 2), -np.inf, np.float32), np.full((1, 2), -1))
    np.testing.assert_array_equal(expand(QUERY, ranking, GALLERY.__getitem__), QUERY)


def test_the_queries_are_left_as_they_were():
    queries = QUERY.copy()
    expand(queries, rank(queries, GALLERY, 2), GALLERY.__getitem__)
    np.testing.assert_array_equal(queries, QUERY)


def test_a_snapshot_expands_as_a_plain_array_does(gallery, embedder):
    snapshot = read_snapshot(gallery, identity=embedder.contract.identity)
    rows = snapshot.rows()
    vectors = np.stack([snapshot.vector(row) for row in rows.tolist()])
    queries = vectors[:3]
    expanded = expand(queries, snapshot.search(queries, top_k=5), snapshot.vector, alpha=3)
    np.testing.assert_array_equal(expanded, expand(queries, rank(queries, vectors, 5), vectors.__getitem__, alpha=3))
    # And may be asked again.
    assert (snapshot.search(expanded, top_k=5).scores > 0).all()


def test_an_expanded_query_finds_what_its_neighbours_are_nearer_to():
    # A chain: the third is nearer to what the query finds than to the query, and a stranger is nearer to the query.
    gallery = np.array([[0.9, np.sqrt(0.19), 0], [0.5, np.sqrt(0.75), 0], [0.6, 0, 0.8]], np.float32)
    query = np.array([[1, 0, 0]], np.float32)
    assert rank(query, gallery, 3).rows.tolist() == [[0, 2, 1]]
    expanded = expand(query, rank(query, gallery, 1), gallery.__getitem__)
    assert rank(expanded, gallery, 3).rows.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("alpha", [-1, float("nan"), float("inf")])
def test_an_alpha_that_is_no_power_is_refused(alpha):
    with pytest.raises(QueryError, match="alpha must be 0 or more, got"):
        expand(QUERY, rank(QUERY, GALLERY, 1), GALLERY.__getitem__, alpha=alpha)


def test_a_ranking_of_other_queries_is_refused():
    with pytest.raises(QueryError, match="2 queries, and a ranking of 1"):
        expand(np.repeat(QUERY, 2, axis=0), rank(QUERY, GALLERY, 1), GALLERY.__getitem__)
