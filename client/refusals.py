"""Refusals: what a server answers instead of an answer, as errors."""

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from reidserve.errors import (
    AccessError,
    BusyError,
    NotFoundError,
    RefusedError,
    RequestError,
    TimedOutError,
    UnavailableError,
)
from reidserve.proto.reid.v1 import reid_pb2

_DETAILS_KEY = "grpc-status-details-bin"

_KINDS: Mapping[str, type[RequestError]] = {
    "INVALID_ARGUMENT": RefusedError,
    "OUT_OF_RANGE": RefusedError,
    "FAILED_PRECONDITION": RefusedError,
    "ALREADY_EXISTS": RefusedError,
    "UNIMPLEMENTED": RefusedError,
    "NOT_FOUND": NotFoundError,
    "UNAUTHENTICATED": AccessError,
    "PERMISSION_DENIED": AccessError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": TimedOutError,
}


def refusal(
    message: str, *, code: str, reason: str, request_id: str = "", retry_after: float | None = None
) -> RequestError:
    """The error of a gRPC status's name."""
    kind = _KINDS.get(code, RequestError)
    if code == "RESOURCE_EXHAUSTED":
        # A gallery that is full, or a message that is too long, is so the next time too.
        kind = RefusedError if retry_after is None else BusyError
    return kind(message, code=code, reason=reason, request_id=request_id, retry_after=retry_after)


def read_refusal(message: reid_pb2.Refusal) -> RequestError:
    """The error that a message says, of one of several things that were asked together."""
    return refusal(message.message, code=message.code, reason=message.reason)


def call_refusal(error: grpc.RpcError, target: str) -> RequestError:
    """The error of a call that failed; where the server itself said nothing, it names the server."""
    code, message = error.code().name, error.details() or ""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    details = _details(error)
    retry_after = retry.retry_delay.ToNanoseconds() / 1e9 if _find(retry, details) else None
    if _find(info, details):
        reason, request_id = info.reason, info.metadata.get("request_id", "")
    else:
        hint = " (is reid-serve running there?)" if code == "UNAVAILABLE" else ""
        message, reason, request_id = f"{target}: {message}{hint}", code, ""
    failure = refusal(message, code=code, reason=reason, request_id=request_id, retry_after=retry_after)
    failure.__cause__ = error
    return failure


def _details(error: grpc.RpcError) -> status_pb2.Status:
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == _DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:  # cut on the way, or another program's
                break
    return status_pb2.Status()


def _find(detail: Message, status: status_pb2.Status) -> bool:
    """Whether a status carries such a detail, which is then filled in."""
    return any(packed.Unpack(detail) for packed in status.details)
