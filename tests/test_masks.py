from pathlib import Path

from reidserve.datasets import Crop, read_training, with_masks
from reidserve.datasets.synth import SynthSpec, write_dataset
from tests.test_folders import touch


def test_masks_mirror_the_paths_of_images_below_the_root(tmp_path: Path):
    touch(tmp_path / "train", "anna/1.jpg", "anna/2.png", "bob/1.jpg")
    touch(tmp_path / "masks/train", "anna/1.png", "anna/2.png", "bob/1.jpg")
    masks = [crop.mask for crop in with_masks(read_training(tmp_path), tmp_path)]
    assert masks == [tmp_path / "masks/train/anna/1.png", tmp_path / "masks/train/anna/2.png", None]


def test_a_mask_that_is_known_stays_and_images_elsewhere_have_none(tmp_path: Path):
    touch(tmp_path / "root/masks", "a.png")
    crops = [Crop(tmp_path / "root/a.jpg", mask=tmp_path / "own.png"), Crop(tmp_path / "a.jpg")]
    assert with_masks(crops, tmp_path / "root") == crops
    assert with_masks(crops, tmp_path) == crops


def test_every_synthetic_image_has_its_mask(tmp_path: Path):
    write_dataset(tmp_path / "data", SynthSpec(train_identities=2, test_identities=1, cameras=2, images_per_camera=2))
    crops = with_masks(read_training(tmp_path / "data"), tmp_path / "data")
    assert [crop.mask for crop in crops] == [
        tmp_path / "data/masks/bounding_box_train" / f"{crop.path.stem}.png" for crop in crops
    ]
    assert all(crop.mask and crop.mask.is_file() for crop in crops)
