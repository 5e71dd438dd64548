"""What can be asked of a server: each call's message, how its answer is read, and whether it may be asked again.

The two clients send these and do nothing else.
"""

import uuid
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from reidserve.client.filters import Attribute, Filter, write_attributes, write_time
from reidserve.client.galleries import (
    Deleted,
    Entry,
    EntryPage,
    Gallery,
    Image,
    NewEntry,
    Snapshot,
    Updated,
    Written,
    read_entry,
    read_gallery,
    read_image,
    read_page,
    write_entry,
)
from reidserve.client.models import ModelFacts, Reloaded, read_facts, read_reloaded
from reidserve.client.results import Ranked, SearchResult, read_batch, read_embedding, read_ranked, read_search
from reidserve.client.searches import Search, fitting, query_fields, said, search_message
from reidserve.errors import RequestError
from reidserve.proto.reid.v1 import reid_pb2

Result = TypeVar("Result")

IMPORT = "/reid.v1.GalleryService/ImportEntries"


@dataclass(frozen=True, slots=True)
class Ask(Generic[Result]):
    """One thing to ask.

    Attributes:
        method: its path on the wire.
        request: what is sent.
        response: what is answered with.
        read: makes the result of the answer; of all its messages where it is a stream.
        again: whether asking twice does what asking once does.
        stream: the answer is a stream.
    """

    method: str
    request: Message
    response: type[Message]
    read: Callable[[Any], Result]
    again: bool = True
    stream: bool = False


def search(wanted: Search) -> Ask[SearchResult]:
    """Search."""
    path = "/reid.v1.SearchService/Search"
    return Ask(path, search_message(wanted), reid_pb2.SearchResponse, read_search)


def batch_search(wanted: Iterable[Search]) -> Ask[list[SearchResult | RequestError]]:
    """BatchSearch."""
    request = reid_pb2.BatchSearchRequest(requests=map(search_message, wanted))
    return Ask("/reid.v1.SearchService/BatchSearch", request, reid_pb2.BatchSearchResponse, read_batch)


def rank(
    *,
    image: Image | None = None,
    embedding: Sequence[float] | None = None,
    entry_id: str | None = None,
    gallery: str,
    where: Filter | None,
    generation: int | None,
) -> Ask[Ranked]:
    """Rank."""
    query = query_fields(image, embedding, entry_id)
    request = fitting(reid_pb2.RankRequest, **query, gallery=gallery, filter=said(where), generation=generation)
    return Ask("/reid.v1.SearchService/Rank", request, reid_pb2.RankResponse, read_ranked, stream=True)


def embed(image: Image) -> Ask["array[float]"]:
    """Embed."""
    request = reid_pb2.EmbedRequest(image=read_image(image))
    return Ask(
        "/reid.v1.SearchService/Embed",
        request,
        reid_pb2.EmbedResponse,
        lambda response: read_embedding(response.embedding),
    )


def gallery(name: str, generation: int | None) -> Ask[Gallery]:
    """GetGallery."""
    request = fitting(reid_pb2.GetGalleryRequest, gallery=name, generation=generation)
    return Ask(
        "/reid.v1.GalleryService/GetGallery",
        request,
        reid_pb2.GetGalleryResponse,
        lambda response: read_gallery(response.gallery),
    )


def galleries() -> Ask[list[Gallery]]:
    """ListGalleries."""
    return Ask(
        "/reid.v1.GalleryService/ListGalleries",
        reid_pb2.ListGalleriesRequest(),
        reid_pb2.ListGalleriesResponse,
        lambda response: list(map(read_gallery, response.galleries)),
    )


def entry(entry_id: str, *, gallery: str, generation: int | None, with_embedding: bool) -> Ask[Entry]:
    """GetEntry."""
    return Ask(
        "/reid.v1.GalleryService/GetEntry",
        fitting(
            reid_pb2.GetEntryRequest,
            gallery=gallery,
            entry_id=entry_id,
            generation=generation,
            with_embedding=with_embedding,
        ),
        reid_pb2.GetEntryResponse,
        lambda response: read_entry(response.entry, response.embedding),
    )


