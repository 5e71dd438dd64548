import math
import resource
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.datasets import Crop
from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.embed import decode, read_image, resize
from reidserve.errors import DatasetError, EvaluationError
from reidserve.export.train.augmentation import augment
from reidserve.export.train.material import Material, hold_out, read_material
from reidserve.export.train.pictures import reserve
from reidserve.export.train.settings import (
    AugmentSettings,
    BatchSettings,
    EvaluationSettings,
    InputSettings,
    Settings,
)
from reidserve.export.train.statistics import pixel_statistics, resolve
from reidserve.export.train.swap import swap
from tests.conftest import write_crops

SMALL = Settings(
    input=InputSettings(height=64, width=32),
    batch=BatchSettings(identities=4, images=4),
    evaluation=EvaluationSettings(every=1),
)
SWAPPING = replace(SMALL, augment=AugmentSettings(flip=0, pad=0, erase=0, swap=1))
UNSCORED = replace(SMALL, evaluation=EvaluationSettings(every=0))
VEHICLES = r"(?P<pid>[a-z]+_\d+)_cam(?P<camid>\d)"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training identities with 4 images each, 6 others to score on, all with masks."""
    root = tmp_path_factory.mktemp("material") / "data"
    spec = SynthSpec(train_identities=12, test_identities=6, cameras=2, images_per_camera=2, junk=2, distractors=2)
    write_dataset(root, spec)
    return root


@pytest.fixture(scope="module")
def material(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return read_material(data, SMALL, scratch=tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def masked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return read_material(data, SWAPPING, scratch=tmp_path_factory.mktemp("scratch"))


def crop_folders(root: Path, *, pids: int, frames: int = 1, camids: int = 2) -> Path:
    """A dataset in Market-1501's layout whose test part is of two identities more."""
    write_crops(root / "bounding_box_train", pids=pids, camids=camids, frames=frames)
    for part, camid in (("query", 1), ("bounding_box_test", 2)):
        for path in write_crops(root / part, pids=pids + 2):
            if int(path.name[:4]) <= pids or f"_c{camid}s" not in path.name:
                path.unlink()
    return root


# Reading


def test_material_holds_the_pixels_that_serving_would_make_and_classes_in_the_order_of_pids(material: Material):
    assert (material.name, len(material.train), material.classes, material.failures) == ("data", 48, 12, [])
    pids = sorted({crop.pid for crop in material.train.crops if crop.pid})
    for row in (0, 17, 47):
        crop = material.train.crops[row]
        assert pids[material.labels[row]] == crop.pid
        expected = resize(decode(read_image(crop.path)), height=64, width=32, resize_filter="bilinear")
        np.testing.assert_array_equal(material.train.pixels[row], expected)
    assert material.trial is not None
    assert len(material.trial.query) == 12
    assert material.notes == []


def test_progress_counts_every_image_of_every_part(data: Path, tmp_path: Path):
    heard: list[tuple[int, int]] = []
    settings = replace(SMALL, evaluation=EvaluationSettings(every=1, held_out=0.25))
    read_material(data, settings, scratch=tmp_path, progress=lambda done, total: heard.append((done, total)))
    total = 48 + 12 + 12 + 4
    assert heard == [(done, total) for done in range(1, total + 1)]


