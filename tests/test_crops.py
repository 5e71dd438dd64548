from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.datasets import Crop
from reidserve.embed import Embedder
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import EvaluationError
from reidserve.evaluate import embed_crops, embed_parts
from tests.conftest import write_crops


class NanForBrightLeft:
    """A session like the real one, but for crops whose left half is brighter, of which it makes NaN."""

    engine = "fp32/onnxruntime-cpu"
    max_batch = 16
    lanes = 1

    def __init__(self, session: OnnxSession) -> None:
        self._session = session

    def __call__(self, batch, /):
        rows = self._session(batch)
        middle = batch.shape[2] // 2
        rows[batch[:, :, :middle].mean(axis=(1, 2, 3)) > batch[:, :, middle:].mean(axis=(1, 2, 3))] = np.nan
        return rows


class Opposites:
    """A session that gives a crop with a brighter left half the opposite of what it gives its mirror image."""

    engine = "fp32/onnxruntime-cpu"
    max_batch = 16
    lanes = 1

    def __call__(self, batch, /):
        middle = batch.shape[2] // 2
        brighter = batch[:, :, :middle].mean(axis=(1, 2, 3)) > batch[:, :, middle:].mean(axis=(1, 2, 3))
        rows = np.zeros((len(batch), 24), np.float32)
        rows[:, 0] = np.where(brighter, 1, -1)
        return rows


def crops_below(folder: Path) -> list[Crop]:
    return [Crop(path, pid=path.name[:4], camid=path.name[6]) for path in write_crops(folder, pids=4)]


def mirrored(crops: list[Crop], folder: Path) -> list[Crop]:
    folder.mkdir()
    for crop in crops:
        with Image.open(crop.path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / crop.path.name)
    return [Crop(folder / crop.path.name, pid=crop.pid, camid=crop.camid) for crop in crops]


def test_a_flipped_embedding_is_the_normalised_mean_of_two_plain_ones(tmp_path: Path, embedder: Embedder):
    crops = crops_below(tmp_path / "crops")
    query, gallery, failures = embed_crops(crops, crops[:2], embedder, flip=True)
    assert failures == []
    images = np.stack([embedder.prepare(crop.path.read_bytes()) for crop in crops])
    both = (embedder.embed(images) + embedder.embed(np.flip(images, axis=2).copy())) / 2
    expected = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(query.embeddings, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(query.embeddings, axis=1), 1, rtol=0, atol=1e-6)
    assert query.embeddings.dtype == np.float32
    assert query.embeddings.flags.c_contiguous
    np.testing.assert_array_equal(gallery.embeddings, query.embeddings[:2])


def test_with_flip_an_image_and_its_mirror_image_embed_alike(tmp_path: Path, embedder: Embedder):
    crops = crops_below(tmp_path / "crops")
    mirrors = mirrored(crops, tmp_path / "mirrored")
    as_is, flipped, _ = embed_crops(crops, mirrors, embedder, flip=True)
    np.testing.assert_allclose(as_is.embeddings, flipped.embeddings, rtol=0, atol=1e-6)
    plain, plainly_flipped, _ = embed_crops(crops, mirrors, embedder)
    assert np.abs(plain.embeddings - plainly_flipped.embeddings).max() > 1e-3


def test_an_image_whose_mirror_image_fails_is_left_out_with_flip_alone(tmp_path: Path, model: Path, embedder: Embedder):
    crops = crops_below(tmp_path / "crops")
    session = NanForBrightLeft(OnnxSession((model / MODEL_FILE).read_bytes()))
    failing = Embedder(embedder.contract, session)
    images = np.stack([embedder.prepare(crop.path.read_bytes()) for crop in crops])
    left = images[:, :, :16].mean(axis=(1, 2, 3)) > images[:, :, 16:].mean(axis=(1, 2, 3))
    assert 0 < left.sum() < len(crops)
    plain, failures = embed_parts({"crops": crops}, failing)
    assert list(plain["crops"].crops) == [crop for crop, brighter in zip(crops, left, strict=True) if not brighter]
    assert len(failures) == left.sum()
    with pytest.raises(EvaluationError, match="none of 8 crops images can be read, first .*png: "):
        embed_parts({"crops": crops}, failing, flip=True)


def test_opposite_embeddings_have_no_mean(tmp_path: Path, embedder: Embedder):
    crops = crops_below(tmp_path / "crops")
    opposite = Embedder(embedder.contract, Opposites())
    assert embed_parts({"crops": crops}, opposite)[1] == []
    with pytest.raises(EvaluationError, match="none of 8 crops images can be read"):
        embed_parts({"crops": crops}, opposite, flip=True)


def test_each_part_keeps_its_readable_crops_in_its_order(tmp_path: Path, embedder: Embedder):
    crops = crops_below(tmp_path / "crops")
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    tracked = [Crop(crop.path, crop.pid, track=str(number)) for number, crop in enumerate(crops)]
    parts = {"some": [Crop(bad), *tracked[::-1]], "others": tracked[2:3]}
    seen: list[tuple[int, int]] = []
    embedded, failures = embed_parts(parts, embedder, progress=lambda done, total: seen.append((done, total)))
    assert [name for name, _ in failures] == [str(bad)]
    assert seen[-1] == (9, 9)
    assert embedded["some"].crops == tracked[::-1]
    assert [crop.track for crop in embedded["others"].crops] == ["2"]
    np.testing.assert_array_equal(embedded["others"].embeddings[0], embedded["some"].embeddings[::-1][2])
    expected = embedder.embed_encoded([crop.path.read_bytes() for crop in crops])
    np.testing.assert_array_equal(embedded["some"].embeddings[::-1], expected)
    labelled = embedded["others"].labelled
    assert (list(labelled.labels.pids), list(labelled.labels.camids)) == (["0002"], [None])
    assert list(labelled.labels.sources) == [str(crops[2].path.resolve())]
