import colorsys

import numpy as np
import pytest
from numpy.typing import NDArray

from reidserve.export.train.colours import jitter, recolour
from reidserve.export.train.settings import AugmentSettings

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GREY = np.array([0.299, 0.587, 0.114])
Pixels = NDArray[np.uint8]


def noise(count: int = 1) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 24, 12, 3), dtype=np.uint8)


def plainly(image: Pixels, change: int, amount: float) -> NDArray[np.float64]:
    """Torchvision's definitions, in NumPy: a blend of the image with black, its mean grey, or its own grey."""
    grey = image @ GREY
    other = {BRIGHTNESS: np.zeros(()), CONTRAST: grey.mean(), SATURATION: grey[..., None]}[change]
    return np.clip((1 + amount) * image - amount * other, 0, 255)


@pytest.mark.parametrize("amount", [-1.0, -0.4, 0.0, 0.7])
@pytest.mark.parametrize("change", [BRIGHTNESS, CONTRAST, SATURATION])
def test_a_change_is_a_blend_with_black_with_the_mean_grey_or_with_grey(change: int, amount: float):
    (image,) = noise()
    changed = recolour(image, [amount] * 4, [change])
    np.testing.assert_allclose(changed, plainly(image, change, amount), atol=1.5)


@pytest.mark.parametrize("amount", [-0.5, -0.1, 0.25])
def test_the_hue_turns_by_a_share_of_the_circle(amount: float):
    (image,) = noise()
    changed = recolour(image, [0, 0, 0, amount], [HUE])
    turned = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
    expected = [colorsys.hsv_to_rgb((hue + amount) % 1, *rest) for hue, *rest in turned]
    differences = np.abs(changed.reshape(-1, 3) - np.array(expected) * 255)
    # Pillow, and so torchvision, rounds hue, saturation and value to bytes on the way.
    assert differences.max() < 10
    assert differences.mean() < 1.5


def test_changes_come_in_the_order_asked_for():
    (image,) = noise()
    amounts = [0.5, -0.5, 0.5, 0]
    first = recolour(recolour(image, amounts, [BRIGHTNESS]), amounts, [CONTRAST])
    np.testing.assert_array_equal(recolour(image, amounts, [BRIGHTNESS, CONTRAST]), first)
    assert (recolour(image, amounts, [CONTRAST, BRIGHTNESS]) != first).any()


def test_factors_are_drawn_evenly_from_either_side_of_one():
    batch = np.full((400, 2, 2, 3), 100, np.uint8)
    jitter(batch, AugmentSettings(brightness=0.4), np.random.default_rng(0))
    factors = batch[:, 0, 0, 0] / 100
    assert 0.59 <= factors.min() < 0.63
    assert 1.37 < factors.max() <= 1.4
    assert abs(factors.mean() - 1) < 0.03


def test_only_what_is_asked_for_is_changed_and_each_image_by_itself():
    batch, same = noise(8), noise(8)
    jitter(same, AugmentSettings(), np.random.default_rng(0))
    np.testing.assert_array_equal(same, batch)
    grey = np.repeat(batch[..., :1], 3, axis=3)
    recoloured = grey.copy()
    jitter(recoloured, AugmentSettings(saturation=0.9, hue=0.5), np.random.default_rng(0))
    # Grey has no saturation to change, and no hue to turn.
    np.testing.assert_allclose(recoloured.astype(int), grey, atol=1)
    jitter(batch, AugmentSettings(brightness=0.9), np.random.default_rng(0))
    ratios = batch.mean(axis=(1, 2, 3)) / same.mean(axis=(1, 2, 3))
    assert len(set(ratios.round(3))) == 8
