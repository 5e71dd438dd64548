"""The application: the calls of reid.v1 over HTTP, and what a server says of itself."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as StarletteRoute

from reidserve.errors import ReidError
from reidserve.server.call import REQUEST_ID, Arrival
from reidserve.server.http.bodies import Bodies
from reidserve.server.http.openapi import describe
from reidserve.server.http.page import render_page
from reidserve.server.http.requests import arrival_of, check_site, check_timeout, read_message, write_json
from reidserve.server.http.routes import Route, routes
from reidserve.server.http.static import console
from reidserve.server.http.status import NO_STORE, refuse, tell
from reidserve.server.telemetry import CONTENT_TYPE, Telemetry
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.methods import Method
from reidserve.server.wire.status import status_of

BODY_SECONDS = 30.0
"""How long a body may take to come."""

_LARGE = 2**16
"""From so many bytes on, JSON is read and written on a thread: other calls are answered meanwhile."""

_PAGE = {**NO_STORE, "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}

_PICTURE = {
    "cache-control": "private, max-age=60",
    "vary": "authorization",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'",
}

_Result = TypeVar("_Result")
_Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def make_app(
    calls: Calls,
    telemetry: Telemetry,
    methods: Sequence[Method],
    *,
    ready: Callable[[], bool],
    message_bytes: int = 32 * 2**20,
    body_seconds: float = BODY_SECONDS,
    described: bool = True,
) -> Starlette:
    """The application that answers these methods.

    Args:
        calls: answers them.
        telemetry: counts them, and renders /metrics.
        methods: those that HTTP can ask for are its own.
        ready: whether calls should come here, as health says it.
        message_bytes: how large a body may be, bytes.
        body_seconds: how long a body may take to come.
        described: tell callers which calls there are, at /openapi.json and /docs.
    """
    front = _Front(calls, telemetry, Bodies(message_bytes, seconds=body_seconds))
    asked = [_route(route, front.endpoint(method, route)) for method, route in routes(methods)]
    app = Starlette(
        routes=asked + _own_routes(telemetry, ready) + console() + (_pages(methods) if described else []),
        exception_handlers={HTTPException: _refuse_route},
    )
    # An entry's id may end in a slash.
    app.router.redirect_slashes = False
    return app


class _Front:
    """Takes requests for calls, and answers with what they come to."""

    def __init__(self, calls: Calls, telemetry: Telemetry, bodies: Bodies) -> None:
        self._calls = calls
        self._telemetry = telemetry
        self._bodies = bodies

    def endpoint(self, method: Method, route: Route) -> _Endpoint:
        """What answers requests for a method that come by a route."""

        async def answer(request: Request) -> Response:
            arrival = arrival_of(request)
            try:
                raw = await self._read(method, route, request, arrival)
                reply = await _while_there(request, self._answered(method, raw, arrival))
            except _RefusedError as refused:
                return refuse(refused.error, arrival.request_id)
            except ClientDisconnect:
                return tell(499, "CANCELLED", "CANCELLED", "the caller has gone", arrival.request_id)
            if route.shows:
                image, kind = reply.image, reply.content_type  # type: ignore[attr-defined]
                return Response(image, headers={REQUEST_ID: arrival.request_id, **_PICTURE}, media_type=kind)
            body = await _apart(reply.ByteSize(), lambda: write_json(reply))
            return Response(body, headers={REQUEST_ID: arrival.request_id, **NO_STORE}, media_type="application/json")

        return answer

    async def _answered(self, method: Method, raw: bytes, arrival: Arrival) -> Message:
        try:
            return await self._calls.answer(method, raw, arrival)
        except Exception as error:
            # Counted already, and logged where it is our own fault.
            raise _RefusedError(error) from error

    async def _read(self, method: Method, route: Route, request: Request, arrival: Arrival) -> bytes:
        """The call that a request makes; one that makes none is counted here, for it never is a call."""
        try:
            check_timeout(arrival)
            check_site(request)
            body = await self._bodies.read(request, until=arrival.deadline)
            message: Message = method.request()
            await _apart(len(body), lambda: read_message(request, route, body, message))
            return message.SerializeToString()
        except ReidError as error:
            with self._telemetry.call(method.full_name, arrival) as record:
                code, record.reason, _ = status_of(error)
                record.code = code.name
            raise _RefusedError(error) from error


class _RefusedError(Exception):
    """A request is refused with this error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


async def _apart(size: int, work: Callable[[], _Result]) -> _Result:
    return await asyncio.to_thread(work) if size > _LARGE else work()


async def _while_there(request: Request, answer: Awaitable[_Result]) -> _Result:
    """The answer to a request, cancelled if its caller goes.

    Raises:
        ClientDisconnect: it went.
    """
    answering, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return await answering
        raise ClientDisconnect
    finally:
        leaving.cancel()
        answering.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _route(route: Route, endpoint: _Endpoint) -> StarletteRoute:
    # An entry's id may have slashes.
    path = route.path.replace("{entry_id}", "{entry_id:path}")
    return StarletteRoute(path, endpoint, methods=[route.verb])


def _own_routes(telemetry: Telemetry, ready: Callable[[], bool]) -> list[StarletteRoute]:
    async def live(request: Request) -> Response:
        return PlainTextResponse("ok\n", headers=NO_STORE)

    async def readiness(request: Request) -> Response:
        now = ready()
        return JSONResponse({"ready": now}, 200 if now else 503, NO_STORE)

    async def metrics(request: Request) -> Response:
        if not telemetry.counts:
            message = "this server counts nothing: start it with --metrics"
            return tell(404, "NOT_FOUND", "METRICS_OFF", message, arrival_of(request).request_id)
        return Response(telemetry.render(), headers={**NO_STORE, "content-type": CONTENT_TYPE})

    return [StarletteRoute("/healthz", live), StarletteRoute("/readyz", readiness), StarletteRoute("/metrics", metrics)]


def _pages(methods: Sequence[Method]) -> list[StarletteRoute]:
    document = describe(methods)
    page = render_page(document)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document, headers=NO_STORE)

    async def docs(request: Request) -> Response:
        return Response(page, headers=_PAGE, media_type="text/html; charset=utf-8")

    return [StarletteRoute("/openapi.json", openapi), StarletteRoute("/docs", docs)]


async def _refuse_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    request_id = arrival_of(request).request_id
    if status == 405:
        allowed = (error.headers or {}).get("Allow", "") if isinstance(error, HTTPException) else ""
        message = f"{request.method} is not for this path; {allowed} is"
        return tell(405, "UNIMPLEMENTED", "VERB_UNKNOWN", message, request_id, {"allow": allowed})
    message = "there is nothing at this path; /docs says what there is"
    return tell(404, "UNIMPLEMENTED", "PATH_UNKNOWN", message, request_id)
