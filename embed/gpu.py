"""The GPU through CUDA's runtime: what it is, a stream, memory, graphs. Nothing else imports cuda.bindings.

It is the first one that CUDA shows: CUDA_VISIBLE_DEVICES chooses among several.
"""

import ctypes
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from reidserve.errors import DeviceError

INSTALL = 'pip install "reidserve[tensorrt]"'


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a compiled network depends on.

    Attributes:
        name: such as "NVIDIA H100 80GB HBM3".
        capability: compute capability, such as "9.0".
        driver: the newest CUDA that its driver speaks, such as "13.0".
    """

    name: str
    capability: str
    driver: str


def find_gpu() -> Gpu:
    """The first GPU that is visible.

    Raises:
        DeviceError: there is none, or cuda-bindings is not installed.
    """
    runtime = _runtime()
    try:
        (properties,) = _values(runtime.cudaGetDeviceProperties(0))
        (driver,) = _values(runtime.cudaDriverGetVersion())
    except DeviceError as error:
        raise DeviceError(f"expected an NVIDIA GPU with its driver: {error}") from error
    return Gpu(
        name=properties.name.decode(),
        capability=f"{properties.major}.{properties.minor}",
        driver=f"{driver // 1000}.{driver % 1000 // 10}",
    )


class Stream:
    """A stream on the GPU and what is allocated for its work, let go together and in reverse order by `close`.

    Calls may come from any thread, one at a time.

    Attributes:
        handle: the address other libraries know the stream by.

    Raises:
        DeviceError: CUDA refused; said in its own words.
    """

    def __init__(self) -> None:
        self._runtime = _runtime()
        self._held = ExitStack()
        # One that does not wait for the default stream, which other libraries of the process use.
        (stream,) = _values(self._runtime.cudaStreamCreateWithFlags(self._runtime.cudaStreamNonBlocking))
        self._stream = stream
        self.handle = int(stream)
        self._held.callback(self._runtime.cudaStreamDestroy, stream)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU."""
        (address,) = _values(self._runtime.cudaMalloc(max(size, 1)))
        self._held.callback(self._runtime.cudaFree, address)
        return int(address)

    def pin(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of zeros in host memory that stays in its place, so the GPU copies without the CPU.

        It must not be touched after `close`.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        (address,) = _values(self._runtime.cudaHostAlloc(size, self._runtime.cudaHostAllocDefault))
        self._held.callback(self._runtime.cudaFreeHost, address)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))
        raw[...] = 0
        return raw.view(dtype).reshape(shape)

    def hold(self, kept: list[object]) -> None:
        """Keep objects of other libraries alive until what was allocated after them is gone."""
        self._held.callback(kept.clear)

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Queue the copy of a pinned array to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        _values(self._runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream))

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Queue the copy from the GPU into a pinned array."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _values(self._runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream))

    def wait(self) -> None:
        """Wait until all that was queued is done."""
        _values(self._runtime.cudaStreamSynchronize(self._stream))

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` queues as a CUDA graph, without doing it; what is returned queues it all at once."""
        runtime, stream = self._runtime, self._stream
        # Of this thread alone: others may allocate meanwhile.
        _values(runtime.cudaStreamBeginCapture(stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            work()
        finally:
            captured = runtime.cudaStreamEndCapture(stream)
        (graph,) = _values(captured)
        try:
            (ready,) = _values(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            runtime.cudaGraphDestroy(graph)
        self._held.callback(runtime.cudaGraphExecDestroy, ready)

        def launch() -> None:
            _values(runtime.cudaGraphLaunch(ready, stream))

        return launch

    def close(self) -> None:
        """Wait for the stream and let go of everything; nothing is left to do the second time."""
        self._runtime.cudaStreamSynchronize(self._stream)
        self._held.close()


def _runtime() -> Any:  # noqa: ANN401 — cuda.bindings has no types
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise DeviceError(f"expected cuda-bindings, which is not installed here: {INSTALL}") from error
    return runtime


def _values(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call into CUDA's runtime gave, after the error that leads its answer.

    Raises:
        DeviceError: it failed.
    """
    error, *values = answer
    if int(error) != 0:
        raise DeviceError(f"CUDA says {error.name}")
    return tuple(values)
