"""What a server answers with, as values."""

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from reidserve.client.filters import Attribute, read_attributes, read_time
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
    """

    hits: Sequence[Hit]
    model: str
    engine: str
    generation: int
    timings: Mapping[str, float]
    threshold: float | None = None
    match: bool | None = None
    best_score: float | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A whole gallery, or all of it that a filter let through, ranked.

    Attributes:
        rows: int64 ("q"), the entries' rows, best first.
        scores: float32 ("f"), the score of each.
        model: identity of the server's model.
        engine: what computed it, such as "fp32/onnxruntime-cpu".
        generation: the state of the gallery that was ranked.
    """

    rows: "array[int]"
    scores: "array[float]"
    model: str
    engine: str
    generation: int


@dataclass(frozen=True, slots=True)
class Gallery:
    """A gallery as a whole.

    Attributes:
        name: its name on the server.
        entries: how many it has.
        dim: dimensions of an embedding.
        generation: how many writes had been committed.
        index: how a search finds them: "flat" and "flat-fp16" find every one, "rabitq" may miss one.
        model: identity of the model that embedded them.
        engine: what computed it, such as "fp32/onnxruntime-cpu".
    """

    name: str
    entries: int
    dim: int
    generation: int
    index: str
    model: str
    engine: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What a gallery knows of one photograph.

    Attributes:
        row: its place in the order in which entries were written.
        entry_id: its id in the gallery.
        pid: the identity; None where unknown.
        camid: the camera; None where unknown.
        timestamp: when it was taken, in UTC; None where unknown.
        source: the file that it came from; None where there was none.
        attributes: what else is known of it, by name.
    """

    row: int
    entry_id: str
    pid: str | None
    camid: str | None
    timestamp: datetime | None
    source: str | None
    attributes: Mapping[str, Attribute] = field(hash=False)


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
    )


def read_ranked(pages: Iterable[reid_pb2.RankResponse]) -> Ranked:
    """The ranking that pages say together."""
    rows, scores, page = array("q"), array("f"), reid_pb2.RankResponse()
    for page in pages:  # each says what model and generation it is of
        rows.frombytes(page.rows)
        scores.frombytes(page.scores)
    for numbers in (rows, scores):
        read_little_endian(numbers)
    return Ranked(rows, scores, page.model.identity, page.model.engine, page.generation)


def read_gallery(gallery: reid_pb2.Gallery) -> Gallery:
    """A gallery as a whole."""
    model = gallery.model
    return Gallery(
        gallery.name,
        gallery.entries,
        gallery.dim,
        gallery.generation,
        gallery.index,
        model.identity,
        model.engine,
    )


def read_entry(entry: reid_pb2.Entry) -> Entry:
    """What a gallery knows of one photograph."""
    return Entry(
        row=entry.row,
        entry_id=entry.entry_id,
        pid=entry.pid if entry.HasField("pid") else None,
        camid=entry.camid if entry.HasField("camid") else None,
        timestamp=read_time(entry.timestamp) if entry.HasField("timestamp") else None,
        source=entry.source if entry.HasField("source") else None,
        attributes=read_attributes(entry.attributes),
    )


def read_little_endian(numbers: "array[float] | array[int]") -> None:
    """Turn numbers of the wire into this machine's, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
