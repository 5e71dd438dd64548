"""What a server answers to a search, as values."""

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from reidserve.client.filters import Attribute, read_attributes, read_time
from reidserve.client.refusals import read_refusal
from reidserve.errors import RequestError
from reidserve.proto.reid.v1 import reid_pb2


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
        reranked_distance: how far it is by the neighbours that it shares with the query, lower is better; None where
            re-ranking was not asked for.
    """

    entry_id: str
    pid: str | None
    camid: str | None
    score: float
    rank: int
    timestamp: datetime | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict, hash=False)
    reranked_distance: float | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A ranking and what it was computed from.

    Attributes:
        hits: best first.
        model: identity of the server's model.
        engine: what computed it, such as "fp32/onnxruntime-cpu".
        generation: the state of the gallery that was searched.
        timings: seconds by stage (decode, embed, search, total); a stage that was not needed is absent.
        threshold: the score from which on two images are said to be of one identity; None where the server has none.
        match: whether the best score reaches it; None where the server has none.
        best_score: of all that may be found, whatever was left out or re-ranked; None where nothing may be.
        batch_size: how many images the engine computed together with the query's; 0 where none was.
        unverified: the engine was not held to fp32 on data: rankings may be worse than the model's.
    """

    hits: Sequence[Hit]
    model: str
    engine: str
    generation: int
    timings: Mapping[str, float]
    threshold: float | None = None
    match: bool | None = None
    best_score: float | None = None
    batch_size: int = 0
    unverified: bool = False


@dataclass(frozen=True, slots=True)
class Ranked:
    """A whole gallery, or all of it that a filter let through, ranked.

    Attributes:
        rows: int64 ("q"), the entries' rows, best first.
        scores: float32 ("f"), the score of each.
        model: identity of the server's model.
        engine: what computed it, such as "fp32/onnxruntime-cpu".
        generation: the state of the gallery that was ranked.
        unverified: the engine was not held to fp32 on data: rankings may be worse than the model's.
    """

    rows: "array[int]"
    scores: "array[float]"
    model: str
    engine: str
    generation: int
    unverified: bool = False


def read_search(response: reid_pb2.SearchResponse) -> SearchResult:
    """The answer to a search."""
    hits = [
        Hit(
            entry_id=hit.entry_id,
            pid=hit.pid if hit.HasField("pid") else None,
            camid=hit.camid if hit.HasField("camid") else None,
            score=hit.score,
            rank=hit.rank,
            timestamp=read_time(hit.timestamp) if hit.HasField("timestamp") else None,
            attributes=read_attributes(hit.attributes),
            reranked_distance=hit.reranked_distance if hit.HasField("reranked_distance") else None,
        )
        for hit in response.hits
    ]
    return SearchResult(
        hits,
        response.model.identity,
        response.model.engine,
        response.generation,
        timings={stage.name: value.ToNanoseconds() / 1e9 for stage, value in response.timings.ListFields()},
        threshold=response.threshold if response.HasField("threshold") else None,
        match=response.match if response.HasField("match") else None,
        best_score=response.best_score if response.HasField("best_score") else None,
        batch_size=response.batch_size,
        unverified=response.model.unverified,
    )


def read_ranked(pages: Iterable[reid_pb2.RankResponse]) -> Ranked:
    """The ranking that pages say together."""
    rows, scores, page = array("q"), array("f"), reid_pb2.RankResponse()
    for page in pages:  # each says what model and generation it is of
        rows.frombytes(page.rows)
        scores.frombytes(page.scores)
    for numbers in (rows, scores):
        read_little_endian(numbers)
    model = page.model
    return Ranked(rows, scores, model.identity, model.engine, page.generation, model.unverified)


def read_batch(response: reid_pb2.BatchSearchResponse) -> list[SearchResult | RequestError]:
    """The answers to several searches; what failed is an error in its place."""
    return [
        read_search(result.response) if result.HasField("response") else read_refusal(result.error)
        for result in response.results
    ]


def read_embedding(raw: bytes) -> "array[float]":
    """An embedding of the wire."""
    embedding = array("f", raw)
    read_little_endian(embedding)
    return embedding


def write_embedding(embedding: Sequence[float]) -> bytes:
    """An embedding for the wire."""
    numbers = array("f", embedding)
    read_little_endian(numbers)
    return numbers.tobytes()


def read_little_endian(numbers: "array[float] | array[int]") -> None:
    """Turn numbers of the wire into this machine's, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
