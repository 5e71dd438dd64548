from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Contract, Embedder, open_embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError
from tests.conftest import DIM, HEIGHT, WIDTH, write_crops


class NanForBlack:
    """A session like the real one, but for black crops, of which it makes NaN."""

    engine = "fp32/onnxruntime-cpu"
    max_batch = 4
    lanes = 1

    def __init__(self, session: OnnxSession) -> None:
        self._session = session

    def __call__(self, batch, /):
        rows = self._session(batch)
        rows[~batch.any(axis=(1, 2, 3))] = np.nan
        return rows


@pytest.fixture
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (17, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def failing(model: Path) -> Embedder:
    return Embedder(read_artifact(model).contract, NanForBlack(OnnxSession((model / MODEL_FILE).read_bytes())))


def test_an_image_embeds_to_the_same_bits_alone_and_in_any_batch(embedder: Embedder, batch):
    together = embedder.embed(batch)
    for count in range(1, len(batch) + 1):
        np.testing.assert_array_equal(embedder.embed(batch[:count]), together[:count])
    for row in range(len(batch)):
        np.testing.assert_array_equal(embedder.embed(batch[row : row + 1])[0], together[row])
    np.testing.assert_array_equal(embedder.embed(batch[::-1]), together[::-1])


def test_a_trained_network_embeds_to_the_same_bits_alone_and_in_any_batch(shared, osnet):
    photographs = sorted((shared / "data/vehicles/images/test").iterdir())[:16]
    embedder = open_embedder(osnet)
    images = np.stack([embedder.prepare(path.read_bytes()) for path in photographs])
    together = embedder.embed(images)
    alone = np.concatenate([embedder.embed(image[np.newaxis]) for image in images])
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(embedder.embed(images[3:10]), together[3:10])


@pytest.mark.parametrize("cores", [1, 3, 5])
def test_what_cores_share_is_what_one_computes(embedder: Embedder, model: Path, batch, cores: int, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    session = OnnxSession((model / MODEL_FILE).read_bytes())
    for count in (1, 2, 3, 8, 17):
        np.testing.assert_array_equal(session(batch[:count]), embedder.embed(batch[:count]))


def test_embeddings_are_rows_of_unit_length(embedder: Embedder, batch):
    embeddings = embedder.embed(batch)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (17, DIM)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    # Different crops are told apart: a constant output would pass the line above.
    assert (embeddings @ embeddings.T - np.eye(17)).max() < 0.99999


def test_encoded_images_take_the_same_way_as_prepared_ones(embedder: Embedder, tmp_path: Path):
    data = [path.read_bytes() for path in write_crops(tmp_path, pids=3)]
    prepared = np.stack([embedder.prepare(image) for image in data])
    np.testing.assert_array_equal(embedder.embed_encoded(data), embedder.embed(prepared))


def test_a_batch_of_another_size_is_refused(embedder: Embedder):
    with pytest.raises(EmbeddingError, match=r"expected a uint8 batch of \(N, 64, 32, 3\), got uint8 \(1, 32, 64, 3\)"):
        embedder.embed(np.zeros((1, WIDTH, HEIGHT, 3), np.uint8))
    with pytest.raises(EmbeddingError, match="got float32"):
        embedder.embed(np.zeros((1, HEIGHT, WIDTH, 3), np.float32))


def test_nan_is_no_embedding(failing: Embedder, batch):
    batch[5] = 0
    with pytest.raises(EmbeddingError, match=r"no unit vector for 1 of 17 images \(first: image 5"):
        failing.embed(batch)


def test_one_image_that_fails_costs_no_other_its_embedding(failing: Embedder, embedder: Embedder, batch):
    batch[5] = 0
    answers = failing.embed_each(batch)
    assert isinstance(answers[5], EmbeddingError)
    others = [row for row in range(17) if row != 5]
    np.testing.assert_array_equal(np.array([answers[row] for row in others]), embedder.embed(batch)[others])


def test_a_model_that_breaks_its_promise_of_dimensions_is_caught(model: Path, batch):
    contract = read_artifact(model).contract
    facts = {name: getattr(contract, name) for name in contract.__struct_fields__}
    wrong = Contract(**(facts | {"dim": DIM + 1}))
    with pytest.raises(EmbeddingError, match="promises 25 dimensions"):
        Embedder(wrong, OnnxSession((model / MODEL_FILE).read_bytes())).embed(batch)


def test_a_device_that_is_not_there_is_refused_and_never_replaced(model: Path):
    with pytest.raises(
        DeviceError, match=r"device cuda was asked for, but this onnxruntime offers .*CPUExecutionProvider"
    ):
        open_embedder(model, device="cuda")


@pytest.mark.gpu
def test_cuda_embeds_as_the_cpu_does(model: Path, batch):
    on_gpu, on_cpu = open_embedder(model, device="cuda"), open_embedder(model)
    assert on_gpu.engine == "fp32/onnxruntime-cuda"
    np.testing.assert_allclose(on_gpu.embed(batch), on_cpu.embed(batch), atol=1e-4)


def test_a_graph_that_no_engine_takes_is_an_artifact_error():
    with pytest.raises(ArtifactError, match="ONNX Runtime does not take the graph"):
        OnnxSession(b"no graph")
