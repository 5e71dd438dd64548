import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.embed import UNIT_TOLERANCE
from reidserve.errors import EmbeddingError
from reidserve.index.tracks import pool
from tests.conftest import unit_rows


def test_a_track_is_the_mean_of_its_embeddings_to_unit_length():
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    pooled, tracks = pool(rows, ["walk", "other", "walk"])
    assert tracks == ["walk", "other"]
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, [[np.sqrt(0.5), np.sqrt(0.5)], [0.6, 0.8]], atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 40), dim=st.integers(2, 40), names=st.integers(1, 10))
def test_tracks_stand_in_order_of_appearance_each_with_its_own_mean(seed, count, dim, names):
    rng = np.random.default_rng(seed)
    rows = unit_rows(rng, count, dim)
    rows[:, 0] = np.abs(rows[:, 0]) + 1  # one half-space, where nothing cancels out
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    of = [(int(name), "c1") for name in rng.integers(0, names, count)]
    pooled, tracks = pool(rows, of)
    assert tracks == list(dict.fromkeys(of))
    for mean, track in zip(pooled, tracks, strict=True):
        total = sum(row.astype(np.float64) for row, name in zip(rows, of, strict=True) if name == track)
        np.testing.assert_allclose(mean, total / np.sqrt(total @ total), atol=1e-6)
    assert (np.abs(np.linalg.norm(pooled, axis=1) - 1) < UNIT_TOLERANCE / 10).all()


def test_a_track_of_one_image_is_that_image():
    rows = unit_rows(np.random.default_rng(0), 3, 64)
    pooled, _ = pool(rows, range(3))
    np.testing.assert_allclose(pooled, rows, atol=1e-7)


def test_embeddings_that_cancel_out_are_refused_by_the_name_of_their_track():
    rows = np.array([[0, 1], [1, 0], [-1, 0]], np.float32)
    with pytest.raises(EmbeddingError, match="the 2 embeddings of track 'c2/0007' cancel out: their mean has length 0"):
        pool(rows, ["c1/0001", "c2/0007", "c2/0007"])


def test_what_is_not_a_number_is_refused_by_the_name_of_its_track():
    with pytest.raises(EmbeddingError, match="of track 'broken'"):
        pool(np.array([[np.nan, 0]], np.float32), ["broken"])


def test_as_many_tracks_as_embeddings_are_asked_for():
    with pytest.raises(EmbeddingError, match="2 embeddings, and 1 say which track they are of"):
        pool(np.eye(2, dtype=np.float32), ["one"])
