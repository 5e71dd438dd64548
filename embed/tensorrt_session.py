"""The TensorRT session: a plan, run as one CUDA graph per batch size. Nothing else runs TensorRT.

Written to the documented interface of TensorRT 10.13 and 11. All that costs time is done before a session is
returned: a request only copies, launches and waits.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from reidserve.embed.contract import Plan
from reidserve.embed.gpu import INSTALL, Stream, find_gpu
from reidserve.embed.images import Batch
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError

if TYPE_CHECKING:
    import tensorrt as trt

MAX_BATCH = 1024

_Thing = TypeVar("_Thing")


@dataclass(frozen=True, slots=True)
class Platform:
    """What a plan is bound to: TensorRT promises nothing where one of these differs.

    Attributes:
        gpu: the GPU's name.
        capability: its compute capability, such as "9.0".
        driver: the newest CUDA that its driver speaks, such as "13.0".
        tensorrt: version of TensorRT.
    """

    gpu: str
    capability: str
    driver: str
    tensorrt: str


_WORDS: Mapping[str, str] = {
    "gpu": "GPU",
    "capability": "compute capability",
    "driver": "CUDA driver",
    "tensorrt": "TensorRT",
}


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor that goes into a plan or comes out of it.

    Attributes:
        name: what the graph calls it.
        given: whether it goes in.
        dtype: TensorRT's word for its type, such as "UINT8".
        shape: -1 where the size is free.
        most: of the first size, what the plan was built for; None for what comes out.
    """

    name: str
    given: bool
    dtype: str
    shape: tuple[int, ...]
    most: int | None = None


def find_platform() -> Platform:
    """The GPU and the TensorRT that are here.

    Raises:
        DeviceError: TensorRT, cuda-bindings or a GPU is missing.
    """
    check_installed()
    import tensorrt as trt

    gpu = find_gpu()
    return Platform(gpu=gpu.name, capability=gpu.capability, driver=gpu.driver, tensorrt=trt.__version__)


def check_installed() -> None:
    """See that TensorRT can be imported.

    Raises:
        DeviceError: it cannot; says how to install it.
    """
    try:
        import tensorrt as trt
    except ImportError as error:
        raise DeviceError(f"expected TensorRT, which is not installed here: {INSTALL}") from error
    # Its type stubs alone leave a folder of that name, which imports as an empty namespace.
    if not hasattr(trt, "Runtime"):
        raise DeviceError(f"expected TensorRT, but only its type stubs are installed here: {INSTALL}")


def refusals(plan: Plan, here: Platform) -> list[str]:
    """Why a plan must not run here, one sentence for each fact that differs; empty where it may."""
    return [
        f"it was built for {_WORDS[fact]} {getattr(plan, fact)}, here is {found}"
        for fact, found in asdict(here).items()
        if getattr(plan, fact) != found
    ]


def faulty_batches(batches: Sequence[int]) -> str | None:
    """What is wrong with the batch sizes of a plan; None where nothing is."""
    if not batches or list(batches) != sorted(set(batches)) or not 1 <= batches[0] <= batches[-1] <= MAX_BATCH:
        return f"batch sizes must ascend from 1 to at most {MAX_BATCH}, got {', '.join(map(str, batches)) or 'none'}"
    return None


def choose_bucket(count: int, batches: Sequence[int]) -> int:
    """The smallest of the ascending batch sizes that holds `count` images."""
    return next(size for size in batches if size >= count)


