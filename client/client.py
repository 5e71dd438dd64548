"""The client: a Python face of reid.v1 that needs no ML package."""

import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from reidserve.client import asks
from reidserve.client.asks import Ask
from reidserve.client.connection import DEFAULT_TARGET, MAX_MESSAGE, Connection, Tls
from reidserve.client.filters import Attribute, Filter
from reidserve.client.galleries import Deleted, Entry, Gallery, Image, Imported, NewEntry, Snapshot, Updated, Written
from reidserve.client.importing import Import
from reidserve.client.models import ModelFacts, Reloaded
from reidserve.client.refusals import call_refusal
from reidserve.client.results import Ranked, SearchResult
from reidserve.client.retries import Attempts, Budget, Resuming
from reidserve.client.searches import Search, SearchOptions
from reidserve.errors import RequestError
from reidserve.proto.reid.v1 import reid_pb2

IMPORT_SECONDS = 300.0

NOTHING: Mapping[str, Any] = {}

_Result = TypeVar("_Result")


class Client:
    """A connection to a reidserve server; close it, or use it in a `with` block. Safe from any thread.

    Every method raises RequestError, with the server's reason, where a call fails, QueryError where the query cannot
    even be sent, and OSError where an image file cannot be read. What the server is too busy for, or cannot be reached
    for, is asked again where asking twice does no harm: up to `retries` times, later each time, never beyond the call's
    `timeout`, and as the budget of the client's calls allows. A write carries a request id, so that it is done once.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        key: str | None = None,
        tls: Tls | None = None,
        retries: int = 5,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        """Connect to `target`, host:port; a call may take `timeout` seconds, its retries included.

        `key` is shown to the server, or what REIDSERVE_KEY says; it travels over TLS or within this machine only.

        Raises:
            QueryError: no such target or key can be, or the key would travel in clear.
            OSError: a file of `tls` cannot be read.
        """
        connection = Connection(target, key, tls, max_message)
        self._connection = connection
        self._timeout = timeout
        self._retries = retries
        self._budget = Budget()
        self._channel = (
            grpc.insecure_channel(target, options=connection.options)
            if tls is None
            else grpc.secure_channel(target, tls.credentials(), options=connection.options)
        )

    def search(
        self, image: Image, top_k: int = 10, *, timeout: float | None = None, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        """The `top_k` entries most like an image; a Search says what the options mean."""
        return self._ask(asks.search(Search(image=image, top_k=top_k, **options)), timeout)

    def search_track(
        self,
        images: Sequence[Image],
        top_k: int = 10,
        *,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `top_k` entries most like the target of several images, such as a tracker gives them."""
        return self._ask(asks.search(Search(track=images, top_k=top_k, **options)), timeout)

    def search_embedding(
        self,
        embedding: Sequence[float],
        top_k: int = 10,
        *,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `top_k` entries most like an embedding of the server's own model, of unit length."""
        return self._ask(asks.search(Search(embedding=embedding, top_k=top_k, **options)), timeout)

    def search_entry(
        self, entry_id: str, top_k: int = 10, *, timeout: float | None = None, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        """The `top_k` entries most like an entry of the gallery, itself left out."""
        return self._ask(asks.search(Search(entry_id=entry_id, top_k=top_k, **options)), timeout)

    def batch_search(
        self, searches: Iterable[Search], *, timeout: float | None = None
    ) -> list[SearchResult | RequestError]:
        """Several searches, answered together; what failed of them is an error in its place."""
        return self._ask(asks.batch_search(searches), timeout)

    def rank(
        self,
        image: Image,
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        timeout: float | None = None,
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an image; a gallery whose index may miss one refuses."""
        return self._ask(asks.rank(image=image, gallery=gallery, where=where, generation=generation), timeout)

    def rank_embedding(
        self,
        embedding: Sequence[float],
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        timeout: float | None = None,
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an embedding of the server's own model, of unit length."""
        return self._ask(asks.rank(embedding=embedding, gallery=gallery, where=where, generation=generation), timeout)

    def rank_entry(
        self,
        entry_id: str,
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        timeout: float | None = None,
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an entry of the gallery, itself left out."""
        return self._ask(asks.rank(entry_id=entry_id, gallery=gallery, where=where, generation=generation), timeout)

    def embed(self, image: Image, *, timeout: float | None = None) -> "array[float]":
        """An image's embedding, float32 of unit length."""
        return self._ask(asks.embed(image), timeout)

    def gallery(self, name: str = "", *, generation: int | None = None, timeout: float | None = None) -> Gallery:
        """What is known of a gallery as a whole; the state of a `generation` that is named is kept for a minute."""
        return self._ask(asks.gallery(name, generation), timeout)

    def galleries(self, *, timeout: float | None = None) -> list[Gallery]:
        """Every gallery of the server that the key may search, by name."""
        return self._ask(asks.galleries(), timeout)

    def entry(
        self,
        entry_id: str,
        *,
        gallery: str = "",
        generation: int | None = None,
        with_embedding: bool = False,
        timeout: float | None = None,
    ) -> Entry:
        """One entry, with its embedding where that is asked for."""
        return self._ask(
            asks.entry(entry_id, gallery=gallery, generation=generation, with_embedding=with_embedding), timeout
        )

    def entries(
        self, gallery: str = "", *, generation: int | None = None, timeout: float | None = None
    ) -> Iterator[Entry]:
        """The entries of a gallery in row order, all of one state, which is kept for a minute after each page."""
        token = ""
        while True:
            page = self._ask(asks.entries(gallery, generation, token), timeout)
            yield from page.entries
            token, generation = page.token, page.generation
            if not token:
                return

    def upsert(
        self, entries: Iterable[NewEntry], *, gallery: str = "", request_id: str = "", timeout: float | None = None
    ) -> Written:
        """Write 1 to 256 entries by their ids, all or none; answered when they are on the disk and can be found."""
        return self._ask(asks.upsert(entries, gallery=gallery, request_id=request_id), timeout)

    def delete(
        self,
        ids: Collection[str] = (),
        *,
        where: Filter | None = None,
        erase: bool = False,
        gallery: str = "",
        request_id: str = "",
        timeout: float | None = None,
    ) -> Deleted:
        """Remove the entries of these ids, or all that `where` accepts; an id that is not there is no error.

        With `erase` it is answered when no byte of them is left in the gallery's files either.
        """
        return self._ask(asks.delete(ids, where, erase=erase, gallery=gallery, request_id=request_id), timeout)

    def update(
        self,
        entry_id: str,
        *,
        pid: str | None = None,
        camid: str | None = None,
        timestamp: datetime | None = None,
        source: str | None = None,
        attributes: Mapping[str, Attribute] = NOTHING,
        forget: Collection[str] = (),
        gallery: str = "",
        request_id: str = "",
        timeout: float | None = None,
    ) -> Updated:
        """Say something else of an entry, attribute by attribute; its embedding stays.

        `forget` names what is known no more: pid, camid, timestamp, source, attributes, or attributes.NAME for one.
        """
        return self._ask(
            asks.update(
                entry_id,
                pid=pid,
                camid=camid,
                timestamp=timestamp,
                source=source,
                attributes=attributes,
                forget=forget,
                gallery=gallery,
                request_id=request_id,
            ),
            timeout,
        )

    def import_entries(
        self,
        entries: Iterable[NewEntry],
        *,
        gallery: str = "",
        progress: Callable[[int], object] | None = None,
        timeout: float = IMPORT_SECONDS,
    ) -> Imported:
        """Write any number of entries, in pieces; `progress` is told how many are done, as they are acknowledged.

        The entries are taken on another thread. What cannot be written is left out, and named in the result. A stream
        that breaks is begun again behind the last acknowledged entry, until nothing was acknowledged for `timeout`
        seconds; before the first acknowledgement `retries` times, as other calls.
        """
        importing = Import(entries, gallery)
        resuming = Resuming(timeout, retries=self._retries)
        while True:
            try:
                self._import_some(importing, resuming, timeout, progress)
            except RequestError as failure:
                if not importing.finished:
                    time.sleep(resuming.pause(failure))
                    continue
            return importing.result()

    def snapshot(self, gallery: str = "", name: str = "", *, timeout: float | None = None) -> Snapshot:
        """Write a copy of a gallery into the server's folder for snapshots."""
        return self._ask(asks.snapshot(gallery, name), timeout)

    def model(self, *, timeout: float | None = None) -> ModelFacts:
        """The model that serves, and what is known of it."""
        return self._ask(asks.model(), timeout)

    def reload(
        self, model: str = "", galleries: Mapping[str, str] = NOTHING, *, timeout: float | None = None
    ) -> Reloaded:
        """Serve another model, and galleries that were rebuilt for it; a failure changes nothing.

        Both are folders below the server's own; without a `model` the one that it was started with is read again.
        """
        return self._ask(asks.reload(model, galleries), timeout)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, ask: Ask[_Result], timeout: float | None) -> _Result:
        timeout = self._timeout if timeout is None else timeout
        attempts = Attempts(timeout, retries=self._retries if ask.again else 0, budget=self._budget)
        while True:
            try:
                answer = self._send(ask, attempts.left())
            except grpc.RpcError as error:
                time.sleep(attempts.pause(call_refusal(error, self._connection.target)))
            else:
                attempts.answered()
                return ask.read(answer)

    def _send(self, ask: Ask[Any], timeout: float) -> Any:  # noqa: ANN401  # what the ask reads
        channel, write, read = self._channel, type(ask.request).SerializeToString, ask.response.FromString
        metadata = self._connection.metadata
        if ask.stream:
            return list(channel.unary_stream(ask.method, write, read)(ask.request, timeout, metadata))
        return channel.unary_unary(ask.method, write, read)(ask.request, timeout, metadata)

    def _import_some(
        self,
        importing: Import,
        resuming: Resuming,
        timeout: float,
        progress: Callable[[int], object] | None,
    ) -> None:
        """Send and take acknowledgements for as long as one stream goes."""
        write, read = reid_pb2.ImportEntriesRequest.SerializeToString, reid_pb2.ImportEntriesResponse.FromString
        stream = self._channel.stream_stream(asks.IMPORT, write, read)
        call = stream(importing.requests(), timeout, self._connection.metadata)
        try:
            for response in call:
                importing.take(response)
                resuming.acknowledged()
                if progress is not None:
                    progress(importing.acknowledged)
            importing.check_whole()
        except grpc.RpcError as error:
            raise call_refusal(error, self._connection.target) from error
        finally:
            call.cancel()
