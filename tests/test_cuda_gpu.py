"""ONNX Runtime on CUDA, held to itself on the CPU. Needs a GPU: scripts/gpu."""

import numpy as np
import pytest

from reidserve.embed import open_embedder
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from tests.conftest import HEIGHT, WIDTH

pytestmark = pytest.mark.gpu

ROUNDING = 1e-5
"""Of another order of summation in float32, in any component; TF32 moves unit embeddings by some 1e-4."""


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def embedder(model):
    return open_embedder(model, device="cuda")


def test_cuda_computes_what_the_cpu_computes_in_full_float32(model, embedder, batch):
    assert embedder.engine == "fp32/onnxruntime-cuda"
    plain = open_embedder(model).embed(batch)
    np.testing.assert_allclose(embedder.embed(batch), plain, atol=ROUNDING)
    # The comparison can fail: pixels that are one grey level off are seen.
    off = np.where(batch < 255, batch + 1, 254).astype(np.uint8)
    assert np.abs(embedder.embed(off) - plain).max() > 10 * ROUNDING


def test_a_trained_network_computes_the_same_on_cuda(shared, osnet):
    paths = sorted((shared / "data/vehicles/images/test").iterdir())[:40]
    cuda, plain = open_embedder(osnet, device="cuda"), open_embedder(osnet)
    images = np.stack([plain.prepare(path.read_bytes()) for path in paths])
    np.testing.assert_allclose(cuda.embed(images), plain.embed(images), atol=1e-4)


def test_an_embedding_does_not_depend_on_its_batch(embedder, batch):
    together = embedder.embed(batch)
    for count in (1, 2, 7, 8, 33, 64, 65):
        np.testing.assert_allclose(embedder.embed(batch[:count]), together[:count], atol=ROUNDING)
    np.testing.assert_allclose(embedder.embed(batch[::-1])[::-1], together, atol=ROUNDING)


def test_answers_of_one_call_are_not_those_of_the_next(model, batch):
    session = OnnxSession((model / MODEL_FILE).read_bytes(), device="cuda")
    first = session(batch[:8])
    kept = first.copy()
    session(batch[8:16])
    np.testing.assert_array_equal(first, kept)
