import os
import re
from pathlib import Path

import pytest

from reidserve.datasets import Crop
from reidserve.datasets.folders import (
    compile_pattern,
    count_matching,
    crops_by_folder,
    crops_by_pattern,
    find_images,
    unlabelled_crops,
)
from reidserve.errors import DatasetError


def touch(folder: Path, *names: str | bytes) -> Path:
    """A folder of empty files; none of the code here opens one."""
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found(folder: Path) -> list[str]:
    return [os.fspath(path.relative_to(folder)) for path in find_images(folder)]


def test_images_come_in_the_byte_order_of_their_paths(tmp_path: Path):
    # As text, U+DCFF (the byte FF) would sort before U+FF21; a path sorts "a-b" after "a/b", bytes do not.
    touch(tmp_path, "b.jpg", "B.jpg", "a/z.jpg", "a-b.jpg", "ä.jpg", "Ａ.jpg", b"\xff.jpg", "10.jpg", "9.jpg")
    expected = ["10.jpg", "9.jpg", "B.jpg", "a-b.jpg", "a/z.jpg", "b.jpg", "ä.jpg", "Ａ.jpg", os.fsdecode(b"\xff.jpg")]
    assert found(tmp_path) == expected


def test_only_images_that_are_not_hidden_are_found(tmp_path: Path):
    touch(tmp_path, "a.jpg", "b.JPG", "c.jpeg", "d.PnG", "e.webp", "f.bmp")
    touch(
        tmp_path,
        "g.gif",
        "h.tiff",
        "Thumbs.db",
        "jpg",
        "i.jpg.txt",
        ".jpg",
        ".hidden.jpg",
        ".cache/j.jpg",
        "k/.l/m.jpg",
    )
    assert found(tmp_path) == ["a.jpg", "b.JPG", "c.jpeg", "d.PnG", "e.webp", "f.bmp"]


def test_a_hidden_folder_is_read_when_it_is_the_one_asked_for(tmp_path: Path):
    assert found(touch(tmp_path / ".crops", "a.jpg")) == ["a.jpg"]


def test_a_folder_without_images_is_refused(tmp_path: Path):
    touch(tmp_path, "notes.txt", ".hidden.jpg")
    with pytest.raises(DatasetError, match=rf"{tmp_path} holds no image \(.bmp, .jpeg, .jpg, .png, .webp\)"):
        find_images(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path: Path):
    touch(tmp_path, "a.jpg")
    for path in (tmp_path / "missing", tmp_path / "a.jpg"):
        with pytest.raises(DatasetError, match=f"expected a folder of images, {path} is none"):
            find_images(path)


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path):
    crops, elsewhere = touch(tmp_path / "crops", "a/1.jpg"), touch(tmp_path / "elsewhere", "2.jpg", "deep/3.jpg")
    (crops / "z").symlink_to(elsewhere)
    (crops / "a" / "loop").symlink_to(crops)
    (elsewhere / "back").symlink_to(elsewhere)
    assert found(crops) == ["a/1.jpg", "z/2.jpg", "z/deep/3.jpg"]


@pytest.mark.parametrize("order", [range(8), reversed(range(8))], ids=["up", "down"])
def test_a_folder_with_two_names_is_read_under_the_first_of_them(tmp_path: Path, order):
    # Whatever order the file system lists names in.
    elsewhere, crops = touch(tmp_path / "elsewhere", "1.jpg"), tmp_path / "crops"
    crops.mkdir()
    for number in order:
        (crops / f"pid{number}").symlink_to(elsewhere)
    assert found(crops) == ["pid0/1.jpg"]


def test_a_pattern_labels_by_pid_and_camera_wherever_they_stand_in_the_path(tmp_path: Path):
    touch(tmp_path, "cam3/anna.jpg", "cam12/bob.jpg")
    assert crops_by_pattern(tmp_path, r"cam(?P<camid>\d+)/(?P<pid>\w+)") == [
        Crop(tmp_path / "cam12/bob.jpg", pid="bob", camid="12"),
        Crop(tmp_path / "cam3/anna.jpg", pid="anna", camid="3"),
    ]


def test_a_pid_may_be_any_text_and_cameras_may_be_unknown(tmp_path: Path):
    touch(tmp_path, "red car 7 (1).jpg", "größe (2).jpg", b"\xff (3).jpg")
    crops = crops_by_pattern(tmp_path, r"(?P<pid>.+) \(")
    assert [crop.pid for crop in crops] == ["größe", "red car 7", "%FF"]
    assert {crop.camid for crop in crops} == {None}


def test_a_camera_that_only_some_names_have_is_unknown_for_the_others(tmp_path: Path):
    touch(tmp_path, "1_c5.jpg", "2.jpg")
    crops = crops_by_pattern(tmp_path, r"(?P<pid>\d)(?:_c(?P<camid>\d))?")
    assert [(crop.pid, crop.camid) for crop in crops] == [("1", "5"), ("2", None)]


def test_a_pattern_that_cannot_label_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=re.escape("the pattern '(?P<pid>' is no regular expression: ")):
        compile_pattern("(?P<pid>")
    with pytest.raises(DatasetError, match=re.escape(r"the pattern '(\\d+)' must have a group (?P<pid>...)")):
        crops_by_pattern(tmp_path, r"(\d+)")


def test_names_that_the_pattern_does_not_match_are_counted_and_the_first_is_named(tmp_path: Path):
    touch(tmp_path, "1_a.jpg", "b.jpg", b"c\xff.jpg", "_d.jpg")
    with pytest.raises(DatasetError, match=rf"3 of 4 images do not match the pattern .*, first {tmp_path}/_d.jpg"):
        crops_by_pattern(tmp_path, r"^(?P<pid>\d*)_")  # "_d.jpg" matches with an empty pid
    (tmp_path / "_d.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(DatasetError, match=rf"1 of 2 images .*, first {tmp_path}/c%FF.jpg"):
        crops_by_pattern(tmp_path, r"^(?P<pid>\d+)_")


def test_a_folder_per_identity_gives_pids_and_no_cameras(tmp_path: Path):
    touch(tmp_path, "red car 7/1.jpg", "0001/day/2.jpg", "0001/3.jpg", b"\xff/4.jpg")
    assert [(crop.pid, crop.camid, crop.path.name) for crop in crops_by_folder(tmp_path)] == [
        ("0001", None, "3.jpg"),
        ("0001", None, "2.jpg"),
        ("red car 7", None, "1.jpg"),
        ("%FF", None, "4.jpg"),
    ]


def test_an_image_outside_the_folders_per_identity_is_refused(tmp_path: Path):
    touch(tmp_path, "0001/1.jpg", b"\xff.jpg")
    with pytest.raises(DatasetError, match=rf"expected a folder per identity, {tmp_path}/%FF.jpg lies in none"):
        crops_by_folder(tmp_path)


def test_unlabelled_crops_know_only_their_path(tmp_path: Path):
    touch(tmp_path, "a.jpg", b"\xff.jpg")
    assert unlabelled_crops(tmp_path) == [Crop(tmp_path / "a.jpg"), Crop(tmp_path / os.fsdecode(b"\xff.jpg"))]


def test_matching_counts_file_names_and_not_their_folders():
    assert count_matching([Path("7/a.jpg"), Path("b/7.jpg"), Path(os.fsdecode(b"\xff7"))], r"\d") == 2
