"""Searches, as the client says them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, TypeVar

from reidserve.client.filters import Filter, filter_message
from reidserve.client.galleries import Image, read_image
from reidserve.client.results import write_embedding
from reidserve.errors import QueryError
from reidserve.proto.reid.v1 import reid_pb2

_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True)
class Rerank:
    """How the best hits are ordered again: k-reciprocal encoding (Zhong et al., 2017). The server checks its bounds.

    Attributes:
        k1: neighbours of an image that may have it among theirs, 1 to 1,000.
        k2: nearest images whose encodings are averaged, 1 to 1,000.
        weight: the share of the plain distance in the final one, 0 to 1.
        shortlist: how many hits are ordered again, top_k to 1,000.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3
    shortlist: int = 100


class SearchOptions(TypedDict, total=False):
    """What may be said of any search; a Search says what each means."""

    gallery: str
    where: Filter | None
    generation: int | None
    min_generation: int | None
    rerank: Rerank | None
    min_score: float | None
    only_matches: bool
    group_by_pid: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search: by an image, the images of one track, an embedding or an entry.

    Attributes:
        image: encoded bytes or the path of a file: one crop of one person or vehicle.
        track: 1 to 64 images of one target; the mean of their embeddings is searched for.
        embedding: of the server's own model, of unit length.
        entry_id: an entry of the gallery, which is left out of its own hits.
        top_k: how many hits.
        gallery: its name; may stay empty where the server has only one.
        where: which entries may be found.
        generation: the state to search: the newest, or one that the server still keeps.
        min_generation: the least state to search, such as a write's; the server waits for it.
        rerank: how the best hits are ordered again.
        min_score: hits of a lower score are left out.
        only_matches: hits below the server's calibrated threshold are left out.
        group_by_pid: of each identity only its best hit is found.

    Raises:
        QueryError: it is not by one of the four.
    """

    image: Image | None = None
    track: Sequence[Image] | None = None
    embedding: Sequence[float] | None = None
    entry_id: str | None = None
    top_k: int = 10
    gallery: str = ""
    where: Filter | None = None
    generation: int | None = None
    min_generation: int | None = None
    rerank: Rerank | None = None
    min_score: float | None = None
    only_matches: bool = False
    group_by_pid: bool = False

    def __post_init__(self) -> None:
        if sum(query is not None for query in (self.image, self.track, self.embedding, self.entry_id)) != 1:
            raise QueryError("a search must be by an image, a track, an embedding or an entry_id, one of them")


def search_message(search: Search) -> reid_pb2.SearchRequest:
    """The message that says a search.

    Raises:
        QueryError: something of it does not fit the protocol.
        OSError: an image cannot be read.
    """
    return fitting(
        reid_pb2.SearchRequest,
        **query_fields(search.image, search.embedding, search.entry_id),
        track=None if search.track is None else reid_pb2.Track(images=map(read_image, search.track)),
        top_k=search.top_k,
        gallery=search.gallery,
        filter=said(search.where),
        generation=search.generation,
        min_generation=search.min_generation,
        rerank=None if search.rerank is None else fitting(reid_pb2.Rerank, **asdict(search.rerank)),
        min_score=search.min_score,
        only_matches=search.only_matches,
        group_by_pid=search.group_by_pid,
    )


def query_fields(
    image: Image | None = None, embedding: Sequence[float] | None = None, entry_id: str | None = None
) -> dict[str, Any]:
    """What is asked with, by the names of the protocol's fields."""
    return {
        "image": None if image is None else read_image(image),
        "embedding": None if embedding is None else write_embedding(embedding),
        "entry_id": entry_id,
    }


def said(where: Filter | None) -> reid_pb2.Filter | None:
    """The message that says a filter, if there is one."""
    return None if where is None else filter_message(where)


def fitting(kind: Callable[..., _Message], **fields: Any) -> _Message:  # noqa: ANN401  # the message checks them
    """A message of these fields.

    Raises:
        QueryError: one does not fit: a number of more bits than it may have, a text that is not Unicode.
    """
    try:
        return kind(**fields)
    except ValueError as error:
        raise QueryError(f"the query does not fit the protocol: {error}") from error
