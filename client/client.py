"""The client: a Python face of reid.v1 that needs no ML package."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from reidserve.client.filters import Filter, filter_message
from reidserve.client.results import (
    Entry,
    Gallery,
    Ranked,
    SearchResult,
    read_entry,
    read_gallery,
    read_little_endian,
    read_ranked,
    read_search,
)
from reidserve.errors import QueryError, RequestError
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.proto.reid.v1.reid_pb2_grpc import GalleryServiceStub, SearchServiceStub

DEFAULT_TARGET = "127.0.0.1:50051"
_MAX_MESSAGE = 32 * 2**20

Image = bytes | str | PathLike[str]
"""Encoded bytes, or the path of an image file."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Rerank:
    """How the best hits are ordered again: k-reciprocal encoding (Zhong et al., 2017). The server checks its bounds.

    Attributes:
        k1: neighbours of an image that may have it among theirs, 1 to 1,000.
        k2: nearest images whose encodings are averaged, 1 to 1,000.
        weight: the share of the plain distance in the final one, 0 to 1.
        shortlist: how many hits are ordered again, top_k to 1,000.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3
    shortlist: int = 100


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
        self._galleries = GalleryServiceStub(self._channel)

    def search(
        self,
        image: Image,
        top_k: int = 10,
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        rerank: Rerank | None = None,
        min_score: float | None = None,
    ) -> SearchResult:
        """The `top_k` entries most like an image, of those that `where` lets through.

        Of a `generation` other than the newest, it is answered while the server keeps it. `rerank` orders the best
        hits again; hits below `min_score` are left out.
        """
        return self._search(
            image=_encoded(image),
            top_k=top_k,
            gallery=gallery,
            where=where,
            generation=generation,
            rerank=rerank,
            min_score=min_score,
        )

    def search_embedding(
        self,
        embedding: Sequence[float],
        top_k: int = 10,
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        rerank: Rerank | None = None,
        min_score: float | None = None,
    ) -> SearchResult:
        """The `top_k` entries most like an embedding of the server's own model, of unit length."""
        return self._search(
            embedding=_raw(embedding),
            top_k=top_k,
            gallery=gallery,
            where=where,
            generation=generation,
            rerank=rerank,
            min_score=min_score,
        )

    def search_entry(
        self,
        entry_id: str,
        top_k: int = 10,
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        rerank: Rerank | None = None,
        min_score: float | None = None,
    ) -> SearchResult:
        """The `top_k` entries most like an entry of the gallery, itself left out."""
        return self._search(
            entry_id=entry_id,
            top_k=top_k,
            gallery=gallery,
            where=where,
            generation=generation,
            rerank=rerank,
            min_score=min_score,
        )

    def rank(
        self, image: Image, *, gallery: str = "", where: Filter | None = None, generation: int | None = None
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an image; a gallery whose index may miss one refuses."""
        return self._rank(image=_encoded(image), gallery=gallery, where=where, generation=generation)

    def rank_embedding(
        self,
        embedding: Sequence[float],
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an embedding of the server's own model, of unit length."""
        return self._rank(embedding=_raw(embedding), gallery=gallery, where=where, generation=generation)

    def rank_entry(
        self, entry_id: str, *, gallery: str = "", where: Filter | None = None, generation: int | None = None
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an entry of the gallery, itself left out."""
        return self._rank(entry_id=entry_id, gallery=gallery, where=where, generation=generation)

    def gallery(self, name: str = "", *, generation: int | None = None) -> Gallery:
        """What is known of a gallery as a whole; the state of a `generation` that is named is kept for a minute."""
        request = _message(reid_pb2.GetGalleryRequest, gallery=name, generation=generation)
        response = self._call(lambda: self._galleries.GetGallery(request, timeout=self._timeout))
        return read_gallery(response.gallery)

    def entries(self, gallery: str = "", *, generation: int | None = None) -> Iterator[Entry]:
        """The entries of a gallery in row order, all of one state, which is kept for a minute after each page."""
        token = ""
        while True:
            request = _message(reid_pb2.ListEntriesRequest, gallery=gallery, generation=generation, page_token=token)
            response = self._list(request)
            yield from map(read_entry, response.entries)
            token, generation = response.next_page_token, response.generation
            if not token:
                return

    def embed(self, image: Image) -> "array[float]":
        """An image's embedding, float32 of unit length."""
        request = reid_pb2.EmbedRequest(image=_encoded(image))
        response = self._call(lambda: self._stub.Embed(request, timeout=self._timeout))
        embedding = array("f", response.embedding)
        read_little_endian(embedding)
        return embedding

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _search(self, *, where: Filter | None, rerank: Rerank | None, **fields: Any) -> SearchResult:  # noqa: ANN401
        again = None if rerank is None else _message(reid_pb2.Rerank, **asdict(rerank))
        request = _message(reid_pb2.SearchRequest, filter=_said(where), rerank=again, **fields)
        return read_search(self._call(lambda: self._stub.Search(request, timeout=self._timeout)))

    def _rank(self, *, where: Filter | None, **fields: Any) -> Ranked:  # noqa: ANN401  # the message checks them
        request = _message(reid_pb2.RankRequest, filter=_said(where), **fields)
        return self._call(lambda: read_ranked(self._stub.Rank(request, timeout=self._timeout)))

    def _list(self, request: reid_pb2.ListEntriesRequest) -> reid_pb2.ListEntriesResponse:
        return self._call(lambda: self._galleries.ListEntries(request, timeout=self._timeout))

    def _call(self, call: Callable[[], _Response]) -> _Response:
        try:
            return call()
        except grpc.RpcError as error:
            raise _request_error(error, self._target) from error


def _encoded(image: Image) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _raw(embedding: Sequence[float]) -> bytes:
    numbers = array("f", embedding)
    read_little_endian(numbers)
    return numbers.tobytes()


def _said(where: Filter | None) -> reid_pb2.Filter | None:
    return None if where is None else filter_message(where)


def _message(kind: Callable[..., _Request], **fields: Any) -> _Request:  # noqa: ANN401  # the message checks them
    try:
        return kind(**fields)
    except ValueError as error:  # a number of more bits than it may have, a text that is not Unicode
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
