"""The console's files: a page for people, which runs nothing but its own scripts and asks nobody but this server."""

from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from reidserve.server.http.status import NO_STORE

_HEADERS = {
    **NO_STORE,
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def console() -> list[Route]:
    """The console's page at /, and its other files below /console/."""
    return [
        _route("/" if file.name == "index.html" else f"/console/{file.name}", file.read_bytes(), _TYPES[suffix])
        for file in sorted((files("reidserve.server.http") / "console").iterdir(), key=lambda file: file.name)
        if (suffix := PurePath(file.name).suffix) in _TYPES
    ]


def _route(path: str, content: bytes, kind: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return Route(path, answer)
