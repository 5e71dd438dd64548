import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reidserve.datasets import Crop, read_dataset, read_training
from reidserve.datasets.lists import read_words
from reidserve.errors import DatasetError
from tests.test_folders import touch

QUERY = "0000/0000_000_01_0303morning_0008_0.jpg"
GALLERY = ("0000/0000_001_14_0303noon_0011_1_ex.jpg", "0001/0001_002_03_0113afternoon_1020_2.jpg")
TRAIN = ("0007/0007_000_05_0303morning_0015_1.jpg", "0007/0007_001_06_0303morning_0016_1.jpg")


def write_list(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def msmt17(root: Path, *, train: str = "train", test: str = "test") -> Path:
    touch(root / test, QUERY, *GALLERY)
    touch(root / train, *TRAIN)
    write_list(root / "list_query.txt", f"{QUERY} 0")
    write_list(root / "list_gallery.txt", f"{GALLERY[0]} 0", f"{GALLERY[1]} 1")
    write_list(root / "list_train.txt", f"{TRAIN[0]} 7")
    write_list(root / "list_val.txt", f"{TRAIN[1]} 7")
    return root


def vehicleid(root: Path) -> Path:
    touch(root / "image", "0000010.jpg", "0000011.jpg", "0000020.jpg", "0000900.jpg")
    write_list(root / "train_test_split/train_list.txt", "0000900 77")
    write_list(root / "train_test_split/test_list_800.txt", "0000011 5", "0000010 5")
    write_list(root / "train_test_split/test_list_1600.txt", "0000011 5", "0000010 5", "0000020 6")
    return root


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")], ids=["V1", "V2"])
def test_msmt17_takes_pids_from_its_lists_and_cameras_from_the_third_field(tmp_path: Path, folders):
    train, test = folders
    root = msmt17(tmp_path, train=train, test=test)
    read = read_dataset(root)
    assert (read.layout, read.protocol) == ("msmt17", "market1501")
    assert read.query == [Crop(root / test / QUERY, pid="0", camid="01")]
    assert read.gallery == [
        Crop(root / test / GALLERY[0], pid="0", camid="14"),
        Crop(root / test / GALLERY[1], pid="1", camid="03"),
    ]
    learnt = [Crop(root / train / TRAIN[0], pid="7", camid="05"), Crop(root / train / TRAIN[1], pid="7", camid="06")]
    assert read_training(root) == learnt
    (root / "list_val.txt").unlink()
    assert read_training(root) == learnt[:1]


def test_a_test_list_of_vehicleid_is_query_and_gallery_in_its_order(tmp_path: Path):
    root = vehicleid(tmp_path)
    small = read_dataset(root / "train_test_split/test_list_800.txt")
    assert (small.layout, small.protocol) == ("vehicleid", "vehicleid")
    assert small.query == [Crop(root / "image/0000011.jpg", pid="5"), Crop(root / "image/0000010.jpg", pid="5")]
    assert small.gallery == small.query
    medium = read_dataset(root / "train_test_split/test_list_1600.txt")
    assert medium.query == [*small.query, Crop(root / "image/0000020.jpg", pid="6")]


@pytest.mark.parametrize("source", [".", "train_test_split/test_list_800.txt"])
def test_vehicleid_is_trained_on_its_training_list_whatever_it_is_scored_on(tmp_path: Path, source: str):
    root = vehicleid(tmp_path)
    assert read_training(root / source) == [Crop(root / "image/0000900.jpg", pid="77")]


def test_the_root_of_vehicleid_is_refused_with_its_test_lists_from_small_to_large(tmp_path: Path):
    root = vehicleid(tmp_path)
    lists = ", ".join(str(root / f"train_test_split/test_list_{size}.txt") for size in (800, 1600))
    with pytest.raises(DatasetError, match=re.escape(f"name the test list that says its size, one of {lists}")):
        read_dataset(root)


def test_a_list_that_is_not_of_vehicleid_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"list_query.txt is no test list of VehicleID: expected image/"):
        read_dataset(msmt17(tmp_path) / "list_query.txt")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([f"{QUERY} 0", f"{QUERY} 0"], f"line 2: {QUERY} is named again, first in line 1"),
        ([f"{QUERY} 0", "", f"{QUERY} 1"], f"line 3: {QUERY} is named again, first in line 1"),
        (["0000/0000_009_01_0303morning_0008_0.jpg 0"], "line 1: ROOT/test/0000/0000_009_01_0303morning_0008_0.jpg is"),
        ([QUERY], f"line 1: expected an image and its identity's number, got '{QUERY}'"),
        ([f"{QUERY} 0 1"], f"line 1: expected an image and its identity's number, got '{QUERY} 0 1'"),
        ([f"{QUERY} anna"], "line 1: expected an image and its identity's number"),
        ([f"{QUERY} ٣"], "line 1: expected an image and its identity's number"),
        ([f"{QUERY} -1"], "line 1: expected an image and its identity's number"),
        (
            ["strange.jpg 0"],
            "line 1: expected a name that tells the camera, such as 0000_000_01_0303morning_0008_0.jpg",
        ),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_number(tmp_path: Path, lines: list[str], fault: str):
    root = msmt17(tmp_path)
    touch(root / "test", "strange.jpg")
    listing = write_list(root / "list_gallery.txt", *lines)
    with pytest.raises(DatasetError, match=re.escape(f"{listing}, {fault.replace('ROOT', str(root))}")):
        read_dataset(root)


@pytest.mark.parametrize("lines", [[], ["", "  "]], ids=["no line", "blank lines"])
def test_an_empty_list_is_refused(tmp_path: Path, lines: list[str]):
    root = vehicleid(tmp_path)
    listing = write_list(root / "train_test_split/test_list_800.txt", *lines)
    with pytest.raises(DatasetError, match=re.escape(f"{listing} names no image: it is empty")):
        read_dataset(listing)


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path):
    root = vehicleid(tmp_path)
    with pytest.raises(DatasetError, match=r"test_list_9.txt cannot be read: No such file"):
        read_dataset(root / "train_test_split/test_list_9.txt")
    (root / "train_test_split/test_list_800.txt").write_bytes(b"\xff 1\n")
    with pytest.raises(DatasetError, match=r"test_list_800.txt is no text in UTF-8"):
        read_dataset(root / "train_test_split/test_list_800.txt")


def test_lists_without_the_folder_of_their_images_are_refused(tmp_path: Path):
    write_list(tmp_path / "list_query.txt", "a 0")
    write_list(tmp_path / "list_gallery.txt", "a 0")
    with pytest.raises(DatasetError, match=r"has the lists of MSMT17 and none of test, mask_test_v2/"):
        read_dataset(tmp_path)


@given(st.lists(st.lists(st.text("ab_/0", min_size=1), max_size=3)))
def test_the_words_of_a_list_are_read_with_their_lines(tmp_path_factory: pytest.TempPathFactory, lines):
    listing = tmp_path_factory.mktemp("lists") / "list.txt"
    listing.write_text("".join(f" {'  '.join(words)}\r\n" for words in lines), newline="")
    expected = [(number, words) for number, words in enumerate(lines, 1) if words]
    if expected:
        assert list(read_words(listing)) == expected
    else:
        with pytest.raises(DatasetError, match="names no image"):
            read_words(listing)
