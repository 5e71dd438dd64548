"""The OpenVINO session. Nothing else imports openvino."""

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidserve.embed.contract import Precision
from reidserve.embed.cores import cores
from reidserve.embed.images import Batch
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError

INSTALL = "pip install 'reidserve[cpu,openvino]'"

_MAX_BATCH = 16
_TELEMETRY = "openvino_telemetry"


class OpenVinoSession:
    """A graph run by OpenVINO on the CPU; calls may come from any thread and wait for each other.

    It computes in float32 what the graph does not say in integers: its own default is bfloat16 (cosine .998), and in
    half precision it normalises in half precision too, to vectors that are not of unit length.

    For one image alone it may choose other kernels than for several, which moves float32 sums in their last digits.
    In an int8 graph such a digit can become a whole step of a quantised value: there one image goes as two.

    Attributes:
        engine: such as "int8/openvino-cpu".
        max_batch: the largest batch worth giving at once.
        lanes: 1, as calls wait for each other.

    Raises:
        DeviceError: OpenVINO is not installed, or does not compute in float32.
        ArtifactError: OpenVINO does not take the graph.
    """

    def __init__(self, model: bytes, *, precision: Precision = "fp32", threads: int | None = None) -> None:
        openvino = _load()
        core = openvino.Core()
        try:
            compiled = core.compile_model(core.read_model(model, b""), "CPU", _options(threads or cores()))
        except Exception as error:
            raise ArtifactError(f"OpenVINO does not take the graph: {_last_line(error)}") from error
        obtained = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if obtained != "f32":
            raise DeviceError(f"OpenVINO was asked to compute in f32, it says {obtained}; ask for --device cpu")
        self.engine = f"{precision}/openvino-cpu"
        self.max_batch = _MAX_BATCH
        self.lanes = 1
        self._smallest = 2 if precision == "int8" else 1
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, batch: Batch, /) -> NDArray[np.float32]:
        """Compute a Batch (N, height, width, 3) to float32 (N, dim).

        Raises:
            EmbeddingError: the engine failed, for want of memory say.
        """
        given = batch if len(batch) >= self._smallest else np.repeat(batch, self._smallest, axis=0)
        try:
            with self._lock:
                rows: NDArray[np.float32] = self._request.infer({0: np.ascontiguousarray(given)})[0]
        except Exception as error:
            raise EmbeddingError(f"the engine failed on {len(batch)} images: {_last_line(error)}") from error
        return rows[: len(batch)]


def _load() -> Any:  # noqa: ANN401  # openvino has no types
    # Its Python package tells Google Analytics of each import, where it finds the package that does so.
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise DeviceError(f"device openvino was asked for, but it is not installed: {INSTALL}") from error
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
    return openvino


def _options(threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Threads that are bound to their cores would wait there for those that decode.
        "ENABLE_CPU_PINNING": False,
    }


def _last_line(error: Exception) -> str:
    """What was wrong, without the source lines of OpenVINO that noticed it."""
    return str(error).strip().rpartition("\n")[2]
