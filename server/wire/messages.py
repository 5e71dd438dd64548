"""Filters, hits and entries: messages of reid.v1 to values, and back."""

import re
from collections.abc import Mapping

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from reidserve.embed import Embedding
from reidserve.errors import GenerationGoneError, QueryError
from reidserve.index import Entry, Hit
from reidserve.index.filters import Condition, Filter, Test
from reidserve.index.rerank import Reranking
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.queries.pipeline import Pipeline
from reidserve.server.queries.ranker import Shortlist

MAX_CONDITIONS = 64
MAX_TEXTS, MAX_VALUES = 100_000, 10_000
"""How many texts (ids, pids, camids) and values of attributes one filter may name. They are read on the event loop,
where others wait: 0.5 us a text and 2.6 us a value."""

# What a google.protobuf.Timestamp may say: the years 1 to 9999.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799

_TOKEN = re.compile("([0-9a-f]{12})[.]([0-9]{1,18})[.]([0-9]{1,18})")

_TESTS: Mapping[str, Test] = {
    "equal": "==",
    "any_of": "in",
    "less": "<",
    "at_most": "<=",
    "greater": ">",
    "at_least": ">=",
}


def read_filter(message: reid_pb2.Filter) -> Filter:
    """The filter that a message means.

    Raises:
        QueryError: it is too long, or says what no filter can.
    """
    _check_size(message)
    return Filter(
        ids=_choice(message, "ids"),
        pids=_choice(message, "pids"),
        camids=_choice(message, "camids"),
        not_camids=frozenset(message.exclude_camids),
        since=_microseconds(message, "since"),
        until=_microseconds(message, "until"),
        attributes=tuple(map(_condition, message.attributes)),
    )


def read_shortlist(message: reid_pb2.Rerank) -> Shortlist:
    """How the best hits are ordered again; what is not set is as the paper has it.

    Raises:
        QueryError: a number is out of its bounds.
    """
    given = {name.name: value for name, value in message.ListFields()}
    length = given.pop("shortlist", None)
    how = Reranking(**given)
    return Shortlist(how=how) if length is None else Shortlist(length, how)


def read_embedding(raw: bytes) -> Embedding:
    """The numbers of an embedding.

    Raises:
        QueryError: they are no whole ones.
    """
    if len(raw) % 4:
        raise QueryError(f"an embedding is little-endian float32, 4 bytes a number; got {len(raw)} bytes")
    return np.frombuffer(raw, "<f4")


def set_generation(
    request: reid_pb2.SearchRequest
    | reid_pb2.RankRequest
    | reid_pb2.GetGalleryRequest
    | reid_pb2.GetEntryRequest
    | reid_pb2.ListEntriesRequest,
) -> int | None:
    """The generation that a request names; None for the newest."""
    return request.generation if request.HasField("generation") else None


def page_token(identity: str, generation: int, row: int) -> str:
    """What asks for the entries behind a row of one state of a gallery, of the model that has this identity."""
    return f"{identity[:12]}.{generation}.{row}"


def read_page_token(token: str, *, identity: str) -> tuple[int, int]:
    """The generation and the row of a page token; `identity` is of the model that serves.

    Raises:
        QueryError: it is none of ours.
        GenerationGoneError: another model has taken the place of the one that it is of, with another gallery.
    """
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise QueryError(f"page_token must be a next_page_token that ListEntries gave, got {token[:40]!r}")
    if not identity.startswith(found[1]):
        raise GenerationGoneError(
            f"page_token is of a gallery of model {found[1]}, which was replaced: begin again with the first page"
        )
    return int(found[2]), int(found[3])


def model_message(pipeline: Pipeline) -> reid_pb2.Model:
    """The message that says a pipeline's model."""
    embedder = pipeline.embedder
    return reid_pb2.Model(identity=embedder.contract.identity, engine=embedder.engine, unverified=embedder.unverified)


def duration_message(seconds: float) -> Duration:
    """The message that says seconds."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def hit_message(hit: Hit) -> reid_pb2.Hit:
    """The message that says a hit; a time that no Timestamp may say is left out."""
    entry = hit.entry
    message = reid_pb2.Hit(
        entry_id=entry.id,
        pid=entry.pid,
        camid=entry.camid,
        score=hit.score,
        rank=hit.rank,
        reranked_distance=hit.reranked_distance,
    )
    _say_more(message, entry)
    return message


def entry_message(row: int, entry: Entry) -> reid_pb2.Entry:
    """The message that says an entry; a time that no Timestamp may say is left out."""
    message = reid_pb2.Entry(row=row, entry_id=entry.id, pid=entry.pid, camid=entry.camid, source=entry.source)
    _say_more(message, entry)
    return message


def _say_more(message: reid_pb2.Hit | reid_pb2.Entry, entry: Entry) -> None:
    if entry.timestamp is not None:
        seconds, microseconds = divmod(entry.timestamp, 1_000_000)
        if _FIRST_SECOND <= seconds <= _LAST_SECOND:
            message.timestamp.seconds, message.timestamp.nanos = seconds, microseconds * 1000
    for name, value in entry.attributes.items():
        match value:
            case bool():
                message.attributes[name].boolean = value
            case int():
                message.attributes[name].integer = value
            case float():
                message.attributes[name].number = value
            case str():
                message.attributes[name].text = value


def _check_size(message: reid_pb2.Filter) -> None:
    if len(message.attributes) > MAX_CONDITIONS:
        raise QueryError(f"a filter may have {MAX_CONDITIONS} conditions on attributes, got {len(message.attributes)}")
    texts = (message.ids.any_of, message.pids.any_of, message.camids.any_of, message.exclude_camids)
    if (count := sum(map(len, texts))) > MAX_TEXTS:
        raise QueryError(f"a filter may name {MAX_TEXTS:,} ids, pids and camids, got {count:,}")
    if (count := sum(len(condition.any_of.values) for condition in message.attributes)) > MAX_VALUES:
        raise QueryError(f"a filter may name {MAX_VALUES:,} values of attributes, got {count:,}")


def _choice(message: reid_pb2.Filter, name: str) -> frozenset[str] | None:
    return frozenset(getattr(message, name).any_of) if message.HasField(name) else None  # type: ignore[arg-type]


def _microseconds(message: reid_pb2.Filter, name: str) -> int | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(message, name)
    if not (_FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < 1_000_000_000):
        raise QueryError(
            f"a filter's {name} must be of the years 1 to 9999 with nanos 0 to 999,999,999, "
            f"got {time.seconds} s and {time.nanos} ns"
        )
    microseconds, rest = divmod(time.nanos, 1000)
    if rest:
        raise QueryError(f"a filter's {name} must have whole microseconds, got {time.nanos} ns")
    return time.seconds * 1_000_000 + microseconds


def _condition(message: reid_pb2.AttributeCondition) -> Condition:
    field = message.WhichOneof("test")
    if field is None:
        raise QueryError(f"a filter's condition on {message.name!r} must have a test, one of {', '.join(_TESTS)}")
    values = message.any_of.values if field == "any_of" else [getattr(message, field)]
    return Condition(message.name, _TESTS[field], tuple(_value(message.name, value) for value in values))


def _value(name: str, message: reid_pb2.Value) -> str | int | float | bool:
    match message.WhichOneof("kind"):
        case "text":
            return message.text
        case "integer":
            return message.integer
        case "number":
            return message.number
        case "boolean":
            return message.boolean
        case _:
            raise QueryError(f"a filter compares {name!r} with nothing: expected a text, integer, number or boolean")
