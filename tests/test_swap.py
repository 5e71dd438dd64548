from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reidserve.datasets import Crop
from reidserve.errors import DatasetError
from reidserve.export.train.pictures import Pictures
from reidserve.export.train.swap import draw_lenders, swap, swapped

Pixels = NDArray[np.uint8]
SHAPE = (8, 4)


def noise(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE, 3), dtype=np.uint8)


def box(count: int, rows: slice, columns: slice) -> Pixels:
    coverage = np.zeros((count, *SHAPE), np.uint8)
    coverage[:, rows, columns] = 255
    return coverage


def plainly(image: Pixels, coverage: Pixels, donor: Pixels, donor_coverage: Pixels) -> Pixels:
    """Pixel by pixel."""
    mixed = np.empty(image.shape)
    everywhere = donor[donor_coverage == 0]
    for row in range(SHAPE[0]):
        free = donor[row][donor_coverage[row] == 0]
        mean = free.mean(axis=0) if len(free) else everywhere.mean(axis=0) if len(everywhere) else np.zeros(3)
        for column in range(SHAPE[1]):
            back = donor[row, column] if donor_coverage[row, column] == 0 else np.rint(mean)
            share = coverage[row, column] / 255
            mixed[row, column] = share * image[row, column] + (1 - share) * back
    return np.floor(mixed + 0.5).astype(np.uint8)


def test_a_swap_is_the_plain_blend_of_target_and_background():
    rng = np.random.default_rng(5)
    coverage, donors_coverage = (
        np.clip(rng.integers(-300, 500, (20, *SHAPE)), 0, 255).astype(np.uint8) for _ in range(2)
    )
    donors_coverage[0] = 255
    donors_coverage[1, 3:5] = 255
    pixels, donors = noise(20), noise(20, seed=1)
    mixed = swap(pixels, coverage, donors, donors_coverage)
    for parts in zip(mixed, pixels, coverage, donors, donors_coverage, strict=True):
        np.testing.assert_allclose(parts[0].astype(int), plainly(*parts[1:]), atol=1)


def test_the_target_stays_and_nothing_of_its_background_or_of_the_donors_target_is_seen():
    pixels, donors = np.full((1, *SHAPE, 3), 10, np.uint8), np.full((1, *SHAPE, 3), 200, np.uint8)
    pixels[:, 2:6, 1:3], donors[:, 1:7, 0:3] = 50, 90
    mixed = swap(pixels, box(1, slice(2, 6), slice(1, 3)), donors, box(1, slice(1, 7), slice(0, 3)))
    expected = np.full((1, *SHAPE, 3), 200)
    expected[:, 2:6, 1:3] = 50
    np.testing.assert_array_equal(mixed, expected)


def test_an_image_without_a_mask_is_all_target():
    pixels = noise(3)
    full = np.full((3, *SHAPE), 255, np.uint8)
    np.testing.assert_array_equal(swap(pixels, full, noise(3, seed=1), box(3, slice(2, 6), slice(1, 3))), pixels)


def pictures(pids: str, seed: int, *, without: tuple[int, ...] = ()) -> Pictures:
    coverage = box(len(pids), slice(2, 6), slice(1, 3))
    coverage[list(without)] = 255
    backgrounds = np.array([row for row in range(len(pids)) if row not in without], np.int64)
    crops = [Crop(Path(f"{row}.png"), pid=pid) for row, pid in enumerate(pids)]
    return Pictures(crops, noise(len(pids), seed), [("bad.png", "broken")], coverage, backgrounds)


def test_a_whole_set_is_put_before_the_backgrounds_of_another_one(tmp_path: Path):
    ours, theirs = pictures("aabbc" * 30, 0, without=(4,)), pictures("xyz", 1)
    mixed = swapped(ours, theirs, 7, scratch=tmp_path)
    inside = ours.coverage == 255
    np.testing.assert_array_equal(mixed.pixels[inside], ours.pixels[inside])
    lent = [
        next(row for row in range(3) if (theirs.pixels[row, 0] == image[0]).all())
        for place, image in enumerate(mixed.pixels)
        if place != 4
    ]
    assert set(lent) == {0, 1, 2}
    assert (mixed.crops, mixed.failures) == (ours.crops, ours.failures)
    again, other = (swapped(ours, theirs, seed, scratch=tmp_path).pixels for seed in (7, 8))
    np.testing.assert_array_equal(again, mixed.pixels)
    assert (other != mixed.pixels).any()
    assert list(tmp_path.iterdir()) == []


def test_a_set_swapped_with_itself_lends_to_other_identities_and_only_what_has_a_mask(tmp_path: Path):
    ours = pictures("aabbc" * 10, 0, without=(4, 9))
    mixed = swapped(ours, ours, 0, scratch=tmp_path)
    for place, image in enumerate(mixed.pixels):
        if place in (4, 9):
            np.testing.assert_array_equal(image, ours.pixels[place])
            continue
        (lender,) = np.flatnonzero((ours.pixels[:, 0] == image[0]).all(axis=(1, 2))).tolist()
        assert lender not in (4, 9)
        assert ours.crops[lender].pid != ours.crops[place].pid


def test_lenders_come_up_equally_often():
    identities, others = np.zeros(6000, np.int64), np.array([0, 1, 2, 3, 0])
    drawn = draw_lenders(identities, others, np.array([0, 1, 3, 4]), np.random.default_rng(0))
    rows, counts = np.unique(drawn, return_counts=True)
    assert rows.tolist() == [1, 3]
    assert abs(counts[0] - 3000) < 200


def test_pictures_without_masks_or_without_another_identity_are_refused(tmp_path: Path):
    ours = pictures("aab", 0)
    for one, other in ((replace(ours, coverage=None), ours), (ours, replace(ours, coverage=None))):
        with pytest.raises(DatasetError, match="read with their masks"):
            swapped(one, other, 0, scratch=tmp_path)
    with pytest.raises(DatasetError, match="no image of another identity than a has a mask"):
        swapped(ours, pictures("aa", 1), 0, scratch=tmp_path)
