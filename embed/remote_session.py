"""The remote session: a graph that another server computes. Nothing else speaks the Open Inference Protocol v2.

Triton, KServe and OpenVINO Model Server do. Only Triton tells a model's configuration, in which `reid-export --triton`
puts the contract and the canaries.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from reidserve.embed.artifact import decode_artifact
from reidserve.embed.canaries import Canaries
from reidserve.embed.contract import Contract, Precision
from reidserve.embed.images import Batch
from reidserve.embed.place import CANARIES_KEY, CONTRACT_KEY, PRECISION_KEY, ModelUrl
from reidserve.errors import ArtifactError, BackendUnavailableError, DeviceError, EmbeddingError
from reidserve.proto.inference import inference_pb2, inference_pb2_grpc

CALL_SECONDS = 10.0
"""How long a call may take: many times what a batch does, and a third of what a server calls a stuck engine."""

MAX_BATCH = 64
_USUAL_BATCH = 16  # of a server that does not tell its largest
_MOST_ANSWER = 32 * 2**20
_FIRST_RECONNECT_MILLISECONDS, _LONGEST_RECONNECT_MILLISECONDS = 200, 1_000

_AWAY = (
    *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED),
    *(grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND),
)
"""What a server answers, or gRPC in its place, that may answer otherwise in a while."""

_HINTS: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: " (does it run there, and is that the port of its gRPC?)",
    grpc.StatusCode.DEADLINE_EXCEEDED: f" (it has {CALL_SECONDS:g} s)",
}

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a model says of a tensor that it takes or gives.

    Attributes:
        name: what it is called there.
        datatype: such as "UINT8".
        shape: -1 where the size is free.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class RemoteModel:
    """A model of another server, and the connection to it."""

    def __init__(self, url: ModelUrl) -> None:
        self.url = url
        self._channel = grpc.insecure_channel(url.address, _options())
        self._stub = inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def read_artifact(self, precision: Precision) -> tuple[Contract, Canaries]:
        """The contract and the canaries that the model's configuration holds.

        Raises:
            ArtifactError: it holds none, or they do not read.
            DeviceError: its graph is of another precision.
            BackendUnavailableError: the server is away.
        """
        self.check_ready()
        parameters = self._config().parameters
        found = {key: parameters[key].string_value for key in (CONTRACT_KEY, CANARIES_KEY) if key in parameters}
        if len(found) < 2:
            raise ArtifactError(
                f"{self.url} does not tell its contract: write its model repository with reid-export MODEL --triton "
                f"REPOSITORY, or name the folder of its artifact here, '{self.url}?contract=FOLDER'"
            )
        self._check_precision(parameters, precision)
        return decode_artifact(found[CONTRACT_KEY].encode(), found[CANARIES_KEY].encode())

    def start(self, contract: Contract, precision: Precision) -> "RemoteSession":
        """A session of the model, which takes and gives what the contract promises.

        Raises:
            ArtifactError: it takes or gives something else.
            DeviceError: its graph is of another precision.
            BackendUnavailableError: the server is away.
        """
        self.check_ready()
        config = self._config()
        self._check_precision(config.parameters, precision)
        told = self._ask(self._stub.ModelMetadata, inference_pb2.ModelMetadataRequest(name=self.url.name))
        inputs = [Tensor(each.name, each.datatype, tuple(each.shape)) for each in told.inputs]
        outputs = [Tensor(each.name, each.datatype, tuple(each.shape)) for each in told.outputs]
        if faults := foreign_tensors(inputs, outputs, contract):
            raise ArtifactError(f"{self.url} is not of this contract: {'; '.join(faults)}")
        engine = f"{precision}/remote-{_plain(told.platform)}"
        largest = min(config.max_batch_size, MAX_BATCH) or _USUAL_BATCH
        return RemoteSession(self, inputs[0], outputs[0], engine=engine, max_batch=largest)

    def check_ready(self) -> None:
        """See that the model can be asked.

        Raises:
            BackendUnavailableError: it cannot, now.
        """
        if not self._ask(self._stub.ModelReady, inference_pb2.ModelReadyRequest(name=self.url.name)).ready:
            raise BackendUnavailableError(f"{self.url} is not ready: the server has no such model, or loads it still")

    def infer(self, request: inference_pb2.ModelInferRequest) -> inference_pb2.ModelInferResponse:
        """What the model computes.

        Raises:
            BackendUnavailableError: the server is away, or late.
            EmbeddingError: it refuses.
        """
        return self._ask(self._stub.ModelInfer, request)

    def _config(self) -> inference_pb2.ModelConfig:
        """The model's configuration; an empty one of a server that tells none."""
        request = inference_pb2.ModelConfigRequest(name=self.url.name)
        try:
            return self._ask(self._stub.ModelConfig, request).config
        except _UntoldError:
            return inference_pb2.ModelConfig()

    def _check_precision(self, parameters: Mapping[str, inference_pb2.ModelParameter], asked: Precision) -> None:
        if PRECISION_KEY in parameters and (found := parameters[PRECISION_KEY].string_value) != asked:
            raise DeviceError(f"{self.url} computes in {found}, {asked} was asked for: give --precision {found}")

    def _ask(self, call: Callable[..., _Answer], request: object) -> _Answer:
        try:
            return call(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def _failure(self, error: grpc.RpcError) -> BackendUnavailableError | EmbeddingError:
        code, said = error.code(), (error.details() or "").partition("\n")[0]
        # A message that is too long is so the next time too.
        if code in _AWAY and "larger than max" not in said:
            hint = _HINTS.get(code, "")
            return BackendUnavailableError(f"{self.url} does not answer: {said}{hint}")
        kind = _UntoldError if code is grpc.StatusCode.UNIMPLEMENTED else EmbeddingError
        return kind(f"{self.url} refuses with {code.name}: {said}")


class _UntoldError(EmbeddingError):
    """The server knows no such call."""


class RemoteSession:
    """A graph that another server computes.

    Attributes:
        engine: such as "fp32/remote-onnxruntime_onnx": what the server says it computes with.
        max_batch: the largest batch that the server takes, at most MAX_BATCH.
        lanes: 1, one call at a time.
    """

    def __init__(self, model: RemoteModel, given: Tensor, made: Tensor, *, engine: str, max_batch: int) -> None:
        self.engine = engine
        self.max_batch = max_batch
        self.lanes = 1
        self._model = model
        self._given = given
        self._made = made
        self._version: str | None = None

    def __call__(self, batch: Batch, /) -> NDArray[np.float32]:
        """Compute a Batch (N, height, width, 3) to float32 (N, dim).

        Raises:
            BackendUnavailableError: the server is away or late, or has another version of the model now.
            EmbeddingError: it refuses the batch, or answers with something else.
        """
        tensor = inference_pb2.ModelInferRequest.InferInputTensor(
            name=self._given.name, datatype=self._given.datatype, shape=batch.shape
        )
        wanted = inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name=self._made.name)
        answer = self._model.infer(
            inference_pb2.ModelInferRequest(
                model_name=self._model.url.name, inputs=[tensor], outputs=[wanted], raw_input_contents=[batch.tobytes()]
            )
        )
        self._check_version(answer.model_version)
        return _rows(answer, (len(batch), self._made.shape[1]))

    def check_ready(self) -> None:
        """See that the model can be asked.

        Raises:
            BackendUnavailableError: it cannot, now.
        """
        self._model.check_ready()

    def _check_version(self, version: str) -> None:
        """The first answer's is the one whose canaries were looked at."""
        if self._version is None:
            self._version = version
        elif version != self._version:
            raise BackendUnavailableError(
                f"{self._model.url} answers with version {version!r}, version {self._version!r} was checked"
            )


