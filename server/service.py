"""The service: messages of reid.v1 to calls of the pipeline, and back. It decides nothing."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from reidserve.errors import NotServingError, QueryError
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.messages import hit_message, read_filter
from reidserve.server.pipeline import Answer, Pipeline, Stages
from reidserve.server.status import abort

SERVICE = reid_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
DEFAULT_TOP_K = 10

_QUIET_SECONDS = 0.2
_QUIET_TRIES = 10

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Request = TypeVar("_Request", bound=Message)


class SearchService:
    """`reid.v1.SearchService`.

    Attributes:
        pipeline: what answers; None while the server loads, and again when it drains.
    """

    def __init__(self) -> None:
        self.pipeline: Pipeline | None = None
        self._taken = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, *, grace: float) -> None:
        """Refuse new calls, wait for those under way, at most `grace` seconds, and then for quiet.

        A stopping gRPC server cuts off calls that its transport has taken and asyncio has not yet seen, so callers
        are refused in words until none comes for a moment.
        """
        self.pipeline = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        for _ in range(_QUIET_TRIES):
            before = self._taken
            await asyncio.sleep(_QUIET_SECONDS)
            if before == self._taken:
                break

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers to be added to a server.

        They take raw bytes and parse them themselves: a deserializer that raises would leak its error as UNKNOWN.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Search": self._handler(reid_pb2.SearchRequest, self._search),
                "Embed": self._handler(reid_pb2.EmbedRequest, self._embed),
            },
        )

    async def _search(self, request: reid_pb2.SearchRequest) -> reid_pb2.SearchResponse:
        pipeline = self._ready()
        gallery = request.gallery
        top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
        where = read_filter(request.filter) if request.HasField("filter") else None
        match request.WhichOneof("query"):
            case "image":
                answer = await pipeline.search_image(request.image, gallery=gallery, top_k=top_k, where=where)
            case "embedding":
                embedding = _read_embedding(request.embedding)
                answer = await pipeline.search_embedding(embedding, gallery=gallery, top_k=top_k, where=where)
            case "entry_id":
                answer = await pipeline.search_entry(request.entry_id, gallery=gallery, top_k=top_k, where=where)
            case _:
                raise QueryError("expected an image, an embedding or an entry_id to search for, got none")
        return _search_response(answer, pipeline)

    async def _embed(self, request: reid_pb2.EmbedRequest) -> reid_pb2.EmbedResponse:
        pipeline = self._ready()
        embedding, stages = await pipeline.embed(request.image)
        return reid_pb2.EmbedResponse(
            embedding=embedding.astype("<f4").tobytes(), model=_model(pipeline), timings=_timings(stages)
        )

    def _handler(
        self, request_type: type[_Request], method: Callable[[_Request], Awaitable[Message]]
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def call(raw: bytes, context: _Context) -> bytes:
            self._taken += 1
            self._under_way += 1
            self._idle.clear()
            try:
                reply = await method(request_type.FromString(raw))
                return reply.SerializeToString()
            except Exception as error:  # noqa: BLE001  # the table decides what leaves
                await abort(context, error)
            finally:
                self._under_way -= 1
                if not self._under_way:
                    self._idle.set()

        return grpc.unary_unary_rpc_method_handler(call)

    def _ready(self) -> Pipeline:
        if self.pipeline is None:
            raise NotServingError("the server is loading or draining: try again soon")
        return self.pipeline


def _read_embedding(raw: bytes) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if len(raw) % 4:
        raise QueryError(f"an embedding is little-endian float32, 4 bytes a number; got {len(raw)} bytes")
    return np.frombuffer(raw, "<f4")


def _search_response(answer: Answer, pipeline: Pipeline) -> reid_pb2.SearchResponse:
    return reid_pb2.SearchResponse(
        hits=map(hit_message, answer.hits),
        model=_model(pipeline),
        generation=answer.generation,
        timings=_timings(answer.stages),
    )


def _model(pipeline: Pipeline) -> reid_pb2.Model:
    return reid_pb2.Model(identity=pipeline.embedder.contract.identity, engine=pipeline.embedder.engine)


def _timings(stages: Stages) -> reid_pb2.Timings:
    return reid_pb2.Timings(
        total=_duration(stages.total),
        **{stage: _duration(seconds) for stage, seconds in stages.seconds.items()},
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
