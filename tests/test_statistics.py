import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reidserve.errors import DatasetError
from reidserve.export.train.statistics import pixel_statistics


@given(st.integers(1, 600), st.integers(0, 2**32))
def test_mean_and_deviation_are_those_of_all_pixels_in_0_to_1(count: int, seed: int):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 2, 3, 3), dtype=np.uint8)
    mean, std = pixel_statistics(pixels)
    plain = pixels.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, plain.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, plain.std(axis=0), rtol=1e-12)


def test_sums_are_exact_where_floats_would_lose_the_deviation():
    pixels = np.full((300, 32, 32, 3), 255, np.uint8)
    pixels[7, 3, 2] = 254
    mean, std = pixel_statistics(pixels)
    count = 300 * 32 * 32
    share = 1 / count
    np.testing.assert_allclose(mean, 1 - share / 255, rtol=1e-15)
    np.testing.assert_allclose(std, np.sqrt(share * (1 - share)) / 255, rtol=1e-12)


@pytest.mark.parametrize("pixels", [np.zeros((0, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 9, np.uint8)])
def test_a_channel_without_spread_is_refused(pixels: np.ndarray):
    with pytest.raises(DatasetError, match=rf"a channel of {len(pixels)} images is one value throughout"):
        pixel_statistics(pixels)
