"""The client: a Python face of reid.v1 that needs no ML package."""

import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from reidserve.client.filters import Attribute, Filter, filter_message, read_attributes, read_time
from reidserve.errors import QueryError, RequestError
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.proto.reid.v1.reid_pb2_grpc import SearchServiceStub

DEFAULT_TARGET = "127.0.0.1:50051"
_MAX_MESSAGE = 32 * 2**20

Image = bytes | str | PathLike[str]
"""Encoded bytes, or the path of an image file."""

_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry of the gallery that was found.

    Attributes:
        entry_id: its id in the gallery.
        pid: the identity; None where unknown.
        camid: the camera; None where unknown.
        score: cosine of query and entry, -1 to 1, higher is better.
        rank: 1 for the best.
        timestamp: when it was taken, in UTC; None where unknown.
        attributes: what else is known of it, by name.
    """

    entry_id: str
    pid: str | None
    camid: str | None
    score: float
    rank: int
    timestamp: datetime | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A ranking and what it was computed from.

    Attributes:
        hits: best first.
        model: identity of the server's model.
        engine: what computed it, such as "fp32/onnxruntime-cpu".
        generation: the state of the gallery that was searched.
        timings: seconds by stage (decode, embed, search, total); a stage that was not needed is absent.
    """

    hits: Sequence[Hit]
    model: str
    engine: str
    generation: int
    timings: Mapping[str, float]


class Client:
    """A connection to a reidserve server; close it, or use it in a `with` block. Safe from any thread.

    Every method raises RequestError, with the server's reason, where a call fails, QueryError where the query cannot
    even be sent, and OSError where an image file cannot be read.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, timeout: float = 30.0) -> None:
        """Connect to `target`, host:port; a call may take `timeout` seconds.

        Raises:
            QueryError: `target` is no such thing.
        """
        self._target = target
        self._timeout = timeout
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", -1)]
        if not target.isascii():
            raise QueryError(f"a server is host:port, got {target!r}")
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = SearchServiceStub(self._channel)

    def search(self, image: Image, top_k: int = 10, *, gallery: str = "", where: Filter | None = None) -> SearchResult:
        """The `top_k` entries most like an image, of those that `where` lets through."""
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        return self._search(_request(top_k, where, image=data, gallery=gallery))

    def search_embedding(
        self, embedding: Sequence[float], top_k: int = 10, *, gallery: str = "", where: Filter | None = None
    ) -> SearchResult:
        """The `top_k` entries most like an embedding of the server's own model, of unit length."""
        raw = _little_endian(array("f", embedding)).tobytes()
        return self._search(_request(top_k, where, embedding=raw, gallery=gallery))

    def search_entry(
        self, entry_id: str, top_k: int = 10, *, gallery: str = "", where: Filter | None = None
    ) -> SearchResult:
        """The `top_k` entries most like an entry of the gallery, itself left out."""
        return self._search(_request(top_k, where, entry_id=entry_id, gallery=gallery))

    def embed(self, image: Image) -> "array[float]":
        """An image's embedding, float32 of unit length."""
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        response = self._call(lambda: self._stub.Embed(reid_pb2.EmbedRequest(image=data), timeout=self._timeout))
        return _little_endian(array("f", response.embedding))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _search(self, request: reid_pb2.SearchRequest) -> SearchResult:
        response = self._call(lambda: self._stub.Search(request, timeout=self._timeout))
        hits = [
            Hit(
                entry_id=hit.entry_id,
                pid=hit.pid if hit.HasField("pid") else None,
                camid=hit.camid if hit.HasField("camid") else None,
                score=hit.score,
                rank=hit.rank,
                timestamp=read_time(hit.timestamp) if hit.HasField("timestamp") else None,
                attributes=read_attributes(hit.attributes),
            )
            for hit in response.hits
        ]
        timings = {stage.name: value.ToNanoseconds() / 1e9 for stage, value in response.timings.ListFields()}
        return SearchResult(hits, response.model.identity, response.model.engine, response.generation, timings)

    def _call(self, call: Callable[[], _Response]) -> _Response:
        try:
            return call()
        except grpc.RpcError as error:
            raise _request_error(error, self._target) from error


def _request(
    top_k: int,
    where: Filter | None,
    **fields: Any,  # noqa: ANN401  # the message checks them
) -> reid_pb2.SearchRequest:
    said = None if where is None else filter_message(where)
    try:
        return reid_pb2.SearchRequest(top_k=top_k, filter=said, **fields)
    except ValueError as error:  # a number of more than 32 bits, a text that is not Unicode
        raise QueryError(f"the query does not fit the protocol: {error}") from error


def _request_error(error: grpc.RpcError, target: str) -> RequestError:
    code, message = error.code(), error.details() or ""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details were cut on the way
        status = None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return RequestError(message, code=code.name, reason=info.reason)
    hint = " (is reid-serve running there?)" if code is grpc.StatusCode.UNAVAILABLE else ""
    return RequestError(f"{target}: {message}{hint}", code=code.name, reason=code.name)


def _little_endian(numbers: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
