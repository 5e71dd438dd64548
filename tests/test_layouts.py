import re
from pathlib import Path
from typing import Any

import pytest

from reidserve.datasets import JUNK, LAYOUTS, Crop, is_distractor, read_crops, read_dataset, read_training
from reidserve.errors import DatasetError
from tests.test_folders import touch

MARKET = ("0002_c1s1_000451_03.jpg", "1501_c6s4_012345_00.jpg")
DUKE = ("0001_c2_f0046182.jpg", "7140_c8_f0000001.jpg")
CUHK = ("0003_c1_21.png", "1467_c2_6.png")
MSMT_AS_MARKET = ("0781_c11_0015.jpg", "0000_c1_0003.jpg")
VERI = ("0002_c002_00030600_0.jpg", "0776_c020_00000001_12.jpg")


def dataset(root: Path, query: str, gallery: str, names: tuple[str, ...]) -> Path:
    touch(root / query, names[0])
    touch(root / gallery, *names)
    return root


@pytest.mark.parametrize(
    ("layout", "query", "gallery", "names", "labels"),
    [
        ("market1501", "query", "bounding_box_test", MARKET, [("0002", "1"), ("1501", "6")]),
        ("dukemtmc", "query", "bounding_box_test", DUKE, [("0001", "2"), ("7140", "8")]),
        ("cuhk03np", "query", "bounding_box_test", CUHK, [("0003", "1"), ("1467", "2")]),
        ("cuhk03np", "query", "bounding_box_test", MSMT_AS_MARKET, [("0000", "1"), ("0781", "11")]),
        ("veri776", "image_query", "image_test", VERI, [("0002", "002"), ("0776", "020")]),
        ("folders", "query", "gallery", ("anna/1.jpg", "red car 7/2.jpg"), [("anna", None), ("red car 7", None)]),
    ],
)
def test_a_layout_is_told_by_its_folders_and_names(
    tmp_path: Path, layout: str, query: str, gallery: str, names, labels
):
    names = tuple(sorted(names))
    read = read_dataset(dataset(tmp_path, query, gallery, names))
    assert (read.layout, read.protocol) == (layout, "market1501")
    assert [(crop.pid, crop.camid) for crop in read.gallery] == labels
    assert [(crop.pid, crop.camid) for crop in read.query] == labels[:1]
    assert [crop.path for crop in read.gallery] == [tmp_path / gallery / name for name in names]
    assert read.query[0].path == tmp_path / query / names[0]


def test_junk_and_distractors_of_market1501_keep_their_pids(tmp_path: Path):
    names = ("-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", MARKET[0])
    read = read_dataset(dataset(tmp_path, "query", "bounding_box_test", names))
    assert [crop.pid for crop in read.gallery] == [JUNK, "0000", "0002"]
    assert [is_distractor(crop.pid) for crop in read.gallery] == [False, True, False]
    assert not is_distractor(None)


def test_folders_per_identity_of_a_known_dataset_keep_the_cameras_of_its_names(tmp_path: Path):
    touch(tmp_path / "query", f"0002/{MARKET[0]}")
    touch(tmp_path / "gallery", f"0002/{MARKET[0]}", f"1501/{MARKET[1]}", "-1/-1_c3s1_000401_03.jpg")
    read = read_dataset(tmp_path)
    assert read.layout == "folders"
    assert [(crop.pid, crop.camid) for crop in read.query] == [("0002", "1")]
    assert [(crop.pid, crop.camid) for crop in read.gallery] == [("-1", "3"), ("0002", "1"), ("1501", "6")]


@pytest.mark.parametrize("odd", ["0002/IMG_7.jpg", f"0003/{MARKET[0]}"], ids=["another name", "another pid"])
def test_folders_per_identity_of_which_one_name_says_something_else_have_no_cameras(tmp_path: Path, odd: str):
    touch(tmp_path / "query", f"0002/{MARKET[0]}")
    touch(tmp_path / "gallery", f"1501/{MARKET[1]}", odd)
    assert {crop.camid for crop in read_dataset(tmp_path).gallery} == {None}


