"""GalleryService, as far as it only reads: what galleries and entries there are."""

from collections.abc import Sequence

from reidserve.embed import THUMBNAIL_TYPE
from reidserve.errors import QueryError
from reidserve.index import Snapshot
from reidserve.index.search.ranking import NO_ROW
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Call
from reidserve.server.deployment import Served
from reidserve.server.wire.messages import entry_message, page_token, read_filter, read_page_token, set_generation
from reidserve.server.wire.methods import GALLERY_SERVICE, Method

DEFAULT_PAGE, LARGEST_PAGE = 1000, 10_000
FILTERED = 10_000
"""How many entries are looked at for a page of those that a filter lets through."""

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
    kept, generation = await served.pipeline.entry(request.gallery, set_generation(request), request.entry_id)
    return reid_pb2.GetEntryResponse(
        entry=entry_message(kept.row, kept.entry),
        embedding=kept.embedding.astype("<f4").tobytes() if request.with_embedding else b"",
        generation=generation,
    )


async def _get_thumbnail(
    served: Served, request: reid_pb2.GetThumbnailRequest, call: Call
) -> reid_pb2.GetThumbnailResponse:
    image = await served.pipeline.thumbnail(request.gallery, request.entry_id)
    return reid_pb2.GetThumbnailResponse(image=image, content_type=THUMBNAIL_TYPE)


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
    where = read_filter(request.filter) if request.HasField("filter") else None
    looked = most if where is None else FILTERED
    listing = await served.pipeline.entries(request.gallery, generation, after=after, most=looked)
    response = reid_pb2.ListEntriesResponse(generation=listing.generation)
    size = 0
    for row, entry in listing.entries:
        after = row
        if where is not None and not where.accepts(entry):
            continue
        message = entry_message(row, entry)
        response.entries.append(message)
        size += message.ByteSize()
        if size >= _PAGE_BYTES or len(response.entries) == most:
            break
    if listing.more or (listing.entries and after != listing.entries[-1][0]):
        response.next_page_token = page_token(identity, listing.generation, after)
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
    # Before GetEntry: over HTTP the path of an entry would be that of its thumbnail too.
    Method(
        *(GALLERY_SERVICE, "GetThumbnail", reid_pb2.GetThumbnailRequest, reid_pb2.GetThumbnailResponse),
        *("search", "unary", _get_thumbnail),
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
