"""Which request of HTTP is which method of reid.v1."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reidserve.server.wire.methods import Method


@dataclass(frozen=True, slots=True)
class Route:
    """A way to ask for a method.

    Attributes:
        verb: of HTTP, such as "GET".
        path: with the names of its parts in braces.
        fields: the field of the request that a part of the path fills, by the part's name, where they differ.
        shows: it is answered with the response's image, not with JSON.
    """

    verb: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)
    shows: bool = False

    @property
    def parts(self) -> Mapping[str, str]:
        """By the name of each part of the path, the field that it fills."""
        return {part: self.fields.get(part, part) for part in re.findall("{([a-z_]+)}", self.path)}


_ROUTES: Mapping[str, Route] = {
    "Search": Route("POST", "/v1/search"),
    "BatchSearch": Route("POST", "/v1/batch-search"),
    "Embed": Route("POST", "/v1/embed"),
    "Preview": Route("POST", "/v1/preview"),
    "ListGalleries": Route("GET", "/v1/galleries"),
    "GetGallery": Route("GET", "/v1/galleries/{gallery}"),
    "ListEntries": Route("GET", "/v1/galleries/{gallery}/entries"),
    "GetThumbnail": Route("GET", "/v1/galleries/{gallery}/entries/{entry_id}/thumbnail", shows=True),
    "GetEntry": Route("GET", "/v1/galleries/{gallery}/entries/{entry_id}"),
    "BatchUpsertEntries": Route("POST", "/v1/galleries/{gallery}/entries"),
    "BatchDeleteEntries": Route("POST", "/v1/galleries/{gallery}/entries:delete"),
    "UpdateEntry": Route("PATCH", "/v1/galleries/{gallery}/entries/{entry_id}", {"entry_id": "entry.entry_id"}),
    "CreateSnapshot": Route("POST", "/v1/galleries/{gallery}/snapshots"),
    "GetModel": Route("GET", "/v1/model"),
    "GetLive": Route("GET", "/v1/live"),
    "Reload": Route("POST", "/v1/model:reload"),
}


def routes(methods: Sequence[Method]) -> list[tuple[Method, Route]]:
    """The short way to each method, and then the one that Connect's clients take; streams are gRPC's alone."""
    unary = [method for method in methods if method.kind == "unary"]
    short = [(method, _ROUTES[method.name]) for method in unary if method.name in _ROUTES]
    return short + [(method, Route("POST", f"/{method.full_name}")) for method in unary]
