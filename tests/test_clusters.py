import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from sklearn.cluster import DBSCAN

from reidserve.errors import ExportError
from reidserve.export.adapt.clusters import NOISE, Clusters, find_clusters, pair_f_score, unit_centres
from reidserve.export.adapt.settings import AdaptSettings
from reidserve.index.rerank import Reranking, rerank
from tests.conftest import unit_rows


def grouped_rows(rng: np.random.Generator, groups: int, each: int, *, spread: float, dim: int = 16) -> np.ndarray:
    """Unit rows around as many centres, those of a centre side by side."""
    rows = np.repeat(unit_rows(rng, groups, dim), each, axis=0) + spread * rng.standard_normal((groups * each, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def dense_distances(rows: np.ndarray, how: AdaptSettings) -> np.ndarray:
    """All distances in one plain matrix; re-ranked, an image and all others are queries and gallery."""
    if how.distance == "cosine":
        return np.maximum(1 - rows @ rows.T, 0)  # a rounding below 0 is no distance
    distances = np.zeros((len(rows), len(rows)), np.float32)
    for row in range(len(rows)):
        others = np.delete(np.arange(len(rows)), row)
        distances[row, others] = rerank(rows[[row]], rows[others], Reranking(how.k1, how.k2, weight=0))
    return np.maximum(distances, 0)


HOW = [AdaptSettings(k1=6, k2=2, eps=0.5, min_samples=3), AdaptSettings(distance="cosine", eps=0.3, min_samples=3)]


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.distance)
def test_groups_are_clusters_and_a_stranger_is_noise(how):
    rng = np.random.default_rng(0)
    rows = np.concatenate([grouped_rows(rng, 3, 5, spread=0.02), unit_rows(rng, 1, 16)])
    clusters = find_clusters(rows, how)
    assert clusters.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [NOISE]
    assert (len(clusters), clusters.noise) == (3, 1 / 16)
    assert clusters.members.tolist() == [*range(15)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.05, 0.15, 0.3]), eps=st.sampled_from([0.1, 0.3, 0.55, 0.7]))
@pytest.mark.parametrize("distance", ["rerank", "cosine"])
def test_clusters_are_those_of_scikit_learn_on_the_dense_distances(seed, spread, eps, distance):
    rows = grouped_rows(np.random.default_rng(seed), 6, 5, spread=spread)
    how = AdaptSettings(distance=distance, k1=6, k2=2, eps=eps, min_samples=3)
    dense = dense_distances(rows, how)
    found = find_clusters(rows, how).labels
    if np.abs(dense - eps).min() > 1e-5:
        expected = DBSCAN(eps=eps, min_samples=3, metric="precomputed").fit_predict(dense)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.distance)
def test_clusters_do_not_depend_on_how_many_rows_are_looked_at_at_once(how, monkeypatch):
    rng = np.random.default_rng(1)
    rows = np.concatenate([grouped_rows(rng, 8, 6, spread=0.1), unit_rows(rng, 12, 16)])
    whole = find_clusters(rows, how).labels
    assert set(whole) > {NOISE, 0, 1}
    monkeypatch.setattr("reidserve.index.rerank.sparse.PANEL_BYTES", 4 * 60 * 5)
    monkeypatch.setattr("reidserve.export.adapt.clusters.BLOCK", 60 * 5)
    np.testing.assert_array_equal(find_clusters(rows, how).labels, whole)


def test_where_all_are_neighbours_of_all_a_lower_eps_is_asked_for(monkeypatch):
    monkeypatch.setattr("reidserve.export.adapt.clusters.MOST_PAIRS", 100)
    rows = grouped_rows(np.random.default_rng(1), 1, 20, spread=0.01)
    with pytest.raises(ExportError, match="more than 100 pairs of images are within eps 0.6: give a lower eps"):
        find_clusters(rows, AdaptSettings(distance="cosine"))


def test_progress_comes_to_all_images():
    heard = []
    find_clusters(
        unit_rows(np.random.default_rng(1), 20, 4),
        AdaptSettings(distance="cosine"),
        progress=lambda done, total: heard.append((done, total)),
    )
    assert heard[-1] == (20, 20)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_f_counts_the_pairs_that_clusters_put_together(pairs):
    labels, identities = np.array(pairs).T
    together = np.equal.outer(labels, labels) & (labels != NOISE)
    same = np.equal.outer(identities, identities)
    upper = np.triu(np.ones(same.shape, bool), 1)
    right, put, true = ((what & upper).sum() for what in (together & same, together, same))
    expected = 2 * right / (put + true) if put + true else 0.0
    assert pair_f_score(labels, identities) == pytest.approx(expected)


def test_f_is_one_for_clusters_that_are_the_identities_whatever_their_numbers():
    assert pair_f_score(np.array([2, 2, 0, 0, 1]), np.array([0, 0, 1, 1, 2])) == 1
    assert pair_f_score(np.full(4, NOISE), np.array([0, 0, 1, 1])) == 0


def test_a_centre_is_the_unit_mean_of_its_rows_and_noise_has_none():
    rows = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    centres = unit_centres(rows, np.array([0, 0, 1, NOISE]))
    np.testing.assert_allclose(centres, [[0.5**0.5, 0.5**0.5], [0.6, 0.8]], rtol=1e-6)


def test_no_image_is_in_a_cluster_of_nothing():
    clusters = Clusters(np.full(3, NOISE))
    assert (len(clusters), clusters.noise, len(clusters.members)) == (0, 1, 0)
