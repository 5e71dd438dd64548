"""The client for asyncio: every call of Client, to be awaited."""

import asyncio
import concurrent.futures
from array import array
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from reidserve.client import asks
from reidserve.client.asks import Ask
from reidserve.client.client import IMPORT_SECONDS, NOTHING, Client
from reidserve.client.connection import DEFAULT_TARGET, MAX_MESSAGE, Connection, Tls
from reidserve.client.filters import Attribute, Filter
from reidserve.client.galleries import Deleted, Entry, Gallery, Image, Imported, NewEntry, Snapshot, Updated, Written
from reidserve.client.models import ModelFacts, Reloaded
from reidserve.client.refusals import call_refusal
from reidserve.client.results import Ranked, SearchResult
from reidserve.client.retries import Attempts, Budget
from reidserve.client.searches import Search, SearchOptions
from reidserve.errors import RequestError

_Result = TypeVar("_Result")


class AsyncClient:
    """A connection to a reidserve server, of the event loop in which it is made; use it in an `async with` block.

    Its methods are Client's. Image files are read on the event loop: give their bytes where the disk is slow.
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
            grpc.aio.insecure_channel(target, options=connection.options)
            if tls is None
            else grpc.aio.secure_channel(target, tls.credentials(), options=connection.options)
        )

    async def search(
        self, image: Image, top_k: int = 10, *, timeout: float | None = None, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        """The `top_k` entries most like an image; a Search says what the options mean."""
        return await self._ask(asks.search(Search(image=image, top_k=top_k, **options)), timeout)

    async def search_track(
        self,
        images: Sequence[Image],
        top_k: int = 10,
        *,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `top_k` entries most like the target of several images, such as a tracker gives them."""
        return await self._ask(asks.search(Search(track=images, top_k=top_k, **options)), timeout)

    async def search_embedding(
        self,
        embedding: Sequence[float],
        top_k: int = 10,
        *,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The `top_k` entries most like an embedding of the server's own model, of unit length."""
        return await self._ask(asks.search(Search(embedding=embedding, top_k=top_k, **options)), timeout)

    async def search_entry(
        self, entry_id: str, top_k: int = 10, *, timeout: float | None = None, **options: Unpack[SearchOptions]
    ) -> SearchResult:
        """The `top_k` entries most like an entry of the gallery, itself left out."""
        return await self._ask(asks.search(Search(entry_id=entry_id, top_k=top_k, **options)), timeout)

    async def batch_search(
        self, searches: Iterable[Search], *, timeout: float | None = None
    ) -> list[SearchResult | RequestError]:
        """Several searches, answered together; what failed of them is an error in its place."""
        return await self._ask(asks.batch_search(searches), timeout)

    async def rank(
        self,
        image: Image,
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        timeout: float | None = None,
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an image; a gallery whose index may miss one refuses."""
        return await self._ask(asks.rank(image=image, gallery=gallery, where=where, generation=generation), timeout)

    async def rank_embedding(
        self,
        embedding: Sequence[float],
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        timeout: float | None = None,
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an embedding of the server's own model, of unit length."""
        return await self._ask(
            asks.rank(embedding=embedding, gallery=gallery, where=where, generation=generation), timeout
        )

    async def rank_entry(
        self,
        entry_id: str,
        *,
        gallery: str = "",
        where: Filter | None = None,
        generation: int | None = None,
        timeout: float | None = None,
    ) -> Ranked:
        """Every entry that `where` lets through, ranked by an entry of the gallery, itself left out."""
        return await self._ask(
            asks.rank(entry_id=entry_id, gallery=gallery, where=where, generation=generation), timeout
        )

    async def embed(self, image: Image, *, timeout: float | None = None) -> "array[float]":
        """An image's embedding, float32 of unit length."""
        return await self._ask(asks.embed(image), timeout)

    async def gallery(self, name: str = "", *, generation: int | None = None, timeout: float | None = None) -> Gallery:
        """What is known of a gallery as a whole; the state of a `generation` that is named is kept for a minute."""
        return await self._ask(asks.gallery(name, generation), timeout)

    async def galleries(self, *, timeout: float | None = None) -> list[Gallery]:
        """Every gallery of the server that the key may search, by name."""
        return await self._ask(asks.galleries(), timeout)

    async def entry(
        self,
        entry_id: str,
        *,
        gallery: str = "",
        generation: int | None = None,
        with_embedding: bool = False,
        timeout: float | None = None,
    ) -> Entry:
        """One entry, with its embedding where that is asked for."""
        return await self._ask(
            asks.entry(entry_id, gallery=gallery, generation=generation, with_embedding=with_embedding), timeout
        )

    async def entries(
        self, gallery: str = "", *, generation: int | None = None, timeout: float | None = None
    ) -> AsyncIterator[Entry]:
        """The entries of a gallery in row order, all of one state, which is kept for a minute after each page."""
        token = ""
        while True:
            page = await self._ask(asks.entries(gallery, generation, token), timeout)
            for entry in page.entries:
                yield entry
            token, generation = page.token, page.generation
            if not token:
                return

    async def upsert(
        self, entries: Iterable[NewEntry], *, gallery: str = "", request_id: str = "", timeout: float | None = None
    ) -> Written:
        """Write 1 to 256 entries by their ids, all or none; answered when they are on the disk and can be found."""
        return await self._ask(asks.upsert(entries, gallery=gallery, request_id=request_id), timeout)

    async def delete(
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
        return await self._ask(asks.delete(ids, where, erase=erase, gallery=gallery, request_id=request_id), timeout)

    async def update(
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
        return await self._ask(
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

    async def import_entries(
        self,
        entries: Iterable[NewEntry] | AsyncIterable[NewEntry],
        *,
        gallery: str = "",
        progress: Callable[[int], object] | None = None,
        timeout: float = IMPORT_SECONDS,
    ) -> Imported:
        """Write any number of entries, in pieces; `progress` is told how many are done, as they are acknowledged.

        It has a connection and threads of its own: the asyncio side of gRPC may lose what a server says when it ends a
        stream that is written to (grpc/grpc#36066). Else it is as Client's.
        """
        loop, known = asyncio.get_running_loop(), self._connection

        async def tell(count: int) -> None:
            if progress is not None:
                progress(count)

        taken = _Taken(entries, loop) if isinstance(entries, AsyncIterable) else entries
        client = Client(
            known.target,
            key=known.key or "",
            tls=known.tls,
            retries=self._retries,
            max_message=known.max_message,
        )
        try:
            return await asyncio.to_thread(
                client.import_entries,
                taken,
                gallery=gallery,
                progress=lambda count: asyncio.run_coroutine_threadsafe(tell(count), loop).result(),
                timeout=timeout,
            )
        finally:
            client.close()
            if isinstance(taken, _Taken):
                taken.cancel()

    async def snapshot(self, gallery: str = "", name: str = "", *, timeout: float | None = None) -> Snapshot:
        """Write a copy of a gallery into the server's folder for snapshots."""
        return await self._ask(asks.snapshot(gallery, name), timeout)

    async def model(self, *, timeout: float | None = None) -> ModelFacts:
        """The model that serves, and what is known of it."""
        return await self._ask(asks.model(), timeout)

    async def reload(
        self, model: str = "", galleries: Mapping[str, str] = NOTHING, *, timeout: float | None = None
    ) -> Reloaded:
        """Serve another model, and galleries that were rebuilt for it; a failure changes nothing.

        Both are folders below the server's own; without a `model` the one that it was started with is read again.
        """
        return await self._ask(asks.reload(model, galleries), timeout)

    async def close(self) -> None:
        """Close the connection; calls under way end."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, ask: Ask[_Result], timeout: float | None) -> _Result:
        timeout = self._timeout if timeout is None else timeout
        attempts = Attempts(timeout, retries=self._retries if ask.again else 0, budget=self._budget)
        while True:
            try:
                answer = await self._send(ask, attempts.left())
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.pause(call_refusal(error, self._connection.target)))
            else:
                attempts.answered()
                return ask.read(answer)

    async def _send(self, ask: Ask[Any], timeout: float) -> Any:  # noqa: ANN401  # what the ask reads
        channel, write, read = self._channel, type(ask.request).SerializeToString, ask.response.FromString
        options: Any = {"timeout": timeout, "metadata": self._connection.metadata}
        if ask.stream:
            return [message async for message in channel.unary_stream(ask.method, write, read)(ask.request, **options)]
        return await channel.unary_unary(ask.method, write, read)(ask.request, **options)


class _Taken:
    """Takes from an asynchronous iterable on another thread than the event loop's."""

    def __init__(self, entries: AsyncIterable[NewEntry], loop: asyncio.AbstractEventLoop) -> None:
        self._entries = aiter(entries)
        self._loop = loop
        self._taking: concurrent.futures.Future[NewEntry | None] | None = None

    def __iter__(self) -> Iterator[NewEntry]:
        return self

    def __next__(self) -> NewEntry:
        self._taking = asyncio.run_coroutine_threadsafe(self._take(), self._loop)
        entry = self._taking.result()
        if entry is None:
            raise StopIteration
        return entry

    def cancel(self) -> None:
        """Stop waiting for the next one."""
        if self._taking is not None:
            self._taking.cancel()

    async def _take(self) -> NewEntry | None:
        return await anext(self._entries, None)
