import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from reidserve.errors import EvaluationError
from reidserve.evaluate import Rule, evaluate
from reidserve.evaluate.features import read_features


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "query_features": rng.standard_normal((4, 6)) * 7,
        "query_pids": np.array([1, 2, 3, -1]),
        "query_camids": np.array([1, 1, 2, 2]),
        "gallery_features": rng.standard_normal((9, 6)).astype(np.float16),
        "gallery_pids": np.array(["1", "2", "3", "-1", "1", "2", "3", "4", "0000"]),
        "gallery_camids": np.array([2, 2, 1, 1, 1, 1, 2, 2, 1], np.int16),
    }


def save(path: Path, **changed: np.ndarray | None) -> Path:
    every = {**arrays(), **changed}
    np.savez(path, allow_pickle=True, **{name: array for name, array in every.items() if array is not None})
    return path


def test_features_of_any_length_and_labels_of_any_kind_are_read(tmp_path: Path):
    query, gallery = read_features(save(tmp_path / "features.npz"))
    given = arrays()
    expected = given["query_features"] / np.linalg.norm(given["query_features"], axis=1, keepdims=True)
    np.testing.assert_allclose(query.embeddings, expected, atol=1e-7)
    assert query.embeddings.dtype == gallery.embeddings.dtype == np.float32
    assert (query.labels.pids, query.labels.camids) == (["1", "2", "3", "-1"], ["1", "1", "2", "2"])
    assert gallery.labels.pids == given["gallery_pids"].tolist()
    metrics = evaluate(query, gallery).metrics
    assert (metrics.queries, metrics.unmatchable, metrics.positives) == (3, 1, 3)


def test_cameras_may_be_unknown_and_texts_may_be_bytes(tmp_path: Path):
    path = save(
        tmp_path / "f.npz", query_camids=None, gallery_camids=None, query_pids=np.array([b"1", b"2", b"a", b"\xff"])
    )
    query, _ = read_features(path)
    assert query.labels.camids == [None] * 4
    assert query.labels.pids == ["1", "2", "a", "\\xff"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_pids": None}, r"missing \['query_pids'\]"),
        ({"gallery_names": np.arange(9)}, r"unknown \['gallery_names'\]"),
        ({"query_features": np.ones((4, 5))}, "query features have 5 dimensions, gallery features 6"),
        (
            {"query_features": np.ones(4)},
            r"query_features must be numbers \(N, dim\) of at least one image, got float64 \(4,\)",
        ),
        ({"query_features": np.ones((0, 6))}, "at least one image"),
        ({"query_features": np.full((4, 6), "x")}, "must be numbers"),
        ({"gallery_pids": np.arange(8)}, "gallery_pids must be 9 whole numbers or texts"),
        ({"gallery_camids": np.ones(9)}, "gallery_camids must be 9 whole numbers or texts, got float64"),
        ({"query_features": np.diag([1, 1, 1, 0, 0, 0])[:4]}, "1 of 4 rows of query_features have no direction"),
        ({"query_features": np.full((4, 6), np.nan)}, "4 of 4 rows of query_features have no direction"),
    ],
)
def test_what_cannot_be_scored_is_named(changed, message, tmp_path: Path):
    with pytest.raises(EvaluationError, match=message):
        read_features(save(tmp_path / "features.npz", **changed))


def test_other_files_are_refused(tmp_path: Path):
    bad = tmp_path / "bad.npz"
    for content in (b"", b"no zip", b"PK\x03\x04 torn"):
        bad.write_bytes(content)
        with pytest.raises(EvaluationError, match="no .npz of plain arrays"):
            read_features(bad)
    np.savez(bad, query_features=np.array([{}], dtype=object))
    with pytest.raises(EvaluationError, match="no .npz of plain arrays"):
        read_features(bad)
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(EvaluationError, match="is a single array"):
        read_features(tmp_path / "one.npz")
    with pytest.raises(EvaluationError, match="there is no"):
        read_features(tmp_path / "nowhere.npz")


def header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        header((2**40, 6)),
        header((2**62, 2**62)),
        header((-1, 6)),
        b"no array",
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16,
    ],
    ids=["larger than memory", "larger than numbers", "negative", "no array", "no header"],
)
def test_an_array_that_is_none_is_refused_whatever_it_says_of_itself(content: bytes, tmp_path: Path):
    path = save(tmp_path / "features.npz", query_features=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("query_features.npy", content)
    with pytest.raises(EvaluationError, match="no .npz of plain arrays"):
        read_features(path)


@pytest.mark.parametrize(("flag", "value"), [(6, 1), (8, 99)], ids=["encrypted", "compressed in an unknown way"])
def test_an_archive_that_cannot_be_opened_is_refused(flag: int, value: int, tmp_path: Path):
    path = save(tmp_path / "features.npz")
    data = bytearray(path.read_bytes())
    data[flag] = data[data.find(b"PK\x01\x02") + flag + 2] = value
    path.write_bytes(data)
    with pytest.raises(EvaluationError, match="no .npz of plain arrays"):
        read_features(path)


def test_damaged_archives_are_refused_or_read_and_never_anything_else(tmp_path: Path):
    np.savez_compressed(tmp_path / "whole.npz", **arrays())  # type: ignore[arg-type]
    whole = (tmp_path / "whole.npz").read_bytes()
    path, refused = tmp_path / "torn.npz", 0
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300).tolist():
        torn = bytearray(whole)
        torn[place : place + 8] = rng.bytes(8)
        path.write_bytes(torn)
        try:
            read_features(path)
        except (EvaluationError, OSError):
            refused += 1
    assert refused > 200


def test_half_a_character_is_written_out(tmp_path: Path):
    query, _ = read_features(save(tmp_path / "f.npz", query_pids=np.array(["1", "2", "3", "\ud800"])))
    assert query.labels.pids[-1] == "\\ud800"


def test_the_number_0_is_a_distractor_as_the_text_0000_is(tmp_path: Path):
    query, gallery = read_features(save(tmp_path / "f.npz", gallery_pids=np.array([1, 2, 3, -1, 1, 2, 3, 4, 0])))
    counted = [evaluate(query, gallery, rule=Rule(distractors=kept)).outcomes.counted for kept in (True, False)]
    assert (counted[0] - counted[1]).tolist() == [1] * 4
