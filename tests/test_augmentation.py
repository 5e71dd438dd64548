from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from reidserve.export.train.augmentation import ERASED_AREA, augment, erase, move, turn
from reidserve.export.train.settings import AugmentSettings, InputSettings, Settings

PLAIN = Settings(
    input=InputSettings(height=64, width=32, mean=(0.5, 0.4, 0.3)), augment=AugmentSettings(flip=0, pad=0, erase=0)
)
FILL = np.array([128, 102, 76], np.uint8)
Pixels = NDArray[np.uint8]


def noise(count: int = 16, height: int = 64, width: int = 32) -> Pixels:
    return np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)


def augmented(batch: Pixels, seed: int = 0, **changes: float) -> Pixels:
    settings = replace(PLAIN, augment=replace(PLAIN.augment, **changes))
    return augment(batch, settings, np.random.default_rng(seed))


def test_nothing_asked_for_changes_nothing():
    np.testing.assert_array_equal(augmented(noise()), noise())


def test_a_flip_mirrors_left_and_right_and_changes_nothing_else():
    batch = noise()
    np.testing.assert_array_equal(augmented(batch, flip=1), batch[:, :, ::-1])
    sometimes = augmented(batch, flip=0.5)
    mirrored = [(after == before[:, ::-1]).all() for after, before in zip(sometimes, batch, strict=True)]
    assert 0 < sum(mirrored) < 16
    for flipped, after, before in zip(mirrored, sometimes, batch, strict=True):
        np.testing.assert_array_equal(after, before[:, ::-1] if flipped else before)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (-3, 0), (0, 2), (0, -2), (3, -2), (-3, 2)])
def test_a_moved_image_is_a_crop_of_the_padded_one(down: int, right: int):
    image = noise(1)[0]
    moved = np.full_like(image, 7)
    move(image, moved, down=down, right=right)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    np.testing.assert_array_equal(moved, padded[3 - down : 67 - down, 3 - right : 35 - right])


def test_images_move_within_the_padding():
    moved = augmented(noise(200), pad=3 / 64)
    black_rows = (moved == 0).all(axis=(2, 3)).sum(axis=1)
    black_columns = (moved == 0).all(axis=(1, 3)).sum(axis=1)
    assert set(black_rows) == set(black_columns) == {0, 1, 2, 3}


def test_a_quarter_turn_of_a_square_moves_every_pixel_to_the_left_and_about():
    image = noise(1, 33, 33)[0]
    np.testing.assert_array_equal(turn(image, FILL, degrees=90), np.rot90(image))


def plain_turn(image: Pixels, degrees: float) -> NDArray[np.float64]:
    """Each pixel from where it was, bilinear, by hand; NaN where it was outside."""
    height, width = image.shape[:2]
    angle = np.deg2rad(degrees)
    turned = np.full(image.shape, np.nan)
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            down = np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2
            right = -np.sin(angle) * y + np.cos(angle) * x + (width - 1) / 2
            top, left = int(np.floor(down)), int(np.floor(right))
            if 0 <= top < height - 1 and 0 <= left < width - 1:
                square = image[top : top + 2, left : left + 2].astype(float)
                across = square[:, 0] * (1 - right + left) + square[:, 1] * (right - left)
                turned[row, column] = across[0] * (1 - down + top) + across[1] * (down - top)
    return turned


def test_a_turned_image_is_bilinear_about_its_centre_and_filled_with_the_mean_pixel():
    image = noise(1)[0]
    turned, expected = turn(image, FILL, degrees=12), plain_turn(image, 12)
    inside = ~np.isnan(expected)
    assert inside.mean() > 0.7
    np.testing.assert_allclose(turned[inside], expected[inside], atol=1)
    np.testing.assert_array_equal(turned[0, 0], FILL)
    np.testing.assert_array_equal(turned[-1, -1], FILL)


def test_images_turn_either_way_by_up_to_the_degrees_asked_for():
    turned = augmented(noise(60), rotate=15)
    expected = np.random.default_rng(0).spawn(2)[1].uniform(-1, 1, 60) * 15
    assert expected.min() < -13
    assert expected.max() > 13
    for row in range(60):
        np.testing.assert_array_equal(turned[row], turn(noise(60)[row], FILL, degrees=expected[row]))


def test_erasing_fills_one_rectangle_of_the_share_and_the_aspect_asked_for():
    rng = np.random.default_rng(0)
    shares = []
    for image in noise(300):
        erase(image, np.zeros(3, np.uint8), rng)
        rows, columns = np.nonzero((image == 0).all(axis=2))
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == high * wide
        shares.append(len(rows) / (64 * 32))
    low, high = ERASED_AREA
    assert low * 0.8 <= min(shares) < low + 0.03
    assert high - 0.06 < max(shares) <= high * 1.05


def test_erased_is_the_mean_pixel_which_the_network_sees_as_zero():
    batch = noise()
    erased = augmented(batch, erase=1)
    changed = (erased != batch).any(axis=3)
    assert changed.any(axis=(1, 2)).all()
    assert set(map(tuple, erased[changed].tolist())) == {(128, 102, 76)}


@pytest.mark.parametrize("change", [{"rotate": 15.0}, {"brightness": 0.3, "hue": 0.1}], ids=["turned", "recoloured"])
def test_one_augmentation_more_leaves_the_others_where_they_were(change: dict[str, float]):
    batch = np.full((32, 64, 32, 3), 128, np.uint8)
    erased = (augmented(batch, erase=0.5, pad=0, seed=3) == FILL).all(axis=3)
    both = (augmented(batch, erase=0.5, pad=0, seed=3, **change) == FILL).all(axis=3)
    assert 0 < erased.any(axis=(1, 2)).sum() < 32
    assert both[erased].all()


def test_the_generator_decides_all_chance():
    everything = {"flip": 0.5, "pad": 0.05, "erase": 0.5, "brightness": 0.2, "hue": 0.1, "rotate": 10.0}
    first = augmented(noise(), seed=1, **everything)
    np.testing.assert_array_equal(first, augmented(noise(), seed=1, **everything))
    assert (first != augmented(noise(), seed=2, **everything)).any()