def entries(gallery: str, generation: int | None, token: str = "") -> Ask[EntryPage]:
    """ListEntries."""
    request = fitting(reid_pb2.ListEntriesRequest, gallery=gallery, generation=generation, page_token=token)
    return Ask("/reid.v1.GalleryService/ListEntries", request, reid_pb2.ListEntriesResponse, read_page)


def upsert(new: Iterable[NewEntry], *, gallery: str, request_id: str) -> Ask[Written]:
    """BatchUpsertEntries."""
    return Ask(
        "/reid.v1.GalleryService/BatchUpsertEntries",
        fitting(
            reid_pb2.BatchUpsertEntriesRequest,
            gallery=gallery,
            entries=map(write_entry, new),
            request_id=request_id or _new_id(),
        ),
        reid_pb2.BatchUpsertEntriesResponse,
        lambda response: Written(response.generation, response.written),
    )


def delete(
    ids: Collection[str], where: Filter | None, *, erase: bool = False, gallery: str, request_id: str
) -> Ask[Deleted]:
    """BatchDeleteEntries."""
    return Ask(
        "/reid.v1.GalleryService/BatchDeleteEntries",
        fitting(
            reid_pb2.BatchDeleteEntriesRequest,
            gallery=gallery,
            entry_ids=ids,
            filter=said(where),
            erase=erase,
            request_id=request_id or _new_id(),
        ),
        reid_pb2.BatchDeleteEntriesResponse,
        lambda response: Deleted(response.generation, response.deleted),
    )


def update(
    entry_id: str,
    *,
    pid: str | None,
    camid: str | None,
    timestamp: datetime | None,
    source: str | None,
    attributes: Mapping[str, Attribute],
    forget: Collection[str],
    gallery: str,
    request_id: str,
) -> Ask[Updated]:
    """UpdateEntry."""
    fields = {"pid": pid, "camid": camid, "timestamp": write_time("timestamp", timestamp), "source": source}
    said_of_it = [name for name, value in fields.items() if value is not None]
    changed = fitting(reid_pb2.Entry, entry_id=entry_id, attributes=write_attributes(attributes), **fields)
    mask = [*said_of_it, *(f"attributes.{name}" for name in attributes), *forget]
    return Ask(
        "/reid.v1.GalleryService/UpdateEntry",
        fitting(
            reid_pb2.UpdateEntryRequest,
            gallery=gallery,
            entry=changed,
            update_mask=FieldMask(paths=mask),
            request_id=request_id or _new_id(),
        ),
        reid_pb2.UpdateEntryResponse,
        lambda response: Updated(read_entry(response.entry), response.generation),
    )


def snapshot(gallery: str, name: str) -> Ask[Snapshot]:
    """CreateSnapshot, which asked twice makes two."""
    return Ask(
        "/reid.v1.GalleryService/CreateSnapshot",
        fitting(reid_pb2.CreateSnapshotRequest, gallery=gallery, name=name),
        reid_pb2.CreateSnapshotResponse,
        lambda response: Snapshot(response.name, response.generation, response.entries, response.size),
        again=False,
    )


def model() -> Ask[ModelFacts]:
    """GetModel."""
    return Ask("/reid.v1.ModelService/GetModel", reid_pb2.GetModelRequest(), reid_pb2.GetModelResponse, read_facts)


def reload(model: str, galleries: Mapping[str, str]) -> Ask[Reloaded]:
    """Reload, which is not asked twice unasked."""
    return Ask(
        "/reid.v1.ModelService/Reload",
        fitting(reid_pb2.ReloadRequest, model=model, galleries=galleries),
        reid_pb2.ReloadResponse,
        read_reloaded,
        again=False,
    )


def _new_id() -> str:
    """Names a write, so that the server does it once however often it comes."""
    return uuid.uuid4().hex