def foreign_tensors(inputs: Sequence[Tensor], outputs: Sequence[Tensor], contract: Contract) -> list[str]:
    """Why a model with these tensors is none of the contract's; empty where it may be."""
    if len(inputs) != 1 or len(outputs) != 1:
        return [f"expected one tensor in and one out, got {len(inputs)} and {len(outputs)}"]
    crops = ("UINT8", (-1, contract.height, contract.width, 3))
    embeddings = ("FP32", (-1, contract.dim))
    return [
        f"expected {expected[0]} {expected[1]} {way}, got {found.datatype} {found.shape}"
        for way, expected, found in (("in", crops, inputs[0]), ("out", embeddings, outputs[0]))
        if (found.datatype, found.shape) != expected
    ]


def _rows(answer: inference_pb2.ModelInferResponse, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The float32 rows of an answer, which has them raw or number by number."""
    if len(answer.outputs) != 1:
        raise EmbeddingError(f"expected one tensor of the server, got {len(answer.outputs)}")
    made = answer.outputs[0]
    if made.datatype != "FP32" or tuple(made.shape) != shape:
        raise EmbeddingError(f"expected FP32 {shape} of the server, got {made.datatype} {tuple(made.shape)}")
    if len(answer.raw_output_contents) == 1 and len(answer.raw_output_contents[0]) % 4 == 0:
        rows = np.frombuffer(answer.raw_output_contents[0], "<f4").astype(np.float32, copy=False)
    else:
        rows = np.array(made.contents.fp32_contents, np.float32)
    if rows.size != shape[0] * shape[1]:
        raise EmbeddingError(f"expected {shape[0] * shape[1]} numbers of the server, got {rows.size}")
    return rows.reshape(shape)


def _plain(platform: str) -> str:
    """A server's word for what computes, as it may stand in an engine's name."""
    return re.sub("[^a-z0-9_]+", "-", platform.lower()[:40]).strip("-") or "unknown"


def _options() -> Sequence[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", _MOST_ANSWER),
        ("grpc.max_send_message_length", -1),  # the server says what it takes
        # A server that was started again is found within a second; gRPC would wait for up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MILLISECONDS),
        ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MILLISECONDS),
        # Two models of one server have a connection each, so that one can be left.
        ("grpc.use_local_subchannel_pool", 1),
        # What http_proxy names is for other protocols.
        ("grpc.enable_http_proxy", 0),
    ]
