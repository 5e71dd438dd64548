"""TensorRT and CUDA's runtime on the CPU, as far as we use them and as strict as their documentation.

Memory must be alive and large enough, nothing may be awaited or allocated while a stream is captured, and a context
must have run once in its shape before it is captured. A plan is its ONNX graph behind a header, run by ONNX Runtime.
"""

import ctypes
import enum
import json
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from reidserve.embed.onnx_session import OnnxSession

HEADER = b"PLAN"


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorLaunchFailure = 719


OK = (cudaError_t.cudaSuccess,)


class Runtime(types.ModuleType):
    """`cuda.bindings.runtime`: what is alive, and what each stream was told.

    Attributes:
        live: bytes of each allocation by its address.
        captured: what the stream queues while it is captured; None while it is not.
        launches: how many graphs were launched.
        broken: makes every launch fail.
        log: names of calls that allocate, free or destroy, in their order.
    """

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = enum.Enum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])
    cudaStreamCaptureMode = enum.Enum("cudaStreamCaptureMode", ["cudaStreamCaptureModeThreadLocal"])

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.live: dict[int, ctypes.Array] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.launches = 0
        self.broken = False
        self.log: list[str] = []

    def cudaGetDeviceProperties(self, device):
        assert device == 0
        return (*OK, types.SimpleNamespace(name=b"NVIDIA Twin 80GB", major=9, minor=0))

    def cudaDriverGetVersion(self):
        return (*OK, 13010)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        self.streams.add(77)
        return (*OK, 77)

    def cudaStreamDestroy(self, stream):
        self.log.append("stream")
        self.streams.remove(stream)
        return OK

    def cudaStreamSynchronize(self, stream):
        assert stream in self.streams
        return OK if self.captured is None else (cudaError_t.cudaErrorStreamCaptureUnsupported,)

    def cudaMalloc(self, size):
        if self.captured is not None or size == 0:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported, None)
        if size > 2**30:
            return (cudaError_t.cudaErrorMemoryAllocation, None)
        # Whatever was there before: not zeros.
        memory = (ctypes.c_uint8 * size).from_buffer_copy(b"\xa5" * size)
        self.live[ctypes.addressof(memory)] = memory
        return (*OK, ctypes.addressof(memory))

    def cudaHostAlloc(self, size, flags):
        assert flags == self.cudaHostAllocDefault
        return self.cudaMalloc(size)

    def cudaFree(self, address):
        self.log.append("memory")
        del self.live[address]
        return OK

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to, of, size, kind, stream):
        assert kind in self.cudaMemcpyKind
        if stream not in self.streams or len(self.live[to]) != size or len(self.live[of]) != size:
            return (cudaError_t.cudaErrorInvalidValue,)
        self.queue(lambda: ctypes.memmove(self.live[to], self.live[of], size))
        return OK

    def cudaStreamBeginCapture(self, stream, mode):
        assert stream in self.streams
        assert self.captured is None
        assert mode in self.cudaStreamCaptureMode
        self.captured = []
        return OK

    def cudaStreamEndCapture(self, stream):
        work, self.captured = self.captured, None
        self.graphs[id(work)] = work
        return (*OK, id(work))

    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        ready = -len(self.graphs)
        self.graphs[ready] = self.graphs[graph]
        return (*OK, ready)

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return OK

    def cudaGraphExecDestroy(self, ready):
        self.log.append("graph")
        del self.graphs[ready]
        return OK

    def cudaGraphLaunch(self, ready, stream):
        assert stream in self.streams
        if self.broken:
            return (cudaError_t.cudaErrorLaunchFailure,)
        self.launches += 1
        for step in self.graphs[ready]:
            step()
        return OK

    def queue(self, step: Callable[[], None]) -> None:
        if self.captured is None:
            step()
        else:
            self.captured.append(step)


def tensorrt(runtime: Runtime) -> Any:
    """A module `tensorrt` that runs on this runtime, with the names that TensorRT 10.13 and 11 both have."""
    trt: Any = types.ModuleType("tensorrt")
    trt.__version__ = "11.4.0.106"

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity = range(5)

        def log(self, severity, message):
            raise NotImplementedError

    class DataType(enum.Enum):
        FLOAT, UINT8 = range(2)

    class TensorIOMode(enum.Enum):
        NONE, INPUT, OUTPUT = range(3)

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    class TrtRuntime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if not plan.startswith(HEADER):
                self.logger.log(ILogger.ERROR, "Serialization assertion magicTag failed")
                return None
            facts, _, graph = plan.removeprefix(HEADER).partition(b"\n")
            return Engine(OnnxSession(graph), **json.loads(facts))

    class Engine:
        device_memory_size_v2 = 4096

        def __init__(self, session, profile):
            self.session = session
            self.profile = profile
            self.ports = [(port, TensorIOMode.INPUT) for port in session.inputs]
            self.ports += [(port, TensorIOMode.OUTPUT) for port in session.outputs]
            self.num_io_tensors = len(self.ports)

        def _port(self, name):
            return next(port for port in self.ports if port[0][0] == name)

        def get_tensor_name(self, place):
            return self.ports[place][0][0]

        def get_tensor_mode(self, name):
            return self._port(name)[1]

        def get_tensor_dtype(self, name):
            return {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT}[self._port(name)[0][2]]

        def get_tensor_shape(self, name):
            return [size if isinstance(size, int) else -1 for size in self._port(name)[0][1]]

        def get_tensor_profile_shape(self, name, profile):
            assert profile == 0
            assert self._port(name)[1] == TensorIOMode.INPUT
            return self.profile

        def create_execution_context(self, strategy):
            assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
            return Context(self)

    class Context:
        def __init__(self, engine):
            self.engine = engine
            self.workspace = None
            self.shape = None
            self.addresses = {}
            self.ran_in = None

        def __del__(self):
            runtime.log.append("context")

        def set_device_memory(self, address, size):
            assert len(runtime.live[address]) == size >= self.engine.device_memory_size_v2
            self.workspace = address

        def set_input_shape(self, name, shape):
            least, _, most = self.engine.profile
            self.shape = shape
            return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

        def set_tensor_address(self, name, address):
            self.addresses[name] = address
            return name in {port[0] for port, _ in self.engine.ports}

        def execute_async_v3(self, stream):
            assert stream in runtime.streams
            if runtime.captured is not None and self.ran_in != self.shape:
                return False  # what a first run does cannot be captured
            self.ran_in = self.shape
            given, made = (self.addresses[port[0]] for port, _ in self.engine.ports)
            shape, session, workspace = self.shape, self.engine.session, self.workspace

            def compute():
                assert workspace in runtime.live
                crops = np.frombuffer(runtime.live[given], np.uint8).reshape(shape)
                ctypes.memmove(runtime.live[made], session(crops).tobytes(), len(runtime.live[made]))

            runtime.queue(compute)
            return True

    trt.ILogger = trt.Logger = ILogger
    trt.DataType, trt.TensorIOMode, trt.Runtime, trt.ICudaEngine = DataType, TensorIOMode, TrtRuntime, Engine
    trt.IExecutionContext = Context
    trt.ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    _add_builder(trt)
    return trt