@pytest.mark.parametrize(
    ("folder", "names", "labels"),
    [
        ("bounding_box_train", ("0002_c1s1_000451_03.jpg", "-1_c6s4_012345_00.jpg"), [("-1", "6"), ("0002", "1")]),
        ("bounding_box_train", DUKE, [("0001", "2"), ("7140", "8")]),
        ("bounding_box_train", CUHK, [("0003", "1"), ("1467", "2")]),
        ("image_train", VERI, [("0002", "002"), ("0776", "020")]),
        ("train", ("anna/1.jpg", "red car 7/2.jpg"), [("anna", None), ("red car 7", None)]),
        ("train", (f"0002/{MARKET[0]}", f"1501/{MARKET[1]}"), [("0002", "1"), ("1501", "6")]),
    ],
    ids=["market1501", "dukemtmc", "cuhk03np", "veri776", "folders", "folders with Market's names"],
)
def test_the_training_part_of_each_layout_is_read_without_the_others(tmp_path: Path, folder, names, labels):
    touch(tmp_path / folder, *names)
    assert [(crop.pid, crop.camid) for crop in read_training(tmp_path)] == labels


def test_the_training_part_of_a_table_is_read_without_the_others(tmp_path: Path):
    table = tmp_path / "all.csv"
    table.write_text("path,pid,split\na.jpg,7,train\nb.jpg,8,train\n")
    assert read_training(table) == [Crop(tmp_path / "a.jpg", pid="7"), Crop(tmp_path / "b.jpg", pid="8")]
    table.write_text("path,pid,split\na.jpg,7,query\nb.jpg,8,gallery\n")
    with pytest.raises(DatasetError, match="no row whose split is 'train'"):
        read_training(table)


def test_a_dataset_without_a_training_part_is_refused_with_the_folders_known(tmp_path: Path):
    touch(tmp_path / "query", "0002_c1s1_000451_03.jpg")
    with pytest.raises(DatasetError, match=r"no training set .*market1501: bounding_box_train/.*veri776: image_train/"):
        read_training(tmp_path)
    with pytest.raises(DatasetError, match="neither"):
        read_training(tmp_path / "nowhere")


CARS = r"(?P<pid>[a-z]+_\d+)_cam(?P<camid>\d)"


def test_a_pattern_reads_the_folders_of_a_layout_in_its_place(tmp_path: Path):
    touch(tmp_path / "train", "car_7_cam1.jpg", "car_7_cam2.jpg")
    touch(tmp_path / "query", "car_8_cam1.jpg")
    touch(tmp_path / "gallery", "car_8_cam2.jpg", "bus_9_cam1.jpg")
    assert [(crop.pid, crop.camid) for crop in read_training(tmp_path, pattern=CARS)] == [
        ("car_7", "1"),
        ("car_7", "2"),
    ]
    read = read_dataset(tmp_path, pattern=CARS)
    assert (read.layout, read.protocol) == ("pattern", "market1501")
    assert read.query == [Crop(tmp_path / "query/car_8_cam1.jpg", pid="car_8", camid="1")]
    assert [(crop.pid, crop.camid) for crop in read.gallery] == [("bus_9", "1"), ("car_8", "2")]


def test_of_a_folder_called_test_a_pattern_makes_query_and_gallery(tmp_path: Path):
    touch(tmp_path / "test", "car_8_cam1.jpg", "car_8_cam2.jpg")
    read = read_dataset(tmp_path, pattern=CARS)
    assert [(crop.pid, crop.camid) for crop in read.query] == [("car_8", "1"), ("car_8", "2")]
    assert read.gallery == read.query


def test_a_pattern_without_such_folders_or_of_a_table_is_refused(tmp_path: Path):
    touch(tmp_path, "car_7_cam1.jpg", "crops.csv")
    with pytest.raises(DatasetError, match=r"a pattern is read in: bounding_box_train/; image_train/; train/$"):
        read_training(tmp_path, pattern=CARS)
    with pytest.raises(DatasetError, match=r"query/ and gallery/; test/$"):
        read_dataset(tmp_path, pattern=CARS)
    for read in (read_training, read_dataset):
        with pytest.raises(DatasetError, match="leave out --pattern"):
            read(tmp_path / "crops.csv", pattern=CARS)
        with pytest.raises(DatasetError, match="neither"):
            read(tmp_path / "nowhere", pattern=CARS)


def test_one_stranger_does_not_turn_a_layout_into_another(tmp_path: Path):
    root = dataset(tmp_path, "query", "bounding_box_test", DUKE)
    touch(root / "query", "stranger.jpg")
    touch(root / "gallery", "0001/a.jpg")
    with pytest.raises(DatasetError, match=r"1 of 2 images do not match the pattern .*, first .*/query/stranger.jpg"):
        read_dataset(root)


