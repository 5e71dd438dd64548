"""A method: one thing that this server can be asked. Handlers, routes, health, reflection and scopes follow from it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import Message

from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Scope
from reidserve.server.deployment import Served

SERVICE = reid_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
GALLERY_SERVICE = reid_pb2.DESCRIPTOR.services_by_name["GalleryService"].full_name
MODEL_SERVICE = reid_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name

Kind = Literal["unary", "stream", "duplex"]


@dataclass(frozen=True, slots=True)
class Method:
    """One thing that this server can be asked.

    Attributes:
        service: its service's full name.
        name: its own.
        request: what it takes.
        response: what it gives.
        scope: what a caller needs.
        kind: one message for one, a stream for one, or a stream for a stream.
        answer: takes the Served, the request (an async iterator of them where kind is duplex) and the Call; a coroutine
            of the response where kind is unary, else an async generator of responses.
    """

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    scope: Scope
    kind: Kind
    answer: Callable[[Served, Any, Any], Any]

    @property
    def full_name(self) -> str:
        """Such as "reid.v1.SearchService/Search"."""
        return f"{self.service}/{self.name}"

    @property
    def takes_places(self) -> bool:
        """Whether a call of it counts as one image at least of those that are under way."""
        return self.service == SERVICE


def galleries_of(request: Message, served: Served) -> Iterable[str | None]:
    """The names of the galleries that a request is about, an empty one made that of the only one; None for no gallery.

    Another model changes what every gallery answers.
    """
    match request:
        case reid_pb2.BatchSearchRequest():
            named = {one.gallery for one in request.requests}
        case reid_pb2.ReloadRequest():
            return [*served.pipeline.galleries, *request.galleries]
        case _ if "gallery" in request.DESCRIPTOR.fields_by_name:
            named = {request.gallery}  # type: ignore[attr-defined]
        case _:
            return [None]
    galleries = served.pipeline.galleries
    only = next(iter(galleries)) if len(galleries) == 1 else ""
    return [name or only for name in named] or [None]


def images_of(request: Message) -> int:
    """How many images a request carries."""
    match request:
        case reid_pb2.BatchSearchRequest():
            return sum(map(images_of, request.requests))
        case reid_pb2.SearchRequest() if request.HasField("track"):
            return len(request.track.images)
        case reid_pb2.BatchUpsertEntriesRequest():
            return sum(entry.HasField("image") for entry in request.entries)
        case reid_pb2.ImportEntriesRequest():
            return int(request.entry.HasField("image"))
        case reid_pb2.EmbedRequest() | reid_pb2.PreviewRequest():
            return 1
        case reid_pb2.SearchRequest() | reid_pb2.RankRequest():
            return int(request.HasField("image"))
        case _:
            return 0
