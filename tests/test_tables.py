import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reidserve.datasets import Crop, read_dataset
from reidserve.datasets.tables import crops_of_table, dataset_of_table
from reidserve.errors import DatasetError

NEW_YEAR = 1_704_067_200_000_000  # 2024-01-01T00:00:00Z


def write_table(folder: Path, text: str | bytes) -> Path:
    path = folder / "crops.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_column_is_read_in_the_order_of_the_table(tmp_path: Path):
    text = 'timestamp,path,camid,pid,split\n2024-01-01T00:00:00Z,b.jpg,c 2,red car 7,query\n,"sub/a, 1.jpg",,,gallery\n'
    assert crops_of_table(write_table(tmp_path, text)) == [
        Crop(tmp_path / "b.jpg", pid="red car 7", camid="c 2", timestamp=NEW_YEAR),
        Crop(tmp_path / "sub/a, 1.jpg"),
    ]


@pytest.mark.parametrize(
    "text", ["path\na.jpg\n", "path\r\na.jpg\r\n", "path\na.jpg", "path\n\na.jpg\n\n", "\ufeffpath\na.jpg\n"]
)
def test_a_path_is_enough_whatever_the_line_ends_and_the_byte_order_mark(tmp_path: Path, text: str):
    assert crops_of_table(write_table(tmp_path, text)) == [Crop(tmp_path / "a.jpg")]


def test_an_absolute_path_stays_absolute(tmp_path: Path):
    assert crops_of_table(write_table(tmp_path, "path\n/data/a.jpg\n../b.jpg\n")) == [
        Crop(Path("/data/a.jpg")),
        Crop(tmp_path / "../b.jpg"),
    ]


@pytest.mark.parametrize(
    ("header", "got"),
    [
        ("pid,camid", "pid, camid"),
        ("path,pid,colour", "path, pid, colour"),
        ("Path", "Path"),
        ("path;pid", "path;pid"),
        ("path,", "path, "),
        ("path,attributes", "path, attributes"),
        ("path,attribute.colour", "path, attribute.colour"),
        ("path,attributes.colour,attributes.colour", "path, attributes.colour, attributes.colour"),
        ("path,pid,path", "path, pid, path"),
        ("", ""),
    ],
)
def test_columns_that_are_missing_unknown_or_doubled_are_refused(tmp_path: Path, header: str, got: str):
    table = write_table(tmp_path, header + "\n" + ",".join("abc"[: header.count(",") + 1]) + "\n" if header else "")
    with pytest.raises(DatasetError) as refused:
        crops_of_table(table)
    known = "pid, camid, timestamp, split, track, mask, attributes.NAME"
    assert str(refused.value).startswith(f"{table} must have the columns path and any of {known}, got {got}")


def test_attributes_are_read_and_an_empty_cell_is_none(tmp_path: Path):
    text = (
        "attributes.colour,path,attributes.speed,attributes.parked\n"
        'red,a.jpg,13.9,true\n,b.jpg,0017,\n"""7""",c.jpg,7,True\n,d.jpg,,\n'
    )
    crops = crops_of_table(write_table(tmp_path, text))
    assert [dict(crop.attributes) for crop in crops] == [
        {"colour": "red", "speed": 13.9, "parked": True},
        {"speed": "0017"},
        {"colour": "7", "speed": 7, "parked": "True"},
        {},
    ]
    assert crops[3] == Crop(tmp_path / "d.jpg")


def test_attributes_are_read_in_every_part_of_a_dataset(tmp_path: Path):
    table = write_table(tmp_path, "path,split,attributes.n\n1.jpg,query,1\n2.jpg,gallery,2\n")
    dataset = read_dataset(table)
    assert [crop.attributes["n"] for crop in (*dataset.query, *dataset.gallery)] == [1, 2]


@pytest.mark.parametrize("name", ["", "9x", "a b", "id", "camid", "a.b"])
def test_a_column_whose_attribute_cannot_be_named_so_is_refused(tmp_path: Path, name: str):
    with pytest.raises(DatasetError, match=rf"crops.csv, column 'attributes.{name}': an attribute's name must be a "):
        crops_of_table(write_table(tmp_path, f"path,attributes.{name}\na.jpg,\n"))


def test_an_attribute_that_cannot_be_kept_is_refused_with_its_line(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"crops.csv, line 3: attribute a must be text \(up to 4096 characters\), "):
        crops_of_table(write_table(tmp_path, f"path,attributes.a\na.jpg,1\nb.jpg,{'x' * 4097}\n"))


def test_a_row_of_more_attributes_than_allowed_is_refused_and_a_sparse_table_is_not(tmp_path: Path):
    header = ",".join(["path", *(f"attributes.a{number}" for number in range(65))])
    sparse = f"{header}\na.jpg,{',' * 64}7\n"
    assert crops_of_table(write_table(tmp_path, sparse)) == [Crop(tmp_path / "a.jpg", attributes={"a64": 7})]
    with pytest.raises(DatasetError, match=r"crops.csv, line 3: may have 64 attributes, got 65"):
        crops_of_table(write_table(tmp_path, f"{sparse}b.jpg{',1' * 65}\n"))


def test_a_track_is_read_and_an_empty_cell_is_none(tmp_path: Path):
    crops = crops_of_table(write_table(tmp_path, "path,track\na.jpg,t 1\nb.jpg,\n"))
    assert crops == [Crop(tmp_path / "a.jpg", track="t 1"), Crop(tmp_path / "b.jpg", track=None)]


