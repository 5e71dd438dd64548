"""The ONNX Runtime session. Nothing else imports onnxruntime."""

import ctypes
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from reidserve.embed.contract import Precision
from reidserve.embed.cores import cores
from reidserve.embed.images import Batch
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError

# From 1.29 on its builds for Linux tell Microsoft of each session, under an id that they write into the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime  # it reads this once, when it is loaded

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that CUDA is given: a batch is padded to the next one, so few shapes are ever prepared for."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cpu": {},
    # TF32, the default, moves every embedding; trying every algorithm for each new shape takes seconds; and memory
    # that grows by doubling is kept.
    "cuda": {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    },
}
_BATCH_A_CORE = 8  # beyond it nothing is gained (benchmarks/serve.py)
_FATAL_ONLY = 4  # errors are raised, and need not be printed too


class OnnxSession:
    """A graph run by ONNX Runtime on the device that was asked for, or not at all.

    On the CPU nothing is padded and the threads do not spin while idle, so the decoding threads beside them get
    the cores; what it has no half-precision kernel for it computes in float32. Cores that share one operator wait for
    each other at its end. So each core is a lane: of calls at a time each is computed by its own thread, and a call
    alone has its batch divided, of which each core takes an image or two at a time, since one that decodes meanwhile
    would hold up the others with an equal share; what does not come out even is computed by all of them together.
    `threads` are all the cores of the process where no number is given; `whole` leaves batches whole, which
    shows whether a graph mixes the images of one. CUDA computes float32 graphs in full float32, in batches of BUCKETS,
    all of which are warm before the session is returned.

    Attributes:
        engine: such as "fp32/onnxruntime-cpu".
        max_batch: the largest batch worth giving at once, to all lanes together.
        lanes: how many calls are computed side by side.
        inputs: name, shape and type of each input of the graph.
        outputs: name, shape and type of each output of the graph.

    Raises:
        DeviceError: ONNX Runtime did not give the device.
        ArtifactError: ONNX Runtime does not take the graph.
    """

    def __init__(
        self,
        model: bytes,
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        precision: Precision = "fp32",
        whole: bool = False,
        threads: int | None = None,
    ) -> None:
        threads = threads or cores()
        self._session = _open(model, device, threads=threads)
        self.engine = f"{precision}/onnxruntime-{device}"
        self.inputs = [(node.name, node.shape, node.type) for node in self._session.get_inputs()]
        self.outputs = [(node.name, node.shape, node.type) for node in self._session.get_outputs()]
        self._in_buckets = device == "cuda"
        self.lanes = 1 if self._in_buckets or whole else threads
        self.max_batch = BUCKETS[-1] if self._in_buckets else _BATCH_A_CORE * threads
        self._calls = 0
        self._counting = threading.Lock()
        if self.lanes > 1:
            self._one_thread = _open(model, device, threads=1)
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="onnxruntime")
        if self._in_buckets:
            self._warm()

    def __call__(self, batch: Batch | NDArray[np.float32], /) -> NDArray[np.float32]:
        """Compute the first output for the first input.

        Raises:
            EmbeddingError: the engine failed, for want of memory say.
        """
        try:
            output = self._run_bucket(batch) if self._in_buckets else self._run_in_lane(batch)
        except Exception as error:
            raise EmbeddingError(f"the engine failed on {len(batch)} images: {_first_line(error)}") from error
        return cast(NDArray[np.float32], output)

    def _run_in_lane(self, batch: NDArray[Any]) -> Any:  # noqa: ANN401  # onnxruntime has no types
        if self.lanes == 1:
            return self._run(self._session, batch)
        with self._counting:
            self._calls += 1
            alone = self._calls == 1
        try:
            return self._run_pieces(batch) if alone else self._run(self._one_thread, batch)
        finally:
            with self._counting:
                self._calls -= 1

    def _run_pieces(self, batch: NDArray[Any]) -> Any:  # noqa: ANN401
        shared = len(batch) - len(batch) % self.lanes
        if not shared:
            return self._run(self._session, batch)
        pieces = shared // 2 if shared % (2 * self.lanes) == 0 else shared
        taken = self._pool.map(lambda piece: self._run(self._one_thread, piece), np.split(batch[:shared], pieces))
        outputs = list(taken)
        if shared < len(batch):
            outputs.append(self._run(self._session, batch[shared:]))
        return np.concatenate(outputs)

    def _run(self, session: Any, batch: NDArray[Any]) -> Any:  # noqa: ANN401
        (output,) = session.run([self.outputs[0][0]], {self.inputs[0][0]: batch})
        return output

    def _run_bucket(self, batch: NDArray[Any]) -> Any:  # noqa: ANN401
        binding = self._session.io_binding()
        binding.bind_cpu_input(self.inputs[0][0], pad_batch(batch))
        binding.bind_output(self.outputs[0][0], "cpu")
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0][: len(batch)]

    def _warm(self) -> None:
        _, (_, *shape), _ = self.inputs[0]
        for size in BUCKETS:
            self(np.zeros((size, *shape), np.uint8))


def sees_cuda() -> bool:
    """Whether ONNX Runtime was built for CUDA and the driver finds a GPU."""
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def pad_batch(batch: NDArray[Any]) -> NDArray[Any]:
    """A batch (N, ...) with black rows up to the next of BUCKETS; beyond the last one it stays as it is."""
    size = next((bucket for bucket in BUCKETS if bucket >= len(batch)), len(batch))
    if size == len(batch):
        return np.ascontiguousarray(batch)
    padded = np.zeros((size, *batch.shape[1:]), batch.dtype)
    padded[: len(batch)] = batch
    return padded


def _open(model: bytes, device: Literal["cpu", "cuda"], *, threads: int) -> Any:  # noqa: ANN401
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
        session = onnxruntime.InferenceSession(
            model, sess_options=_options(threads), providers=[(provider, dict(_PROVIDER_OPTIONS[device]))]
        )
    except Exception as error:
        raise ArtifactError(f"ONNX Runtime does not take the graph: {_first_line(error)}") from error
    obtained = session.get_providers()[0]
    if obtained != provider:
        raise DeviceError(f"device {device} was asked for, but ONNX Runtime gave {obtained}")
    return session


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Batches vary in size, and the arena would keep the largest of every shape it ever saw.
    options.enable_cpu_mem_arena = False
    return options


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
