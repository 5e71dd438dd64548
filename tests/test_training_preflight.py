from dataclasses import replace
from pathlib import Path

import pytest

from reidserve.datasets import Crop, Dataset
from reidserve.errors import DatasetError, EvaluationError
from reidserve.export.train.preflight import check_apart, check_copies, check_training, check_trial
from reidserve.export.train.settings import BatchSettings, LossSettings, Settings

SETTINGS = Settings(batch=BatchSettings(identities=3))


def crops(*labels: tuple[str | None, str | None]) -> list[Crop]:
    return [Crop(Path(f"{row}.png"), pid=pid, camid=camid) for row, (pid, camid) in enumerate(labels)]


SOUND = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "1"), ("c", "2")]


def test_nothing_is_said_of_sound_data():
    assert check_training(crops(*SOUND), SETTINGS) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*SOUND, (None, "1")], "1 of 7 training images have no pid, such as 6.png"),
        ([], "at least two identities to tell apart, got 0"),
        (SOUND[:2], "at least two identities to tell apart, got 1"),
        (SOUND[::2], r"each of 3 training identities has one image, and loss.metric triplet .*--set loss.metric=none"),
        (SOUND[:4], r"hold 3 identities, the training set has 2: give --set batch.identities=2 or less"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(labels, message: str):
    with pytest.raises(DatasetError, match=message):
        check_training(crops(*labels), SETTINGS)


def test_identities_of_one_image_are_said_with_examples_and_enough_where_images_are_not_compared():
    assert check_training(crops(*SOUND, ("d", "1"), ("e", "2")), SETTINGS)[0] == (
        "2 of 5 training identities have one image, which is compared with itself, such as d, e"
    )
    alone = replace(SETTINGS, loss=LossSettings(metric="none"))
    assert check_training(crops(*SOUND[::2]), alone)[0].startswith("3 of 3 training identities have one image")


def test_identities_that_one_camera_sees_are_said_with_at_most_three_examples():
    lonely = [(pid, "1") for pid in "hgfe" for _ in range(2)]
    assert check_training(crops(*SOUND, *lonely), SETTINGS) == [
        "4 of 7 training identities are seen by one camera, which says little about others, such as e, f, g"
    ]


def test_one_camera_in_all_and_unknown_cameras_are_said_once():
    assert check_training(crops(*[(pid, "7") for pid, _ in SOUND]), SETTINGS) == [
        "all 6 training images are from one camera, 7: expect little on other cameras"
    ]
    assert check_training(crops(*[(pid, None) for pid, _ in SOUND]), SETTINGS) == [
        "no camera of 6 training images is known: whether identities change cameras cannot be said"
    ]


def test_identities_that_are_learnt_and_scored_on_are_said_but_for_junk_and_distractors():
    train = crops(*SOUND, ("0000", "1"))
    query, gallery = crops(("c", "3")), crops(("c", "1"), ("a", "1"), ("x", "1"), ("-1", "1"), ("0000", "1"))
    assert check_apart(train, Dataset("csv", query=query, gallery=gallery)) == [
        "2 of 3 identities of query and gallery are learnt from too, and scores will be too good unless they are "
        "others under the same names, such as a, c"
    ]
    assert check_apart(train, Dataset("csv", query=gallery[2:3], gallery=gallery[2:])) == []


def test_msmt17_counts_its_parts_each_from_zero():
    train = crops(*SOUND)
    assert check_apart(train, Dataset("msmt17", query=train, gallery=train)) == []


def test_a_trial_without_an_answer_is_refused_and_what_cannot_be_answered_is_said():
    with pytest.raises(EvaluationError, match=r"none of 1 queries has a right entry .*--set evaluation.every=0"):
        check_trial(crops(("a", "1")), crops(("b", "2")))
    assert check_trial(crops(("a", "1"), ("b", "1")), [Crop(Path("gallery.png"), pid="a", camid="2")]) == [
        "1 of 2 queries have a pid that the gallery does not hold"
    ]


def write(folder: Path, **files: bytes) -> list[Crop]:
    """Files called after their pid and a number, such as a1."""
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.png").write_bytes(content)
    return [Crop(folder / f"{name}.png", pid=name[0]) for name in files]


def test_equal_files_of_two_parts_and_under_two_pids_are_named(tmp_path: Path):
    parts = {
        "training": write(tmp_path / "train", a1=b"one", a2=b"two", a3=b"two", b1=b"one", c1=b"seven"),
        "query": write(tmp_path / "query", x1=b"two", y1=b"six"),
        "gallery": write(tmp_path / "gallery", x2=b"six", z1=b"eleven"),
    }
    train, query, gallery = (tmp_path / name for name in ("train", "query", "gallery"))
    assert check_copies(parts) == [
        f"2 training images are query images too, byte for byte, such as {train}/a2.png = {query}/x1.png, "
        f"{train}/a3.png = {query}/x1.png",
        f"1 query images are gallery images too, byte for byte, such as {query}/y1.png = {gallery}/x2.png",
        f"1 training images stand under more than one pid, byte for byte, such as {train}/a1.png = {train}/b1.png",
    ]


def test_a_file_that_is_query_and_gallery_is_no_copy_and_one_that_is_learnt_too_is(tmp_path: Path):
    asked = write(tmp_path / "test", x1=b"one", y1=b"two")
    train = write(tmp_path / "train", a1=b"six")
    assert check_copies({"training": train, "query": asked, "gallery": asked}) == []
    assert [line[:50] for line in check_copies({"training": asked[:1], "query": asked, "gallery": []})] == [
        "1 training images are query images too, byte for b"
    ]


def test_files_that_are_gone_are_left_to_the_reading(tmp_path: Path):
    train = write(tmp_path / "train", a1=b"one", b1=b"two")
    train[0].path.unlink()
    train[1].path.unlink()
    train[1].path.mkdir()
    assert check_copies({"training": [*train, train[1]], "query": []}) == []


def test_comparing_stops_after_the_time_allowed_and_says_so(tmp_path: Path):
    train = write(tmp_path / "train", a1=b"one", b1=b"one", c1=b"alone")
    assert check_copies({"training": train}, longest=-1) == [
        "only 0 of 2 files were compared byte for byte, in -1 seconds"
    ]
