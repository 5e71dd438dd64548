"""The ONNX Runtime session. Nothing else imports onnxruntime."""

import os
from typing import Literal, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from reidserve.embed.images import Batch
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError

Device = Literal["cpu", "cuda"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_MAX_BATCH = {"cpu": 16, "cuda": 64}
_FATAL_ONLY = 4  # errors are raised, and need not be printed too


class OnnxSession:
    """A graph run by ONNX Runtime on the device that was asked for, or not at all.

    On the CPU nothing is padded and the threads do not spin while idle, so the decoding threads beside them get
    the cores. CUDA computes in full float32: TF32, its default, moves every embedding.

    Attributes:
        engine: such as "fp32/onnxruntime-cpu".
        max_batch: the largest batch worth giving at once.
        inputs: name, shape and type of each input of the graph.
        outputs: name, shape and type of each output of the graph.

    Raises:
        DeviceError: ONNX Runtime did not give the device.
        ArtifactError: ONNX Runtime does not take the graph.
    """

    def __init__(self, model: bytes, *, device: Device = "cpu") -> None:
        provider = _PROVIDERS[device]
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise DeviceError(
                f"device {device} was asked for, but this onnxruntime offers {', '.join(available)}; "
                "install the [gpu] extra in place of [cpu], or ask for --device cpu"
            )
        if device == "cuda":
            # The CUDA libraries that pip installed lie where the loader does not look.
            onnxruntime.preload_dlls()
        try:
            self._session = onnxruntime.InferenceSession(
                model,
                sess_options=_options(),
                providers=[(provider, {"use_tf32": "0"} if device == "cuda" else {})],
            )
        except Exception as error:
            raise ArtifactError(f"ONNX Runtime does not take the graph: {_first_line(error)}") from error
        obtained = self._session.get_providers()[0]
        if obtained != provider:
            raise DeviceError(f"device {device} was asked for, but ONNX Runtime gave {obtained}")
        self.engine = f"fp32/onnxruntime-{device}"
        self.max_batch = _MAX_BATCH[device]
        self.inputs = [(node.name, node.shape, node.type) for node in self._session.get_inputs()]
        self.outputs = [(node.name, node.shape, node.type) for node in self._session.get_outputs()]

    def __call__(self, batch: Batch | NDArray[np.float32], /) -> NDArray[np.float32]:
        """Compute the first output for the first input.

        Raises:
            EmbeddingError: the engine failed, for want of memory say.
        """
        try:
            (output,) = self._session.run([self.outputs[0][0]], {self.inputs[0][0]: batch})
        except Exception as error:
            raise EmbeddingError(f"the engine failed on {len(batch)} images: {_first_line(error)}") from error
        return cast(NDArray[np.float32], output)


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Batches vary in size, and the arena would keep the largest of every shape it ever saw.
    options.enable_cpu_mem_arena = False
    return options


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