def _add_builder(trt: Any) -> None:
    """What Polygraphy asks of TensorRT to compile a graph."""

    class BuilderFlag(enum.IntEnum):
        TF32, DEBUG = range(2)

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class DeviceType(enum.Enum):
        GPU, DLA = range(2)

    class ProfilingVerbosity(enum.Enum):
        LAYER_NAMES_ONLY, DETAILED = range(2)

    class Network:
        def __init__(self, flags):
            self.flags = flags
            self.graph = None
            self.num_inputs = 0

        def __iter__(self):
            return iter(())

        def get_input(self, place):
            (value,) = self.graph.graph.input
            sizes = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
            return types.SimpleNamespace(name=value.name, shape=sizes, is_shape_tensor=False, dtype="UINT8")

    class Parser:
        def __init__(self, network, logger):
            self.network, self.errors = network, []

        num_errors = property(lambda self: len(self.errors))

        def get_error(self, place):
            return self.errors[place]

        def parse(self, graph):
            try:
                self.network.graph = onnx.load_from_string(graph)
            except Exception as error:  # noqa: BLE001 — as a parser does
                self.errors.append(f"In node -1 with name: no graph ({type(error).__name__})")
                return False
            self.network.num_inputs = 1
            return True

    class Profile:
        def set_shape(self, name, least, common, most):
            self.shapes = [list(least), list(common), list(most)]

    class Cache:
        def __init__(self, timings):
            self.timings = bytes(timings)

        def serialize(self):
            return self.timings

    class Config:
        DLA_core = -1
        default_device_type = DeviceType.GPU
        num_optimization_profiles = 1

        def __init__(self):
            self.flags, self.profiles, self.cache = {BuilderFlag.TF32}, [], None

        def get_flag(self, flag):
            return flag in self.flags

        def set_flag(self, flag):
            self.flags.add(flag)

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def add_optimization_profile(self, profile):
            self.profiles.append(profile)

        def create_timing_cache(self, timings):
            return Cache(timings)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            fits = cache.timings.startswith(b"timed ") or not cache.timings
            self.cache = cache if fits else self.cache
            return fits

        def get_timing_cache(self):
            return self.cache

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            return Network(flags)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            assert network.flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
            if any(node.op_type == "Unbuildable" for node in network.graph.graph.node):
                self.logger.log(trt.ILogger.ERROR, "Could not find any implementation for node Unbuildable")
                return None
            assert config.flags == set(), "TF32 moves every embedding"
            (profile,) = config.profiles
            config.cache.timings += b"timed "
            facts = json.dumps({"profile": profile.shapes}).encode()
            return HEADER + facts + b"\n" + network.graph.SerializeToString()

    trt.Builder, trt.OnnxParser, trt.BuilderFlag, trt.DeviceType = Builder, Parser, BuilderFlag, DeviceType
    trt.NetworkDefinitionCreationFlag, trt.ProfilingVerbosity = NetworkDefinitionCreationFlag, ProfilingVerbosity
    trt.init_libnvinfer_plugins = lambda logger, namespace: True


@contextmanager
def installed() -> Iterator[Runtime]:
    """The twins in the place of `tensorrt` and `cuda`, and a Polygraphy that has met no other."""
    import sys

    def owned(name: str) -> bool:
        return name.partition(".")[0] in ("cuda", "polygraphy", "tensorrt")

    runtime = Runtime()
    before = {name: module for name, module in sys.modules.items() if owned(name)}
    for name in before:
        del sys.modules[name]
    bindings: Any = types.ModuleType("cuda.bindings")
    bindings.runtime = runtime
    sys.modules.update({"cuda": types.ModuleType("cuda"), "cuda.bindings": bindings, runtime.__name__: runtime})
    sys.modules["tensorrt"] = tensorrt(runtime)
    try:
        yield runtime
    finally:
        for name in [name for name in sys.modules if owned(name)]:
            del sys.modules[name]
        sys.modules.update(before)
