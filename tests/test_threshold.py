import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reidserve.errors import ThresholdError
from reidserve.index.threshold import Threshold, read_threshold, write_threshold

MODEL = "a1" * 32
CALIBRATED = Threshold(
    identity=MODEL,
    score=0.6180339887,
    criterion="search",
    rate=0.01,
    dataset="market1501",
    genuine=3368,
    impostors=2793,
    measured=0.83,
)


@given(
    score=st.floats(-1, 1),
    rate=st.floats(0, 1),
    measured=st.floats(0, 1),
    criterion=st.sampled_from(["pair", "search"]),
    genuine=st.integers(1, 2**40),
)
def test_a_threshold_reads_as_it_was_written(tmp_path_factory, score, rate, measured, criterion, genuine):
    path = tmp_path_factory.getbasetemp() / "threshold.json"
    fields = {"score": score, "rate": rate, "measured": measured, "criterion": criterion, "genuine": genuine}
    threshold = msgspec.structs.replace(CALIBRATED, **fields)
    write_threshold(threshold, path)
    assert read_threshold(path, identity=MODEL) == threshold
    assert read_threshold(path, identity=None) == threshold


def test_writing_again_replaces_it_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "threshold.json"
    write_threshold(CALIBRATED, path)
    write_threshold(msgspec.structs.replace(CALIBRATED, score=0.5), path)
    assert read_threshold(path, identity=MODEL).score == 0.5
    assert [one.name for one in tmp_path.iterdir()] == ["threshold.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "threshold.json"
    path.mkdir()
    with pytest.raises(OSError):
        write_threshold(CALIBRATED, path)
    assert [one.name for one in tmp_path.iterdir()] == ["threshold.json"]


def test_another_models_threshold_is_refused_by_both_names(tmp_path: Path):
    write_threshold(CALIBRATED, tmp_path / "t.json")
    with pytest.raises(ThresholdError, match="was calibrated with model a1a1a1a1a1a1, this is model bbbbbbbbbbbb"):
        read_threshold(tmp_path / "t.json", identity="b" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 1.01}, "score must be -1 to 1, got 1.01"),
        ({"score": -1.5}, "score must be -1 to 1"),
        ({"rate": -0.1}, "rate must be 0 to 1"),
        ({"measured": 2}, "measured must be 0 to 1, got 2.0"),
        ({"genuine": 0}, "genuine must be at least 1, got 0"),
        ({"impostors": -3}, "impostors must be at least 1"),
        ({"identity": ""}, "identity must not be empty"),
        ({"dataset": ""}, "dataset must not be empty"),
        ({"score": None}, "is no threshold: Expected `float`, got `null`"),
        ({"score": "0.5"}, "is no threshold: Expected `float`, got `str`"),
        ({"criterion": "both"}, "is no threshold: Invalid enum value 'both'"),
        ({"format": 2}, "is no threshold: Invalid enum value 2"),
        ({"colour": "red"}, "is no threshold: Object contains unknown field `colour`"),
    ],
)
def test_a_file_that_says_anything_else_is_refused(tmp_path: Path, change, message):
    path = tmp_path / "threshold.json"
    write_threshold(CALIBRATED, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ThresholdError, match=message) as refusal:
        read_threshold(path, identity=MODEL)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "is no threshold"), (b"{", "is no threshold"), (b"\xff", "is no threshold")]
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, data, message):
    (tmp_path / "threshold.json").write_bytes(data)
    with pytest.raises(ThresholdError, match=message):
        read_threshold(tmp_path / "threshold.json", identity=MODEL)
    with pytest.raises(ThresholdError, match="nothing.json cannot be read: No such file"):
        read_threshold(tmp_path / "nothing.json", identity=MODEL)


def test_a_number_that_is_none_cannot_be_calibrated():
    with pytest.raises(ThresholdError, match="score must be -1 to 1, got nan"):
        msgspec.structs.replace(CALIBRATED, score=float("nan"))