def foreign_ports(ports: Sequence[Port], *, batches: Sequence[int], dim: int) -> list[str]:
    """Why a plan with these ports is none of the contract's graph; empty where it may be."""
    given = [port for port in ports if port.given]
    made = [port for port in ports if not port.given]
    if len(given) != 1 or len(made) != 1:
        return [f"expected one tensor in and one out, got {len(given)} and {len(made)}"]
    (crops,), (embeddings,) = given, made
    found = []
    if crops.dtype != "UINT8" or len(crops.shape) != 4 or crops.shape[0] != -1 or crops.shape[3] != 3:
        found.append(f"expected UINT8 (-1, height, width, 3) in, got {crops.dtype} {crops.shape}")
    if embeddings.dtype != "FLOAT" or embeddings.shape != (-1, dim):
        found.append(f"expected FLOAT (-1, {dim}) out, got {embeddings.dtype} {embeddings.shape}")
    if crops.most != batches[-1]:
        found.append(f"expected batches of up to {batches[-1]}, it takes {crops.most}")
    return found


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What one batch size needs, ready.

    Attributes:
        crops: uint8 (size, height, width, 3), pinned: what `launch` reads.
        embeddings: float32 (size, dim), pinned: what it writes.
        launch: queues the copy in, the network and the copy out.
    """

    crops: Batch
    embeddings: NDArray[np.float32]
    launch: Callable[[], None]


class TensorRtSession:
    """A plan on the GPU it was built for, or not at all.

    A batch fills the smallest bucket that holds it; the rows behind it hold what they held, and no row looks at
    another. One CUDA graph for each bucket was captured before the session is returned.

    Attributes:
        engine: such as "fp16/tensorrt".
        max_batch: the largest bucket.
        lanes: 1, as there is one stream.

    Raises:
        DeviceError: the plan is of another GPU, driver or TensorRT; or one of them is missing.
        ArtifactError: the plan is damaged, or is not of the contract's graph.
    """

    def __init__(self, plan: bytes, facts: Plan, *, dim: int) -> None:
        _check_facts(facts)
        self.engine = f"{facts.precision}/tensorrt"
        self.max_batch = facts.batches[-1]
        self.lanes = 1
        self._stream = Stream()
        # Objects of CUDA are no memory that Python could count: they go when this does, at the latest at exit.
        self._closing = weakref.finalize(self, self._stream.close)
        try:
            self._buckets = _prepare(self._stream, plan, facts, dim=dim)
        except BaseException:
            self.close()
            raise
        self._shape = self._buckets[self.max_batch].crops.shape[1:]

    def __call__(self, batch: Batch, /) -> NDArray[np.float32]:
        """Compute a Batch (N, height, width, 3) to float32 (N, dim).

        Raises:
            EmbeddingError: the batch has another shape, or the GPU failed.
        """
        if not self._closing.alive:
            raise EmbeddingError("the session was closed")
        if batch.dtype != np.uint8 or batch.shape[1:] != self._shape:
            raise EmbeddingError(f"the plan takes uint8 (N, *{self._shape}), got {batch.dtype} {batch.shape}")
        starts = range(0, len(batch), self.max_batch)
        return np.concatenate([self._compute(batch[start : start + self.max_batch]) for start in starts])

    def close(self) -> None:
        """Let go of the GPU; no call may follow."""
        self._closing()

    def _compute(self, part: Batch) -> NDArray[np.float32]:
        bucket = self._buckets[choose_bucket(len(part), list(self._buckets))]
        bucket.crops[: len(part)] = part
        try:
            bucket.launch()
            self._stream.wait()
        except DeviceError as error:
            raise EmbeddingError(f"the engine failed on {len(part)} images: {error}") from error
        return bucket.embeddings[: len(part)].copy()


def _check_facts(facts: Plan) -> None:
    if fault := faulty_batches(facts.batches):
        raise ArtifactError(f"the plan of {facts.graph} is damaged: {fault}")
    if found := refusals(facts, find_platform()):
        raise DeviceError(
            f"the plan of {facts.graph} does not run here: {'; '.join(found)}. Build one here: "
            f"reid-export MODEL --tensorrt --precision {facts.precision}"
        )


def _prepare(stream: Stream, plan: bytes, facts: Plan, *, dim: int) -> dict[int, _Bucket]:
    """A bucket for each batch size, in their order, all of them warm."""
    logger, errors = _logger()
    runtime, engine = _deserialise(plan, facts, logger, errors)
    ports = _ports(engine)
    if found := foreign_ports(ports, batches=facts.batches, dim=dim):
        raise ArtifactError(f"the plan of {facts.graph} is not of this model: {'; '.join(found)}")
    # One for all contexts: no two of them work at once.
    size = engine.device_memory_size_v2
    workspace = stream.allocate(size)
    kept: list[object] = [logger, runtime, engine]
    stream.hold(kept)
    buckets = {}
    for batch in facts.batches:
        context = _context(engine, workspace, size)
        kept.append(context)
        buckets[batch] = _warm(stream, context, ports, batch=batch, dim=dim)
    return buckets


def _logger() -> tuple["trt.ILogger", list[str]]:
    """What TensorRT speaks to, and what it complained of."""
    import tensorrt as trt

    errors: list[str] = []

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(msg)

    return Listener(), errors


def _deserialise(
    plan: bytes, facts: Plan, logger: "trt.ILogger", errors: Sequence[str]
) -> tuple["trt.Runtime", "trt.ICudaEngine"]:
    import tensorrt as trt

    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    words = "; ".join(errors) or "it is damaged"
    return runtime, _obtained(engine, f"TensorRT does not take the plan of {facts.graph}: {words}")


def _ports(engine: "trt.ICudaEngine") -> list[Port]:
    import tensorrt as trt

    ports = []
    for place in range(engine.num_io_tensors):
        name = engine.get_tensor_name(place)
        given = bool(engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        most = engine.get_tensor_profile_shape(name, 0)[2][0] if given else None
        sizes = engine.get_tensor_shape(name)
        shape = tuple(sizes[axis] for axis in range(len(sizes)))
        ports.append(Port(name, given, engine.get_tensor_dtype(name).name, shape, most))
    return ports


def _context(engine: "trt.ICudaEngine", workspace: int, size: int) -> "trt.IExecutionContext":
    """A context of its own for each CUDA graph: another shape in the same one would spoil what was captured."""
    import tensorrt as trt

    made = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    context = _obtained(made, "TensorRT makes no execution context of the plan: is the GPU's memory full?")
    context.set_device_memory(workspace, size)
    return context


def _warm(stream: Stream, context: "trt.IExecutionContext", ports: Sequence[Port], *, batch: int, dim: int) -> _Bucket:
    given, made = sorted(ports, key=lambda port: not port.given)
    crops = stream.pin((batch, *given.shape[1:]), np.uint8)
    embeddings = stream.pin((batch, dim), np.float32)
    crops_there, embeddings_there = stream.allocate(crops.nbytes), stream.allocate(embeddings.nbytes)
    accepted = [
        context.set_input_shape(given.name, crops.shape),
        context.set_tensor_address(given.name, crops_there),
        context.set_tensor_address(made.name, embeddings_there),
    ]

    def queue() -> None:
        stream.upload(crops, crops_there)
        if not all([*accepted, context.execute_async_v3(stream.handle)]):
            raise ArtifactError(f"TensorRT does not run the plan on a batch of {batch}")
        stream.download(embeddings_there, embeddings)

    # The first run after a change of shape does what must not be captured.
    queue()
    stream.wait()
    return _Bucket(crops, embeddings, stream.record(queue))


def _obtained(value: _Thing | None, complaint: str) -> _Thing:
    # TensorRT gives None where it fails, of which its types say nothing.
    if value is None:
        raise ArtifactError(complaint)
    return value
