"""Writing: the calls that change galleries, as messages, and what they change as values. They decide nothing."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf.message import Message

from reidserve.errors import EntryError, QueryError, ReadOnlyError, ReidError
from reidserve.index import Filter
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Call, Scope
from reidserve.server.deployment import Served
from reidserve.server.wire.entries import MAX_ID, read_change, read_new_entry
from reidserve.server.wire.messages import entry_message, read_filter
from reidserve.server.wire.methods import GALLERY_SERVICE, Kind, Method
from reidserve.server.wire.status import refusal_of
from reidserve.server.writes.entries import NewEntry, Numbered
from reidserve.server.writes.writer import Writer

MAX_ENTRIES = 256
MAX_DELETED = 10_000
MAX_REQUEST_ID = 128

_Response = TypeVar("_Response", bound=Message)
_Write = (
    reid_pb2.BatchUpsertEntriesRequest
    | reid_pb2.BatchDeleteEntriesRequest
    | reid_pb2.UpdateEntryRequest
    | reid_pb2.CreateSnapshotRequest
    | reid_pb2.ImportEntriesRequest
)
_Retried = reid_pb2.BatchUpsertEntriesRequest | reid_pb2.BatchDeleteEntriesRequest | reid_pb2.UpdateEntryRequest


async def _upsert(
    served: Served, request: reid_pb2.BatchUpsertEntriesRequest, call: Call
) -> reid_pb2.BatchUpsertEntriesResponse:
    writer = _writer(served, request, call)

    async def write() -> reid_pb2.BatchUpsertEntriesResponse:
        if not 1 <= len(request.entries) <= MAX_ENTRIES:
            raise QueryError(f"1 to {MAX_ENTRIES} entries are written together, got {len(request.entries)}")
        written = await writer.upsert([read_new_entry(entry) for entry in request.entries], call)
        return reid_pb2.BatchUpsertEntriesResponse(generation=written.generation, written=written.changed)

    return await _once(writer, request, call, reid_pb2.BatchUpsertEntriesResponse, write)


async def _delete(
    served: Served, request: reid_pb2.BatchDeleteEntriesRequest, call: Call
) -> reid_pb2.BatchDeleteEntriesResponse:
    writer = _writer(served, request, call)

    async def write() -> reid_pb2.BatchDeleteEntriesResponse:
        if bool(request.entry_ids) == request.HasField("filter"):
            raise QueryError("entries are deleted by entry_ids or by a filter: give one of them")
        if len(request.entry_ids) > MAX_DELETED:
            raise QueryError(f"up to {MAX_DELETED:,} ids are deleted together, got {len(request.entry_ids):,}")
        if request.HasField("filter"):
            where = read_filter(request.filter)
            if where == Filter():
                raise QueryError("a filter that says nothing would delete the whole gallery: say what to delete")
            written = await writer.delete(None, call, where=where)
        else:
            written = await writer.delete(request.entry_ids, call)
        if request.erase:
            await writer.erase(call)
        return reid_pb2.BatchDeleteEntriesResponse(generation=written.generation, deleted=written.changed)

    return await _once(writer, request, call, reid_pb2.BatchDeleteEntriesResponse, write)


async def _update(served: Served, request: reid_pb2.UpdateEntryRequest, call: Call) -> reid_pb2.UpdateEntryResponse:
    writer = _writer(served, request, call)

    async def write() -> reid_pb2.UpdateEntryResponse:
        updated = await writer.update(read_change(request), call)
        return reid_pb2.UpdateEntryResponse(
            entry=entry_message(updated.row, updated.entry), generation=updated.generation
        )

    return await _once(writer, request, call, reid_pb2.UpdateEntryResponse, write)


async def _import(
    served: Served, requests: AsyncIterator[reid_pb2.ImportEntriesRequest], call: Call
) -> AsyncGenerator[reid_pb2.ImportEntriesResponse]:
    first = await anext(requests, None)
    if first is None:
        return
    writer = _writer(served, first, call)
    async with aclosing(writer.import_(_numbered(first, requests), call)) as pieces:
        async for piece in pieces:
            yield reid_pb2.ImportEntriesResponse(
                acknowledged_sequence=piece.sequence,
                generation=piece.generation,
                written=piece.written,
                faults=[
                    reid_pb2.ImportFault(
                        sequence=fault.sequence, entry_id=fault.entry_id[:MAX_ID], error=refusal_of(fault.error)
                    )
                    for fault in piece.faults
                ],
            )


async def _snapshot(
    served: Served, request: reid_pb2.CreateSnapshotRequest, call: Call
) -> reid_pb2.CreateSnapshotResponse:
    copy = await _writer(served, request, call).snapshot(request.name, call)
    return reid_pb2.CreateSnapshotResponse(
        name=copy.name, generation=copy.generation, entries=copy.entries, size=copy.size
    )


_ANSWERS: Mapping[str, tuple[Scope, Kind, Callable[..., Any]]] = {
    "BatchUpsertEntries": ("write", "unary", _upsert),
    "BatchDeleteEntries": ("write", "unary", _delete),
    "UpdateEntry": ("write", "unary", _update),
    "ImportEntries": ("write", "duplex", _import),
    "CreateSnapshot": ("admin", "unary", _snapshot),
}

METHODS: Sequence[Method] = [
    Method(
        GALLERY_SERVICE,
        name,
        getattr(reid_pb2, f"{name}Request"),
        getattr(reid_pb2, f"{name}Response"),
        scope,
        kind,
        answer,
    )
    for name, (scope, kind, answer) in _ANSWERS.items()
]


def _writer(served: Served, request: _Write, call: Call) -> Writer:
    """The writer of the gallery that a request names."""
    name, _ = served.pipeline.gallery(request.gallery)
    writer = served.writers.get(name)
    if writer is None:
        raise ReadOnlyError(f"gallery {name!r} is only read here")
    return writer


async def _once(
    writer: Writer,
    request: _Retried,
    call: Call,
    response: type[_Response],
    write: Callable[[], Awaitable[_Response]],
) -> _Response:
    """What a write answers, or answered when it first came under the request's id."""
    if not request.request_id:
        return await write()
    if len(request.request_id) > MAX_REQUEST_ID:
        raise QueryError(f"a request_id may have {MAX_REQUEST_ID} characters, got {len(request.request_id)}")

    async def work() -> bytes:
        return (await write()).SerializeToString()

    said = request.DESCRIPTOR.name.encode() + request.SerializeToString(deterministic=True)
    key = call.caller.name, request.request_id
    return response.FromString(await writer.receipts.once(key, hashlib.sha256(said).digest(), work))


async def _numbered(
    first: reid_pb2.ImportEntriesRequest, requests: AsyncIterator[reid_pb2.ImportEntriesRequest]
) -> AsyncGenerator[Numbered]:
    """The entries of an import; one that cannot be read is an entry still, with the reason."""
    request: reid_pb2.ImportEntriesRequest | None = first
    last = 0
    while request is not None:
        if request.sequence <= last:
            raise QueryError(f"an import's sequence must rise from 1 on, got {request.sequence} after {last}")
        if request.gallery not in ("", first.gallery):
            raise QueryError(f"an import is into one gallery, {first.gallery!r}; got {request.gallery!r} too")
        last = request.sequence
        yield Numbered(last, request.entry.entry_id, _new(request.entry), request.ByteSize())
        request = await anext(requests, None)


def _new(message: reid_pb2.NewEntry) -> NewEntry | ReidError:
    try:
        return read_new_entry(message)
    except EntryError as error:
        return error