def test_a_mask_is_a_path_from_the_tables_folder_and_an_empty_cell_is_none(tmp_path: Path):
    crops = crops_of_table(write_table(tmp_path, "path,mask\na.jpg,m/a.png\nb.jpg,\n"))
    assert crops == [Crop(tmp_path / "a.jpg", mask=tmp_path / "m/a.png"), Crop(tmp_path / "b.jpg")]


@pytest.mark.parametrize("row", ["b.jpg", "b.jpg,2,3", "b.jpg,2,"])
def test_a_row_of_another_length_is_refused_with_its_line(tmp_path: Path, row: str):
    with pytest.raises(DatasetError, match=r"crops.csv, line 4: expected 2 fields"):
        crops_of_table(write_table(tmp_path, f"path,pid\na.jpg,1\n\n{row}\n"))


def test_a_row_without_a_path_is_refused_with_its_line(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"line 3: the path is empty"):
        crops_of_table(write_table(tmp_path, "path,pid\na.jpg,1\n,2\n"))


def test_a_path_that_no_file_can_have_is_refused_with_its_line(tmp_path: Path):
    for text in ("path,pid\na\0.jpg,1\n", "path,mask\na.jpg,a\0.png\n"):
        with pytest.raises(DatasetError, match=r"line 2"):
            crops_of_table(write_table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("2024-01-01T00:00:00Z", NEW_YEAR),
        ("2024-01-01T02:00:00+02:00", NEW_YEAR),
        ("2023-12-31 18:30:00-05:30", NEW_YEAR),
        ("2024-01-01T00:00:00.000001Z", NEW_YEAR + 1),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("1970-01-01T00:00:00Z", 0),
        # Above 2**53 nanoseconds and in a float of seconds these digits would be lost.
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
        ("0001-01-01T00:00:00+00:00", -62_135_596_800_000_000),
    ],
)
def test_a_timestamp_becomes_exact_microseconds(tmp_path: Path, text: str, microseconds: int):
    (crop,) = crops_of_table(write_table(tmp_path, f"path,timestamp\na.jpg,{text}\n"))
    assert crop.timestamp == microseconds
    if 0 < microseconds < 2**52:
        assert datetime.fromtimestamp(microseconds / 1e6, UTC) == datetime.fromisoformat(text)


@pytest.mark.parametrize("text", ["2024-01-01T00:00:00", "2024-01-01", "20240101T000000"])
def test_a_timestamp_without_a_time_zone_is_refused(tmp_path: Path, text: str):
    with pytest.raises(DatasetError, match=rf"line 2: the timestamp '{text}' has no time zone \(end it in Z for UTC\)"):
        crops_of_table(write_table(tmp_path, f"path,timestamp\na.jpg,{text}\n"))


@pytest.mark.parametrize("text", ["yesterday", "1704067200", "2024-13-01T00:00:00Z", "2024-01-01T25:00:00Z", " "])
def test_a_timestamp_that_is_not_iso_8601_is_refused(tmp_path: Path, text: str):
    with pytest.raises(DatasetError, match=rf"line 2: the timestamp '{text}' is not ISO 8601"):
        crops_of_table(write_table(tmp_path, f"path,timestamp\na.jpg,{text}\n"))


def test_splits_become_the_parts_of_a_dataset(tmp_path: Path):
    table = write_table(
        tmp_path, "path,pid,split\n1.jpg,1,gallery\n2.jpg,1,query\n3.jpg,2,train\n4.jpg,2,gallery\n5.jpg,2,query\n"
    )
    dataset = read_dataset(table)
    assert dataset == dataset_of_table(table)
    assert dataset.layout == "csv"
    assert [crop.path.name for crop in dataset.query] == ["2.jpg", "5.jpg"]
    assert [crop.path.name for crop in dataset.gallery] == ["1.jpg", "4.jpg"]


@pytest.mark.parametrize(("kept", "missing"), [("query", "gallery"), ("gallery", "query")])
def test_a_split_without_rows_is_refused(tmp_path: Path, kept: str, missing: str):
    with pytest.raises(DatasetError, match=f"has no row whose split is '{missing}'"):
        dataset_of_table(write_table(tmp_path, f"path,split\na.jpg,{kept}\nb.jpg,train\n"))


@pytest.mark.parametrize(("text", "got"), [("path\na.jpg\n", "None"), ("path,split\na.jpg,test\n", "'test'")])
def test_a_row_of_no_known_split_is_refused(tmp_path: Path, text: str, got: str):
    with pytest.raises(DatasetError, match=f"line 2: split must be train, query, gallery, got {got}"):
        dataset_of_table(write_table(tmp_path, text))


@pytest.mark.parametrize("data", [b"path\n\xff.jpg\n", "path\na.jpg\n".encode("utf-16"), b'path\n"a.jpg\n'])
def test_a_file_that_is_no_utf8_table_is_refused(tmp_path: Path, data: bytes):
    with pytest.raises(DatasetError, match=r"crops.csv is no CSV table in UTF-8: "):
        crops_of_table(write_table(tmp_path, data))


def test_a_table_that_cannot_be_opened_is_refused(tmp_path: Path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("missing.csv", "folder.csv"):
        with pytest.raises(DatasetError, match=f"{name} cannot be read: "):
            crops_of_table(tmp_path / name)


def test_a_message_about_a_table_is_text_that_can_be_sent(tmp_path: Path):
    with pytest.raises(DatasetError) as refused:
        crops_of_table(tmp_path / os.fsdecode(b"\xff.csv"))
    assert str(refused.value).encode().endswith(b"%FF.csv cannot be read: No such file or directory")
