"""Errors over HTTP: one table from gRPC's codes to HTTP's, and one form of body."""

import json
import math
from collections.abc import Mapping

from starlette.responses import Response

from reidserve.errors import ReidError
from reidserve.server.call import REQUEST_ID
from reidserve.server.wire.status import status_of

STATUSES: Mapping[str, int] = {
    "IMAGE_TOO_LARGE": 413,
    "MESSAGE_TOO_LARGE": 413,
    "MESSAGE_STALLED": 408,
    "CONTENT_TYPE_UNKNOWN": 415,
    "METADATA_TOO_LARGE": 431,
    "GALLERY_FULL": 507,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""By reason, where HTTP has a closer word, and by code."""

_UNREAD = (408, 413)

NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def refuse(error: Exception, request_id: str) -> Response:
    """The response that tells of an error what gRPC would, and when to try again."""
    code, reason, message = status_of(error)
    headers = {}
    if isinstance(error, ReidError) and error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    status = STATUSES.get(reason) or STATUSES.get(code.name, 500)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in _UNREAD:
        # What is left of the body is not waited for.
        headers["connection"] = "close"
    return tell(status, code.name, reason, message, request_id, headers)


def tell(
    status: int, code: str, reason: str, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A refusal as its response."""
    body = {"code": code, "reason": reason, "message": message, "requestId": request_id}
    return Response(
        json.dumps(body, ensure_ascii=False).encode(errors="replace"),
        status,
        {REQUEST_ID: request_id, **NO_STORE, **(headers or {})},
        "application/json",
    )
