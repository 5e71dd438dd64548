"""GalleryService, as far as it only reads: what galleries and entries there are."""

from collections.abc import Sequence

from reidserve.errors import QueryError
from reidserve.index import Snapshot
from reidserve.index.search.ranking import NO_ROW
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Call
from reidserve.server.deployment import Served
from reidserve.server.wire.messages import entry_message, page_token, read_page_token, set_generation
from reidserve.server.wire.methods import GALLERY_SERVICE, Method

DEFAULT_PAGE, LARGEST_PAGE = 1000, 10_000

_PAGE_BYTES = 2**20  # of entries: with a last one that is large, a page fits the 4 MiB that gRPC's clients take


async def _get_gallery(served: Served, request: reid_pb2.GetGalleryRequest, call: Call) -> reid_pb2.GetGalleryResponse:
    name, snapshot = served.pipeline.gallery(request.gallery, set_generation(request))
    return reid_pb2.GetGalleryResponse(gallery=_gallery_message(served, name, snapshot))


async def _list_galleries(
    served: Served, request: reid_pb2.ListGalleriesRequest, call: Call
) -> reid_pb2.ListGalleriesResponse:
    names = [name for name in sorted(served.pipeline.galleries) if call.caller.may("search", name)]
    return reid_pb2.ListGalleriesResponse(
        galleries=[_gallery_message(served, *served.pipeline.gallery(name)) for name in names]
    )


async def _get_entry(served: Served, request: reid_pb2.GetEntryRequest, call: Call) -> reid_pb2.GetEntryResponse:
    _, snapshot = served.pipeline.gallery(request.gallery, set_generation(request))
    row, entry = snapshot.row(request.entry_id), snapshot.find(request.entry_id)
    assert entry is not None, "a snapshot never changes"
    return reid_pb2.GetEntryResponse(
        entry=entry_message(row, entry),
        embedding=snapshot.vector(row).astype("<f4").tobytes() if request.with_embedding else b"",
        generation=snapshot.generation,
    )


async def _list_entries(
    served: Served, request: reid_pb2.ListEntriesRequest, call: Call
) -> reid_pb2.ListEntriesResponse:
    if request.page_size < 0:
        raise QueryError(f"page_size must be 0, for {DEFAULT_PAGE:,}, or more, got {request.page_size}")
    most = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
    generation, after = set_generation(request), NO_ROW
    identity = served.pipeline.embedder.contract.identity
    if request.page_token:
        of, after = read_page_token(request.page_token, identity=identity)
        if generation not in (None, of):
            raise QueryError(f"page_token is of generation {of}, and generation {generation} was asked for")
        generation = of
    listing = await served.pipeline.entries(request.gallery, generation, after=after, most=most)
    response = reid_pb2.ListEntriesResponse(generation=listing.generation)
    size = 0
    for row, entry in listing.entries:
        message = entry_message(row, entry)
        response.entries.append(message)
        size += message.ByteSize()
        if size >= _PAGE_BYTES:
            break
    if listing.more or len(response.entries) < len(listing.entries):
        response.next_page_token = page_token(identity, listing.generation, response.entries[-1].row)
    return response


METHODS: Sequence[Method] = (
    Method(
        *(GALLERY_SERVICE, "GetGallery", reid_pb2.GetGalleryRequest, reid_pb2.GetGalleryResponse),
        *("search", "unary", _get_gallery),
    ),
    Method(
        *(GALLERY_SERVICE, "ListGalleries", reid_pb2.ListGalleriesRequest, reid_pb2.ListGalleriesResponse),
        *("search", "unary", _list_galleries),
    ),
    Method(
        *(GALLERY_SERVICE, "GetEntry", reid_pb2.GetEntryRequest, reid_pb2.GetEntryResponse),
        *("search", "unary", _get_entry),
    ),
    Method(
        *(GALLERY_SERVICE, "ListEntries", reid_pb2.ListEntriesRequest, reid_pb2.ListEntriesResponse),
        *("search", "unary", _list_entries),
    ),
)


def _gallery_message(served: Served, name: str, snapshot: Snapshot) -> reid_pb2.Gallery:
    origin = served.pipeline.galleries[name].origin
    return reid_pb2.Gallery(
        name=name,
        entries=len(snapshot),
        dim=snapshot.dim,
        generation=snapshot.generation,
        index=snapshot.kind,
        model=reid_pb2.Model(identity=origin.identity, engine=origin.engine),
        writable=name in served.writers,
        damaged=len(snapshot.damaged),
    )
