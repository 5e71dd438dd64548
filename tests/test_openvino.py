import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError
from tests.conftest import HEIGHT, WIDTH

pytest.importorskip("openvino", reason="needs the [openvino] extra")

from reidserve.embed.openvino_session import OpenVinoSession


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (17, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def session(model: Path) -> OpenVinoSession:
    return OpenVinoSession((model / MODEL_FILE).read_bytes())


def test_it_computes_in_full_float32(model: Path, session: OpenVinoSession, batch):
    expected = OnnxSession((model / MODEL_FILE).read_bytes())(batch)
    assert session(batch).dtype == np.float32
    np.testing.assert_allclose(session(batch), expected, atol=2e-6)


def test_what_it_gave_stays_when_it_is_called_again(session: OpenVinoSession, batch):
    first = session(batch[:4])
    kept = first.copy()
    session(batch[4:8])
    np.testing.assert_array_equal(first, kept)


def test_a_batch_need_not_be_contiguous(session: OpenVinoSession, batch):
    np.testing.assert_array_equal(session(batch[::2]), session(batch[::2].copy()))


def test_threads_that_call_at_once_each_get_their_own(session: OpenVinoSession, batch):
    expected = session(batch)
    with ThreadPoolExecutor(4) as pool:
        parts = [batch[start : start + 2] for start in range(0, 16, 2)] * 8
        answers = list(pool.map(session, parts))
    for place, answer in enumerate(answers):
        start = place % 8 * 2
        np.testing.assert_allclose(answer, expected[start : start + 2], atol=1e-5)


@pytest.mark.parametrize("size", [0, 8, 3000])
def test_a_graph_that_it_does_not_take_is_an_artifact_error(model: Path, size: int):
    with pytest.raises(ArtifactError, match="OpenVINO does not take the graph: [A-Z]"):
        OpenVinoSession((model / MODEL_FILE).read_bytes()[:size])


def test_a_batch_that_fails_is_an_embedding_error_and_the_next_one_is_answered(session: OpenVinoSession, batch):
    with pytest.raises(EmbeddingError, match="the engine failed on 2 images: .*shape"):
        session(batch[:2, :8])
    assert len(session(batch[:2])) == 2


def test_it_is_refused_where_it_would_compute_in_another_precision(model: Path, monkeypatch: pytest.MonkeyPatch):
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU computes in float32 whatever it is asked for")
    asked = {"INFERENCE_PRECISION_HINT": "bf16"}
    monkeypatch.setattr("reidserve.embed.openvino_session._options", lambda threads: asked)
    with pytest.raises(DeviceError, match="OpenVINO was asked to compute in f32, it says bf16"):
        OpenVinoSession((model / MODEL_FILE).read_bytes())


def test_nobody_is_told_of_its_use(model: Path):
    script = (
        "import sys, pathlib\nfrom reidserve.embed.openvino_session import OpenVinoSession\n"
        "OpenVinoSession(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry')))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script, model / MODEL_FILE], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
