"""A call, as the rooms of the server see it: who asks, for what, until when."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from reidserve.errors import PermissionDeniedError

Scope = Literal["search", "write", "admin"]

REQUEST_ID = "x-request-id"
"""The name under which a caller may send an id of its own, and gets back the one that its call had."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks.

    Attributes:
        name: of its key; "anyone" where the server has no keys.
        scopes: by what it may do, the galleries in which it may; None for all of them.
    """

    name: str
    scopes: Mapping[Scope, frozenset[str] | None]

    def check(self, scope: Scope, gallery: str | None = None) -> None:
        """See that the caller may do this, in a gallery where one is named.

        Raises:
            PermissionDeniedError: it may not.
        """
        if not self.may(scope, gallery):
            where = "" if gallery is None else f" in gallery {gallery!r}"
            raise PermissionDeniedError(f"key {self.name!r} does not allow scope {scope}{where}")

    def may(self, scope: Scope, gallery: str | None = None) -> bool:
        """Whether the caller may do this, in a gallery where one is named, or else in any."""
        galleries = self.scopes.get(scope, frozenset())
        return galleries is None or (bool(galleries) if gallery is None else gallery in galleries)


ANYONE = Caller("anyone", {"search": None, "write": None, "admin": None})


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a transport knows of a call before it is parsed.

    Attributes:
        metadata: by name in lower case; values that are text, those of a name that came more than once joined by ", ".
        peer: where it comes from, such as "ipv4:10.0.0.7:51234".
        transport: "grpc" or "http".
        deadline: until when it is waited for, on time.monotonic's clock; None where the caller set none.
        request_id: names it in logs, traces and errors: the caller's own where that is sane, or a new one.
    """

    metadata: Mapping[str, str]
    peer: str
    transport: Literal["grpc", "http"]
    deadline: float | None = None
    request_id: str = field(init=False)

    def __post_init__(self) -> None:
        given = self.metadata.get(REQUEST_ID, "")
        object.__setattr__(self, "request_id", given if _SANE_ID.fullmatch(given) else os.urandom(16).hex())


def join_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    """An Arrival's metadata, of a transport's pairs: a name that comes twice can be told from one that comes once.

    Joined as HTTP and gRPC say that repeated names may be: nobody sees one of two keys, and another the other.
    """
    joined: dict[str, str] = {}
    for name, value in pairs:
        if isinstance(value, str):
            name = name.lower()
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was let in.

    Attributes:
        method: its full name, such as "reid.v1.SearchService/Search".
        request_id: as its Arrival has it.
        caller: who asks.
        deadline: until when an answer is of use, on time.monotonic's clock; the server's default where none was set,
            and infinite where a stream of requests, or a call of the admin scope, has none.
        peer: where it comes from, as its Arrival says; "" where nobody does.
    """

    method: str
    request_id: str
    caller: Caller
    deadline: float
    peer: str = ""
