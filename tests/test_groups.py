import re
from pathlib import Path

import pytest

from reidserve.datasets import Dataset, read_dataset, read_multi_query, read_tracks
from reidserve.errors import DatasetError
from tests.test_folders import touch
from tests.test_lists import write_list

QUERY = ("0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.jpg", "0007_c1s1_000001_00.jpg")
DRAWN = (*QUERY, "0002_c1s1_000776_01.jpg", "0002_c1s2_000801_02.jpg", "0003_c1s1_000001_00.jpg")
TRACKED = (
    "0002_c002_00030600_0.jpg",
    "0002_c002_00030605_1.jpg",
    "0002_c003_00000010_0.jpg",
    "0005_c002_00000020_0.jpg",
)


def market(root: Path) -> Path:
    touch(root / "query", *QUERY)
    touch(root / "bounding_box_test", "0002_c3s1_000451_03.jpg")
    return root


def prepared(root: Path) -> Path:
    """Market-1501 in folders per identity, as layumi's script leaves it."""
    for part, names in (("query", QUERY), ("gallery", QUERY), ("multi-query", DRAWN)):
        touch(root / part, *(f"{name[:4]}/{name}" for name in names))
    return root


def veri(root: Path) -> Path:
    touch(root / "image_query", "0002_c001_00000001_0.jpg")
    touch(root / "image_test", *TRACKED)
    return root


def names_of(groups) -> list[list[str]]:
    return [[crop.path.name for crop in group] for group in groups]


@pytest.mark.parametrize("folder", ["gt_bbox", "multi-query"])
def test_a_query_is_made_of_all_images_of_its_pid_and_camera(tmp_path: Path, folder: str):
    root = market(tmp_path)
    touch(root / folder, *DRAWN)
    groups = read_multi_query(root, read_dataset(root))
    assert names_of(groups) == [[QUERY[0], DRAWN[3], DRAWN[4]], [QUERY[1]], [QUERY[2]]]
    assert {crop.path.parent for group in groups for crop in group} == {root / folder}


def test_queries_in_folders_per_identity_are_grouped_by_the_cameras_of_their_names(tmp_path: Path):
    root = prepared(tmp_path)
    groups = read_multi_query(root, read_dataset(root))
    assert names_of(groups) == [[QUERY[0], DRAWN[3], DRAWN[4]], [QUERY[1]], [QUERY[2]]]


def test_a_query_without_images_of_its_own_is_refused(tmp_path: Path):
    root = market(tmp_path)
    touch(root / "gt_bbox", *QUERY[:2])
    message = f"{root / 'gt_bbox'} holds no image for the query {root / 'query' / QUERY[2]}: expected some of pid 0007"
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_multi_query(root, read_dataset(root))


def test_queries_without_cameras_are_not_grouped(tmp_path: Path):
    for part in ("query", "gallery", "multi-query"):
        touch(tmp_path / part, "anna/1.jpg", "anna/2.jpg")
    with pytest.raises(DatasetError, match="expected some of pid anna and camid None"):
        read_multi_query(tmp_path, read_dataset(tmp_path))


def test_a_dataset_without_a_folder_of_multiple_queries_is_refused(tmp_path: Path):
    root = market(tmp_path)
    with pytest.raises(DatasetError, match=re.escape(f"{root} has no gt_bbox/ and no multi-query/")):
        read_multi_query(root, read_dataset(root))


@pytest.mark.parametrize(
    "name", ["", "0002_c002_00030600.jpg ", "0002_c002_t30600 "], ids=["none", "a file's", "a time's"]
)
def test_the_tracks_of_veri776_are_read_whether_or_not_they_have_names(tmp_path: Path, name: str):
    root = veri(tmp_path)
    write_list(
        root / "test_track.txt", f"{name}{TRACKED[1]} {TRACKED[0]} ", f"{name}{TRACKED[3]} ", f"{name}{TRACKED[2]} "
    )
    read = read_dataset(root)
    assert {crop.track for crop in read.gallery} == {None}
    tracked = read_tracks(root, read)
    first = "0002_c002_00030605_1"
    assert [crop.track for crop in tracked.gallery] == [first, first, TRACKED[2][:-4], TRACKED[3][:-4]]
    assert [crop.path for crop in tracked.gallery] == [crop.path for crop in read.gallery]
    assert (tracked.query, tracked.layout) == (read.query, read.layout)


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([f"{TRACKED[0]} {TRACKED[2]}"], "line 1: a track is of one vehicle and one camera, this one is of several"),
        ([f"{TRACKED[0]} {TRACKED[3]}"], "line 1: a track is of one vehicle and one camera, this one is of several"),
        ([TRACKED[0], TRACKED[0]], f"line 2: {TRACKED[0]} is in a track already"),
        ([f"{TRACKED[0]} {TRACKED[0]}"], f"line 1: {TRACKED[0]} is in a track already"),
        (["0009_c002_00030600_0.jpg"], "line 1: 0009_c002_00030600_0.jpg is no image of the gallery"),
        (["0002_c002_t7"], "line 1: expected the images of a track, got '0002_c002_t7' alone"),
    ],
)
def test_a_wrong_track_is_refused_by_file_and_line(tmp_path: Path, lines: list[str], fault: str):
    root = veri(tmp_path)
    listing = write_list(root / "test_track.txt", *lines)
    with pytest.raises(DatasetError, match=re.escape(f"{listing}, {fault}")):
        read_tracks(root, read_dataset(root))


def test_a_gallery_image_in_no_track_is_refused(tmp_path: Path):
    root = veri(tmp_path)
    write_list(root / "test_track.txt", TRACKED[0], TRACKED[1], TRACKED[2])
    message = f"1 of 4 gallery images of {root} are in no track, first {root / 'image_test' / TRACKED[3]}"
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_tracks(root, read_dataset(root))


def test_a_table_brings_its_own_tracks(tmp_path: Path):
    table = tmp_path / "crops.csv"
    table.write_text("path,pid,split,track\nq.jpg,1,query,\na.jpg,1,gallery,t1\nb.jpg,1,gallery,t1\n")
    tracked = read_tracks(table, read_dataset(table))
    assert [crop.track for crop in tracked.gallery] == ["t1", "t1"]
    table.write_text("path,pid,split\nq.jpg,1,query\na.jpg,1,gallery\n")
    without: Dataset = read_dataset(table)
    with pytest.raises(DatasetError, match="1 of 1 gallery images of .* are in no track"):
        read_tracks(table, without)