def test_several_sources_share_no_identity_and_are_scored_together(data: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    joined = read_material([data, other], SMALL, scratch=tmp_path)
    assert (joined.name, joined.classes, len(joined.train)) == ("data+other", 24, 96)
    assert Counter(joined.labels.tolist()) == dict.fromkeys(range(24), 4)
    assert {str(crop.pid).partition("/")[0] for crop in joined.train.crops} == {"data", "other"}
    assert joined.trial is not None
    assert (len(joined.trial.query), len(joined.trial.gallery)) == (24, 32)
    # The second is a copy of the first.
    assert [note.partition(",")[0] for note in joined.notes] == ["48 training images stand under more than one pid"]


def test_file_names_that_a_pattern_explains_are_learnt_from(tmp_path: Path):
    for part, pids in (("train", range(5)), ("test", range(5, 7))):
        (tmp_path / part).mkdir()
        for pid in pids:
            for camid in (1, 2):
                Image.new("RGB", (32, 64), (pid, camid, 0)).save(tmp_path / part / f"car_{pid:04}_cam{camid}.png")
    read = read_material(tmp_path, SMALL, scratch=tmp_path, pattern=VEHICLES)
    assert [str(crop.pid) for crop in read.train.crops] == [f"car_{pid:04}" for pid in range(5) for _ in (1, 2)]
    assert read.trial is not None
    assert [crop.camid for crop in read.trial.query.crops] == ["1", "2", "1", "2"]
    assert read.trial.gallery.crops == read.trial.query.crops
    assert read.notes == []


def test_photographs_of_vehicles_are_learnt_from_as_they_lie(shared: Path, tmp_path: Path):
    read = read_material(shared / "data/vehicles/images", SMALL, scratch=tmp_path, pattern=VEHICLES)
    assert (len(read.train), read.classes, read.failures, read.notes) == (1014, 507, [], [])
    assert read.trial is not None
    assert (len(read.trial.query), len(read.trial.gallery)) == (120, 120)


def test_the_fingerprint_is_of_pixels_pids_and_masks(material: Material, masked: Material):
    pixels = material.train.pixels.copy()
    pixels[3, 2, 1, 0] ^= 1
    crops = [replace(material.train.crops[0], pid="other"), *material.train.crops[1:]]
    others = [
        masked,
        replace(material, train=replace(material.train, pixels=pixels)),
        replace(material, train=replace(material.train, crops=crops)),
    ]
    assert len({material.fingerprint, *(other.fingerprint for other in others)}) == 4


# Refusals and notes


def test_what_is_odd_is_said_before_anything_is_decoded(tmp_path: Path):
    root = crop_folders(tmp_path / "data", pids=5)
    train = root / "bounding_box_train"
    (train / "0001_c2s1_000000_00.png").unlink()
    (train / "0002_c2s1_000000_00.png").rename(train / "-1_c2s1_000000_00.png")
    shutil.copy(train / "0003_c1s1_000000_00.png", root / "bounding_box_test/0003_c3s1_000000_00.png")
    heard: list[int] = []
    notes = read_material(root, SMALL, scratch=tmp_path, progress=lambda done, total: heard.append(done)).notes
    assert [note.partition(", such as")[0] for note in notes] == [
        "1 training images of junk (pid -1) in data are left out",
        "1 of 3 identities of query and gallery are learnt from too, and scores will be too good unless they are "
        "others under the same names",
        "2 of 5 training identities have one image, which is compared with itself",
        "2 of 5 training identities are seen by one camera, which says little about others",
        "1 training images are gallery images too, byte for byte",
    ]
    with pytest.raises(DatasetError, match="hold 16 identities, the training set has 5"):
        read_material(
            root, Settings(), scratch=tmp_path, progress=lambda *_: pytest.fail("decoded before it was checked")
        )


def test_few_unreadable_images_are_named_and_left_out_and_many_are_refused(tmp_path: Path):
    root = crop_folders(tmp_path / "data", pids=12)
    train_folder = root / "bounding_box_train"
    (train_folder / "0007_c1s1_000000_00.png").write_text("no image")
    read = read_material(root, SMALL, scratch=tmp_path)
    assert (len(read.train), len(read.labels), read.classes) == (23, 23, 12)
    ((name, reason),) = read.failures
    assert name.endswith("0007_c1s1_000000_00.png")
    assert "expected a JPEG" in reason
    (train_folder / "0008_c1s1_000000_00.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"2 of 24 training images cannot be read, more than 5%: .*0007_c1.*0008_c1"):
        read_material(root, SMALL, scratch=tmp_path)


def test_a_dataset_without_query_and_gallery_is_refused_with_the_way_out(tmp_path: Path):
    write_crops(tmp_path / "bounding_box_train", pids=4)
    with pytest.raises(DatasetError, match=r"to train without evaluation, give --set evaluation.every=0"):
        read_material(tmp_path, SMALL, scratch=tmp_path)
    assert read_material(tmp_path, UNSCORED, scratch=tmp_path).trial is None


def test_a_dataset_that_cannot_be_scored_is_refused_before_it_is_trained_on(tmp_path: Path):
    root = crop_folders(tmp_path / "data", pids=4)
    for path in (root / "bounding_box_test").iterdir():
        path.rename(path.with_name(path.name.replace("_c2s", "_c1s")))
    with pytest.raises(EvaluationError, match="none of 2 queries has a right entry"):
        read_material(root, SMALL, scratch=tmp_path)


# Held-out images


def crops(*counts: int) -> list[Crop]:
    return [Crop(Path(f"{pid}_{row}"), pid=str(pid)) for pid, count in enumerate(counts) for row in range(count)]


def held_out_of(*counts: int, share: float, seed: int = 0) -> tuple[list[Crop], list[Crop]]:
    settings = replace(SMALL, seed=seed, evaluation=EvaluationSettings(held_out=share))
    return hold_out(crops(*counts), settings)


def test_a_share_of_each_identitys_images_is_held_out_and_one_always_stays():
    counts = (1, 2, 3, 10, 40)
    learnt, held = held_out_of(*counts, share=0.3)
    assert sorted([*learnt, *held], key=lambda crop: crop.path) == sorted(crops(*counts), key=lambda crop: crop.path)
    assert [learnt, held] == [sorted(part, key=crops(*counts).index) for part in (learnt, held)]
    taken = Counter(crop.pid for crop in held)
    for pid, count in enumerate(counts):
        assert math.floor(0.3 * count) <= taken[str(pid)] <= min(math.ceil(0.3 * count), count - 1)
    most, rest = held_out_of(*counts, share=0.9)
    assert set(Counter(crop.pid for crop in most)) == {"0", "1", "2", "3", "4"}
    assert Counter(crop.pid for crop in rest)["1"] == 1


def test_the_share_holds_over_identities_that_have_few_images_each():
    assert 70 <= len(held_out_of(*[2] * 400, share=0.1)[1]) <= 90


def test_the_seed_draws_what_is_held_out():
    first, again, other = (held_out_of(5, 5, 5, share=0.4, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert held_out_of(5, 5, share=0.0)[1] == []


def test_a_share_that_holds_nothing_out_is_refused():
    with pytest.raises(DatasetError, match=r"evaluation.held_out of 0.5 holds out none of 3 training images"):
        held_out_of(1, 1, 1, share=0.5)


def test_held_out_images_have_the_classes_of_their_identities_and_are_not_learnt_from(data: Path, tmp_path: Path):
    settings = replace(SMALL, evaluation=EvaluationSettings(every=0, held_out=0.25))
    read = read_material(data, settings, scratch=tmp_path)
    assert read.held_out is not None
    assert read.held_out_labels is not None
    assert (len(read.train), len(read.held_out), read.classes) == (36, 12, 12)
    names = dict(zip((crop.pid for crop in read.train.crops), read.labels, strict=False))
    assert read.held_out_labels.tolist() == [names[crop.pid] for crop in read.held_out.crops]
    learnt = {crop.path for crop in read.train.crops}
    assert not learnt & {crop.path for crop in read.held_out.crops}
    expected = resize(decode(read_image(read.held_out.crops[5].path)), height=64, width=32, resize_filter="bilinear")
    np.testing.assert_array_equal(read.held_out.pixels[5], expected)


def test_held_out_images_of_an_identity_that_cannot_be_read_are_left_out_too(tmp_path: Path):
    root = crop_folders(tmp_path / "data", pids=24)
    settings = replace(
        SMALL, evaluation=EvaluationSettings(every=0, held_out=0.5), loss=replace(SMALL.loss, metric="none")
    )
    held = read_material(root, settings, scratch=tmp_path).held_out
    assert held is not None
    lost = str(held.crops[3].pid)
    for path in (root / "bounding_box_train").glob(f"{lost}_*"):
        if path != held.crops[3].path:
            path.write_text("no image")
    read = read_material(root, settings, scratch=tmp_path)
    assert read.held_out is not None
    assert read.held_out_labels is not None
    assert (read.classes, len(read.held_out), len(read.failures)) == (23, 23, 1)
    assert lost not in {crop.pid for crop in read.held_out.crops}
    assert read.held_out_labels.tolist() == list(range(23))


# Batches


def test_seed_epoch_and_step_decide_a_batch(masked: Material):
    rows = np.arange(16)
    settings = replace(SMALL, augment=AugmentSettings(swap=0.5, hue=0.2, rotate=10))
    first = masked.batch(rows, settings, epoch=1, step=0)
    np.testing.assert_array_equal(first, masked.batch(rows, settings, epoch=1, step=0))
    others = [
        masked.batch(rows, settings, epoch=1, step=1),
        masked.batch(rows, settings, epoch=2, step=0),
        masked.batch(rows, replace(settings, seed=1), epoch=1, step=0),
    ]
    assert all((first != other).any() for other in others)


def test_a_batch_is_the_augmented_images_of_its_rows(material: Material):
    rows = np.array([3, 1, 1, 40])
    plain = replace(SMALL, augment=AugmentSettings(flip=0, pad=0, erase=0))
    np.testing.assert_array_equal(material.batch(rows, plain, epoch=3, step=5), material.train.pixels[rows])
    expected = augment(material.train.pixels[rows], SMALL, np.random.default_rng((2, 0, 3, 5)))
    np.testing.assert_array_equal(material.batch(rows, SMALL, epoch=3, step=5), expected)


# Masks


def test_masks_are_resized_as_their_images_and_say_which_have_a_background(masked: Material, data: Path):
    assert masked.train.coverage is not None
    assert masked.train.coverage.shape == (48, 64, 32)
    assert masked.train.backgrounds.tolist() == list(range(48))
    crop = masked.train.crops[7]
    with Image.open(data / "masks/bounding_box_train" / f"{crop.path.stem}.png") as mask:
        expected = np.asarray(mask.resize((32, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(masked.train.coverage[7], expected)
    assert masked.trial is not None
    assert masked.trial.query.coverage is None


def test_masks_of_every_part_are_read_where_they_are_asked_for(data: Path, tmp_path: Path):
    settings = replace(SMALL, evaluation=EvaluationSettings(every=1, held_out=0.25))
    read = read_material(data, settings, scratch=tmp_path, masks=True)
    assert read.trial is not None
    assert read.held_out is not None
    for part in (read.train, read.held_out, read.trial.query, read.trial.gallery):
        assert part.coverage is not None
        assert part.coverage.shape == part.pixels.shape[:3]


def test_a_swapped_batch_keeps_targets_and_takes_backgrounds_of_other_identities(masked: Material):
    train = masked.train
    assert train.coverage is not None
    rows = np.arange(0, 48, 3)
    batch = masked.batch(rows, SWAPPING, epoch=1, step=0)
    for image, row in zip(batch, rows, strict=True):
        own = [row] * 48
        candidates = swap(train.pixels[own], train.coverage[own], train.pixels, train.coverage)
        lenders = np.flatnonzero((candidates == image).all(axis=(1, 2, 3)))
        assert len(lenders) >= 1
        assert all(masked.labels[lender] != masked.labels[row] for lender in lenders)


def test_the_share_asked_for_is_swapped(masked: Material):
    rows = np.tile(np.arange(48), 10)
    half = replace(SWAPPING, augment=replace(SWAPPING.augment, swap=0.5))
    batch = masked.batch(rows, half, epoch=1, step=0)
    changed = (batch != masked.train.pixels[rows]).any(axis=(1, 2, 3))
    assert 0.42 < changed.mean() < 0.58


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "copy"))


def test_images_without_a_mask_or_with_an_empty_one_keep_their_background_and_are_counted(copied: Path, tmp_path: Path):
    first, second, *_ = sorted((copied / "masks/bounding_box_train").iterdir())
    first.unlink()
    with Image.open(second) as mask:
        Image.new("L", mask.size, 0).save(second)
    read = read_material(copied, SWAPPING, scratch=tmp_path)
    assert read.notes == ["2 of 48 training images have no mask and keep their background"]
    assert read.train.backgrounds.tolist() == list(range(2, 48))
    batch = read.batch(np.arange(48), SWAPPING, epoch=1, step=0)
    same = (batch == read.train.pixels).all(axis=(1, 2, 3))
    assert np.flatnonzero(same).tolist() == [0, 1]


def test_swapping_without_masks_of_two_identities_is_refused(copied: Path, tmp_path: Path):
    masks = copied / "masks/bounding_box_train"
    for path in masks.iterdir():
        if not path.name.startswith("0003"):
            path.unlink()
    with pytest.raises(DatasetError, match=r"needs masks of at least two identities, 4 of 48 training images have one"):
        read_material(copied, SWAPPING, scratch=tmp_path)
    shutil.rmtree(copied / "masks")
    with pytest.raises(DatasetError, match=r"0 of 48 training images have one: masks/ beside .* column mask"):
        read_material(copied, SWAPPING, scratch=tmp_path)


def test_a_mask_of_another_size_or_scale_is_named_with_its_image(copied: Path, tmp_path: Path):
    first, second, *_ = sorted((copied / "masks/bounding_box_train").iterdir())
    Image.new("L", (9, 7), 255).save(first)
    with Image.open(second) as mask:
        mask.point([min(value, 1) for value in range(256)]).save(second)
    read = read_material(copied, SWAPPING, scratch=tmp_path)
    (one, small), (other, dark) = read.failures
    assert [Path(name).stem for name in (one, other)] == [first.stem, second.stem]
    assert small == f"its mask {first} is 9x7 pixels, it is 64x128"
    assert dark == f"its mask {second} holds values up to 1: expected 255 where the target is seen"
    first.write_text("no image")
    assert (
        read_material(copied, SWAPPING, scratch=tmp_path)
        .failures[0][1]
        .startswith(f"its mask {first} cannot be read: expected a JPEG")
    )


def test_a_column_of_a_table_names_masks(data: Path, tmp_path: Path):
    table = tmp_path / "table.csv"
    images = sorted((data / "bounding_box_train").iterdir())
    lines = [f"{path},{path.name[:4]},{data}/masks/bounding_box_train/{path.stem}.png,train" for path in images]
    table.write_text("\n".join(["path,pid,mask,split", *lines]))
    settings = replace(SWAPPING, evaluation=EvaluationSettings(every=0))
    read = read_material(table, settings, scratch=tmp_path)
    assert len(read.train.backgrounds) == 48


# The training set's own statistics


def test_statistics_of_the_dataset_become_given_ones(material: Material):
    asked = replace(SMALL, input=replace(SMALL.input, statistics="dataset"))
    mean, std = pixel_statistics(material.train.pixels)
    resolved = resolve(asked, material)
    assert resolved == replace(asked, input=replace(asked.input, statistics="given", mean=mean, std=std))
    assert resolve(SMALL, material) is SMALL
    np.testing.assert_allclose(mean, (material.train.pixels / 255).mean(axis=(0, 1, 2)), rtol=1e-12)


def test_no_room_for_the_pixels_is_said_with_the_place_and_their_size(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: 6,144 bytes of pixels are to lie here") as refusal:
            reserve((2, 32, 32, 3), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refusal.value.filename == str(tmp_path)


def test_nothing_is_left_of_the_pixels_when_the_material_is_gone(data: Path, tmp_path: Path):
    read_material(data, SWAPPING, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