def test_an_unknown_layout_is_refused_with_those_known(tmp_path: Path):
    touch(tmp_path, "query/a.jpg", "images/b.jpg")
    with pytest.raises(DatasetError) as refused:
        read_dataset(tmp_path)
    assert str(tmp_path) in str(refused.value)
    for layout in LAYOUTS:
        assert f"{layout.name}: {layout.query}/, {layout.gallery}/" in str(refused.value)
    assert "the columns path, pid, camid and split" in str(refused.value)


def test_a_missing_root_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=f"{tmp_path}/none is neither"):
        read_dataset(tmp_path / "none")


@pytest.mark.parametrize("part", ["query", "bounding_box_test"])
def test_an_empty_part_is_refused(tmp_path: Path, part: str):
    root = dataset(tmp_path, "query", "bounding_box_test", MARKET)
    for path in (root / part).iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=f"{root / part} holds no image"):
        read_dataset(root)


@pytest.mark.parametrize("names", [MARKET, DUKE, CUHK, VERI], ids=["market1501", "dukemtmc", "cuhk03np", "veri776"])
def test_crops_with_names_of_a_known_dataset_are_labelled(tmp_path: Path, names):
    crops = read_crops(touch(tmp_path, *names))
    assert [crop.pid for crop in crops] == [name[:4] for name in names]
    assert None not in {crop.camid for crop in crops}


def test_crops_with_other_names_have_no_labels(tmp_path: Path):
    crops = read_crops(touch(tmp_path, "IMG_0001.jpg", "0002_c1.jpg", "x0002_c1s1_000451_03.jpg"))
    assert [(crop.pid, crop.camid, crop.timestamp) for crop in crops] == [(None, None, None)] * 3


@pytest.mark.parametrize("others", [("IMG_0001.jpg",), DUKE], ids=["plain", "of another dataset"])
def test_crops_of_which_only_some_have_a_known_name_are_refused(tmp_path: Path, others):
    folder = touch(tmp_path, *MARKET, *others)
    with pytest.raises(
        DatasetError, match=rf"2 of {2 + len(others)} file names in {folder} are of market1501, the others"
    ):
        read_crops(folder)
    assert len(read_crops(folder, pattern="(?P<pid>.+)")) == 2 + len(others)


def test_the_root_of_a_dataset_is_refused_and_a_part_is_named(tmp_path: Path):
    root = dataset(tmp_path, "image_query", "image_test", VERI)
    everywhere: list[dict[str, Any]] = [{}, {"pattern": "(?P<pid>.+)"}, {"layout": "veri776"}]
    for options in everywhere:
        with pytest.raises(
            DatasetError, match=f"root of a veri776 dataset: name one of its parts, such as {root}/image_test"
        ):
            read_crops(root, **options)
    assert [crop.pid for crop in read_crops(root / "image_test")] == ["0002", "0776"]


def test_a_layout_that_is_asked_for_is_taken(tmp_path: Path):
    touch(tmp_path, "anna/IMG_1.jpg", f"bob/{MARKET[0]}")
    crops = read_crops(tmp_path, layout="folders")
    assert [(crop.pid, crop.camid) for crop in crops] == [("anna", None), ("bob", None)]
    with pytest.raises(DatasetError, match="1 of 2 images do not match"):
        read_crops(tmp_path, layout="market1501")


def test_a_folder_named_like_a_crop_labels_nothing(tmp_path: Path):
    touch(tmp_path, f"{MARKET[0]}/{MARKET[1]}")
    assert [(crop.pid, crop.camid) for crop in read_crops(tmp_path)] == [("1501", "6")]


@pytest.mark.parametrize("options", [{"pattern": "(?P<pid>.+)"}, {"layout": "market1501"}])
def test_a_table_takes_no_pattern_and_no_layout(tmp_path: Path, options):
    table = tmp_path / "crops.CSV"
    table.write_text("path,pid\na.jpg,7\n")
    assert [(crop.path, crop.pid) for crop in read_crops(table)] == [(tmp_path / "a.jpg", "7")]
    with pytest.raises(DatasetError, match=re.escape(f"{table} is a table, its columns are the labels")):
        read_crops(table, **options)
