"""The services: messages of reid.v1 to calls of the pipeline, and back. They decide nothing."""

from collections.abc import AsyncGenerator

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration

from reidserve.errors import QueryError
from reidserve.index import Filter
from reidserve.index.search.ranking import NO_ROW
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.calls import Calls
from reidserve.server.messages import (
    entry_message,
    hit_message,
    page_token,
    read_filter,
    read_page_token,
    read_shortlist,
)
from reidserve.server.pipeline import Answer, Pipeline, Question, Sought, Stages

SERVICE = reid_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
GALLERY_SERVICE = reid_pb2.DESCRIPTOR.services_by_name["GalleryService"].full_name
DEFAULT_TOP_K = 10
DEFAULT_PAGE, LARGEST_PAGE = 1000, 10_000
PAGE_HITS = 16_384

_PAGE_BYTES = 2**20  # of entries: with a last one that is large, a page fits the 4 MiB that gRPC's clients take


def handlers(calls: Calls) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of reid.v1's services, to be added to a server."""
    search = {
        "Search": calls.unary(reid_pb2.SearchRequest, _search),
        "Rank": calls.stream(reid_pb2.RankRequest, _rank),
        "Embed": calls.unary(reid_pb2.EmbedRequest, _embed),
    }
    gallery = {
        "GetGallery": calls.unary(reid_pb2.GetGalleryRequest, _get_gallery),
        "ListEntries": calls.unary(reid_pb2.ListEntriesRequest, _list_entries),
    }
    return (
        grpc.method_handlers_generic_handler(SERVICE, search),
        grpc.method_handlers_generic_handler(GALLERY_SERVICE, gallery),
    )


async def _search(pipeline: Pipeline, request: reid_pb2.SearchRequest) -> reid_pb2.SearchResponse:
    question = Question(
        gallery=request.gallery,
        top_k=request.top_k if request.HasField("top_k") else DEFAULT_TOP_K,
        where=_where(request),
        generation=_generation(request),
        shortlist=read_shortlist(request.rerank) if request.HasField("rerank") else None,
        min_score=request.min_score if request.HasField("min_score") else None,
    )
    return _search_response(await pipeline.search(_sought(request), question), pipeline)


async def _rank(pipeline: Pipeline, request: reid_pb2.RankRequest) -> AsyncGenerator[reid_pb2.RankResponse]:
    question = Question(gallery=request.gallery, where=_where(request), generation=_generation(request))
    async with pipeline.rank(_sought(request), question) as (ranking, generation):
        for start in range(0, max(1, ranking.rows.shape[1]), PAGE_HITS):
            page = slice(start, start + PAGE_HITS)
            yield reid_pb2.RankResponse(
                rows=ranking.rows[0, page].astype("<i8").tobytes(),
                scores=ranking.scores[0, page].astype("<f4").tobytes(),
                generation=generation,
                model=_model(pipeline),
            )


async def _embed(pipeline: Pipeline, request: reid_pb2.EmbedRequest) -> reid_pb2.EmbedResponse:
    embedding, stages = await pipeline.embed(request.image)
    return reid_pb2.EmbedResponse(
        embedding=embedding.astype("<f4").tobytes(), model=_model(pipeline), timings=_timings(stages)
    )


async def _get_gallery(pipeline: Pipeline, request: reid_pb2.GetGalleryRequest) -> reid_pb2.GetGalleryResponse:
    name, snapshot = pipeline.gallery(request.gallery, _generation(request))
    origin = pipeline.galleries[name].origin
    return reid_pb2.GetGalleryResponse(
        gallery=reid_pb2.Gallery(
            name=name,
            entries=len(snapshot),
            dim=snapshot.dim,
            generation=snapshot.generation,
            index=snapshot.kind,
            model=reid_pb2.Model(identity=origin.identity, engine=origin.engine),
        )
    )


async def _list_entries(pipeline: Pipeline, request: reid_pb2.ListEntriesRequest) -> reid_pb2.ListEntriesResponse:
    if request.page_size < 0:
        raise QueryError(f"page_size must be 0, for {DEFAULT_PAGE:,}, or more, got {request.page_size}")
    most = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
    generation, after = _generation(request), NO_ROW
    if request.page_token:
        of, after = read_page_token(request.page_token)
        if generation not in (None, of):
            raise QueryError(f"page_token is of generation {of}, and generation {generation} was asked for")
        generation = of
    listing = await pipeline.entries(request.gallery, generation, after=after, most=most)
    response = reid_pb2.ListEntriesResponse(generation=listing.generation)
    size = 0
    for row, entry in listing.entries:
        message = entry_message(row, entry)
        response.entries.append(message)
        size += message.ByteSize()
        if size >= _PAGE_BYTES:
            break
    if listing.more or len(response.entries) < len(listing.entries):
        response.next_page_token = page_token(listing.generation, response.entries[-1].row)
    return response


def _sought(request: reid_pb2.SearchRequest | reid_pb2.RankRequest) -> Sought:
    match request.WhichOneof("query"):
        case "image":
            return request.image
        case "embedding":
            return _read_embedding(request.embedding)
        case "entry_id":
            return request.entry_id
        case _:
            raise QueryError("expected an image, an embedding or an entry_id to search for, got none")


def _where(request: reid_pb2.SearchRequest | reid_pb2.RankRequest) -> Filter | None:
    return read_filter(request.filter) if request.HasField("filter") else None


def _generation(
    request: reid_pb2.SearchRequest | reid_pb2.RankRequest | reid_pb2.GetGalleryRequest | reid_pb2.ListEntriesRequest,
) -> int | None:
    return request.generation if request.HasField("generation") else None


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
        threshold=pipeline.threshold,
        match=pipeline.matches(answer),
        best_score=answer.best,
    )


def _model(pipeline: Pipeline) -> reid_pb2.Model:
    embedder = pipeline.embedder
    return reid_pb2.Model(identity=embedder.contract.identity, engine=embedder.engine, unverified=embedder.unverified)


def _timings(stages: Stages) -> reid_pb2.Timings:
    return reid_pb2.Timings(
        total=_duration(stages.total),
        **{stage: _duration(seconds) for stage, seconds in stages.seconds.items()},
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
