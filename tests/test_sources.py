from pathlib import Path

import pytest

from reidserve.errors import DatasetError
from reidserve.export.train.sources import name_sources, read_parts
from tests.test_folders import touch
from tests.test_lists import msmt17, vehicleid


def market(root: Path, *, test: bool = True) -> Path:
    touch(root / "bounding_box_train", "0002_c1s1_000451_03.jpg", "0003_c2s1_000451_03.jpg", "-1_c1s1_000001_00.jpg")
    if test:
        touch(root / "query", "0004_c1s1_000451_03.jpg")
        touch(root / "bounding_box_test", "0004_c2s1_000451_03.jpg", "-1_c1s1_000001_00.jpg", "0000_c1s1_000001_00.jpg")
    return root


def labels(crops) -> list[tuple[str | None, str | None]]:
    return [(crop.pid, crop.camid) for crop in crops]


def test_one_source_keeps_its_pids_and_loses_its_junk(tmp_path: Path):
    parts = read_parts([market(tmp_path / "market")], pattern=None, scored=True)
    assert parts.name == "market"
    assert labels(parts.train) == [("0002", "1"), ("0003", "2")]
    assert labels(parts.query) == [("0004", "1")]
    assert labels(parts.gallery) == [("-1", "1"), ("0000", "1"), ("0004", "2")]
    assert parts.notes == ["1 training images of junk (pid -1) in market are left out"]


def test_pids_and_cameras_of_several_sources_are_told_apart_and_those_of_no_identity_stay(tmp_path: Path):
    touch(tmp_path / "veri/image_train", "0002_c002_00030600_0.jpg")
    touch(tmp_path / "veri/image_query", "0000_c001_00030600_0.jpg")
    touch(tmp_path / "veri/image_test", "0000_c002_00030600_0.jpg")
    parts = read_parts([market(tmp_path / "market"), tmp_path / "veri"], pattern=None, scored=True)
    assert parts.name == "market+veri"
    assert labels(parts.train) == [("market/0002", "market/1"), ("market/0003", "market/2"), ("veri/0002", "veri/002")]
    assert labels(parts.query) == [("market/0004", "market/1"), ("veri/0000", "veri/001")]
    # Distractors are those that no query of their source asks for.
    assert labels(parts.gallery) == [
        ("-1", "market/1"),
        ("0000", "market/1"),
        ("market/0004", "market/2"),
        ("veri/0000", "veri/002"),
    ]


def test_sources_of_every_kind_are_joined(tmp_path: Path):
    touch(tmp_path / "folders/train", "anna/1.jpg")
    (tmp_path / "table.csv").write_text("path,pid,split\na.jpg,7,train\n")
    roots = [msmt17(tmp_path / "msmt"), vehicleid(tmp_path / "vid"), tmp_path / "folders", tmp_path / "table.csv"]
    parts = read_parts(roots, pattern=None, scored=False)
    assert [crop.pid for crop in parts.train] == [
        *("msmt/7", "msmt/7", "vid/77", "folders/anna", "table.csv/7"),
    ]
    assert (parts.query, parts.gallery) == ([], [])


def test_a_source_without_query_and_gallery_is_learnt_from_and_said(tmp_path: Path):
    parts = read_parts([market(tmp_path / "a"), market(tmp_path / "b", test=False)], pattern=None, scored=True)
    assert len(parts.train) == 4
    assert labels(parts.query) == [("a/0004", "a/1")]
    assert parts.notes[-1].startswith(f"b is learnt from and not scored on: {tmp_path}/b has none of the layouts known")


def test_where_no_source_can_be_scored_on_the_way_out_is_said(tmp_path: Path):
    roots = [market(tmp_path / name, test=False) for name in ("a", "b")]
    for sources in (roots, roots[:1]):
        with pytest.raises(DatasetError, match=r"has none of the layouts known.*give --set evaluation.every=0"):
            read_parts(sources, pattern=None, scored=True)
    assert len(read_parts(roots, pattern=None, scored=False).train) == 4


def test_a_source_that_cannot_be_learnt_from_is_refused(tmp_path: Path):
    touch(tmp_path / "b/query", "0004_c1s1_000451_03.jpg")
    with pytest.raises(DatasetError, match="holds no training set"):
        read_parts([market(tmp_path / "a"), tmp_path / "b"], pattern=None, scored=True)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["/x/market"], ["market"]),
        (["/x/market", "/y/duke"], ["market", "duke"]),
        (["/x/data", "/y/data"], ["x/data", "y/data"]),
        (["/x/data", "/y/data", "/y/other"], ["x/data", "y/data", "y/other"]),
        (["/data", "/y/data"], ["/data", "y/data"]),
    ],
)
def test_a_source_is_called_by_as_much_of_its_path_as_tells_it_from_the_others(sources, names):
    assert name_sources([Path(source) for source in sources]) == names


@pytest.mark.parametrize("sources", [[], ["/x/a", "/x/a"]])
def test_no_source_and_one_named_twice_are_refused(sources):
    with pytest.raises(DatasetError, match="expected one or several different datasets"):
        name_sources([Path(source) for source in sources])


def test_another_protocol_than_the_one_while_training_is_said(tmp_path: Path):
    source = vehicleid(tmp_path / "vid") / "train_test_split/test_list_800.txt"
    parts = read_parts([source], pattern=None, scored=True)
    assert [crop.pid for crop in parts.train] == ["77"]
    assert len(parts.query) == len(parts.gallery) == 2
    assert parts.notes == [
        "while training, scores are by the rule of Market-1501; reid-eval scores by vehicleid",
    ]


def test_the_masks_of_every_part_are_found(tmp_path: Path):
    root = market(tmp_path / "market")
    touch(root / "masks/bounding_box_train", "0002_c1s1_000451_03.png")
    touch(root / "masks/query", "0004_c1s1_000451_03.png")
    parts = read_parts([root], pattern=None, scored=True)
    assert [crop.mask for crop in parts.train] == [root / "masks/bounding_box_train/0002_c1s1_000451_03.png", None]
    assert [crop.mask for crop in parts.query] == [root / "masks/query/0004_c1s1_000451_03.png"]
    listed = vehicleid(tmp_path / "vid")
    touch(listed / "masks/image", "0000900.png")
    for source in (listed, listed / "train_test_split/test_list_800.txt"):
        (crop,) = read_parts([source], pattern=None, scored=False).train
        assert crop.mask == listed / "masks/image/0000900.png"
