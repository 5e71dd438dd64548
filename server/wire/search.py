"""SearchService: messages of reid.v1 to questions of the pipeline, and its answers back."""

from collections.abc import AsyncGenerator, Sequence

from reidserve.errors import QueryError, ReidError
from reidserve.index import Filter
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Call
from reidserve.server.deployment import Served
from reidserve.server.queries.pipeline import Pipeline
from reidserve.server.queries.question import Answer, Question, Sought, Stages
from reidserve.server.wire.messages import (
    duration_message,
    hit_message,
    model_message,
    read_embedding,
    read_filter,
    read_shortlist,
    set_generation,
)
from reidserve.server.wire.methods import SERVICE, Method
from reidserve.server.wire.status import refusal_of

DEFAULT_TOP_K = 10
PAGE_HITS = 16_384
MOST_IMAGES = 64
MOST_SEARCHES, MOST_HITS = 64, 10_000
"""How many searches may be asked together, and how many hits they may have: an answer is made on the event loop, where
others wait."""


async def _search(served: Served, request: reid_pb2.SearchRequest, call: Call) -> reid_pb2.SearchResponse:
    sought, question = _read(request)
    return _response(await served.pipeline.search(sought, question, deadline=call.deadline), served.pipeline)


async def _batch_search(
    served: Served, request: reid_pb2.BatchSearchRequest, call: Call
) -> reid_pb2.BatchSearchResponse:
    if not 1 <= len(request.requests) <= MOST_SEARCHES:
        raise QueryError(f"a batch must have 1 to {MOST_SEARCHES} searches, got {len(request.requests)}")
    read = [_read_or_refuse(one) for one in request.requests]
    asked = [one for one in read if not isinstance(one, ReidError)]
    if (hits := sum(question.top_k for _, question in asked)) > MOST_HITS:
        raise QueryError(f"a batch may ask for {MOST_HITS:,} hits together, its top_k make {hits:,}")
    answers = iter(await served.pipeline.search_batch(asked, deadline=call.deadline) if asked else ())
    results = [one if isinstance(one, ReidError) else next(answers) for one in read]
    return reid_pb2.BatchSearchResponse(
        results=[
            reid_pb2.BatchSearchResult(error=refusal_of(result))
            if isinstance(result, ReidError)
            else reid_pb2.BatchSearchResult(response=_response(result, served.pipeline))
            for result in results
        ]
    )


async def _rank(served: Served, request: reid_pb2.RankRequest, call: Call) -> AsyncGenerator[reid_pb2.RankResponse]:
    pipeline = served.pipeline
    question = Question(gallery=request.gallery, where=_where(request), generation=set_generation(request))
    async with pipeline.rank(_sought(request), question, deadline=call.deadline) as (ranking, generation):
        for start in range(0, max(1, ranking.rows.shape[1]), PAGE_HITS):
            page = slice(start, start + PAGE_HITS)
            yield reid_pb2.RankResponse(
                rows=ranking.rows[0, page].astype("<i8").tobytes(),
                scores=ranking.scores[0, page].astype("<f4").tobytes(),
                generation=generation,
                model=model_message(pipeline),
            )


async def _embed(served: Served, request: reid_pb2.EmbedRequest, call: Call) -> reid_pb2.EmbedResponse:
    pipeline = served.pipeline
    embedding, stages = await pipeline.embed(request.image, deadline=call.deadline)
    return reid_pb2.EmbedResponse(
        embedding=embedding.astype("<f4").tobytes(), model=model_message(pipeline), timings=_timings(stages)
    )


async def _preview(served: Served, request: reid_pb2.PreviewRequest, call: Call) -> reid_pb2.PreviewResponse:
    return reid_pb2.PreviewResponse(png=await served.pipeline.preview(request.image, deadline=call.deadline))


METHODS: Sequence[Method] = (
    Method(SERVICE, "Search", reid_pb2.SearchRequest, reid_pb2.SearchResponse, "search", "unary", _search),
    Method(
        *(SERVICE, "BatchSearch", reid_pb2.BatchSearchRequest, reid_pb2.BatchSearchResponse),
        *("search", "unary", _batch_search),
    ),
    Method(SERVICE, "Rank", reid_pb2.RankRequest, reid_pb2.RankResponse, "search", "stream", _rank),
    Method(SERVICE, "Embed", reid_pb2.EmbedRequest, reid_pb2.EmbedResponse, "search", "unary", _embed),
    Method(SERVICE, "Preview", reid_pb2.PreviewRequest, reid_pb2.PreviewResponse, "search", "unary", _preview),
)


def _read(request: reid_pb2.SearchRequest) -> tuple[Sought, Question]:
    question = Question(
        gallery=request.gallery,
        top_k=request.top_k if request.HasField("top_k") else DEFAULT_TOP_K,
        where=_where(request),
        generation=set_generation(request),
        shortlist=read_shortlist(request.rerank) if request.HasField("rerank") else None,
        min_score=request.min_score if request.HasField("min_score") else None,
        only_matches=request.only_matches,
        group_by_pid=request.group_by_pid,
        min_generation=request.min_generation if request.HasField("min_generation") else None,
    )
    return _sought(request), question


def _read_or_refuse(request: reid_pb2.SearchRequest) -> tuple[Sought, Question] | ReidError:
    try:
        return _read(request)
    except ReidError as error:
        return error


def _sought(request: reid_pb2.SearchRequest | reid_pb2.RankRequest) -> Sought:
    match request.WhichOneof("query"):
        case "image":
            return request.image
        case "embedding":
            return read_embedding(request.embedding)
        case "entry_id":
            return request.entry_id
        case "track" if isinstance(request, reid_pb2.SearchRequest):
            images = tuple(request.track.images)
            if not 1 <= len(images) <= MOST_IMAGES:
                raise QueryError(f"a track must have 1 to {MOST_IMAGES} images, got {len(images)}")
            return images
        case _:
            raise QueryError("expected an image, a track, an embedding or an entry_id to search for, got none")


def _where(request: reid_pb2.SearchRequest | reid_pb2.RankRequest) -> Filter | None:
    return read_filter(request.filter) if request.HasField("filter") else None


def _response(answer: Answer, pipeline: Pipeline) -> reid_pb2.SearchResponse:
    return reid_pb2.SearchResponse(
        hits=map(hit_message, answer.hits),
        model=model_message(pipeline),
        generation=answer.generation,
        timings=_timings(answer.stages),
        threshold=pipeline.threshold,
        match=pipeline.matches(answer),
        best_score=answer.best,
        batch_size=answer.batch_size,
    )


def _timings(stages: Stages) -> reid_pb2.Timings:
    return reid_pb2.Timings(
        total=duration_message(stages.total),
        **{stage: duration_message(seconds) for stage, seconds in stages.seconds.items()},
    )
