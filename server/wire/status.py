"""Errors on the wire: one table from our tree to gRPC status codes, each with a google.rpc.ErrorInfo."""

from collections.abc import Mapping
from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from reidserve.errors import (
    BackendUnavailableError,
    DeadlineError,
    EngineStuckError,
    EntryError,
    EntryNotFoundError,
    GalleryBehindError,
    GalleryFullError,
    GalleryNotFoundError,
    GenerationGoneError,
    ImageError,
    IncompleteRankingError,
    MessageError,
    MessageStalledError,
    MessageTooLargeError,
    MetadataError,
    NoThresholdError,
    NotServingError,
    OutputExistsError,
    OverloadedError,
    PermissionDeniedError,
    QueryError,
    ReaderStalledError,
    ReadOnlyError,
    ReceiptError,
    ReidError,
    ReloadError,
    RemainsError,
    ThumbnailNotFoundError,
    UnauthenticatedError,
)
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import REQUEST_ID

DOMAIN = "reidserve"
LONGEST_MESSAGE = 500
"""Bytes of UTF-8: a message travels twice in the trailers, which hold 8 KiB, and once with three characters a byte."""

AWAY = "another server that this one needs, of the gallery or of the model, is away or late: try again"

DETAILS_KEY = "grpc-status-details-bin"

# The nearest class decides; what has none is our fault.
_TABLE: Mapping[type[Exception], grpc.StatusCode] = {
    EntryNotFoundError: grpc.StatusCode.NOT_FOUND,
    GalleryNotFoundError: grpc.StatusCode.NOT_FOUND,
    ThumbnailNotFoundError: grpc.StatusCode.NOT_FOUND,
    GenerationGoneError: grpc.StatusCode.FAILED_PRECONDITION,
    IncompleteRankingError: grpc.StatusCode.FAILED_PRECONDITION,
    NoThresholdError: grpc.StatusCode.FAILED_PRECONDITION,
    QueryError: grpc.StatusCode.INVALID_ARGUMENT,
    EntryError: grpc.StatusCode.INVALID_ARGUMENT,
    ImageError: grpc.StatusCode.INVALID_ARGUMENT,
    DecodeError: grpc.StatusCode.INVALID_ARGUMENT,
    MessageTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    MessageStalledError: grpc.StatusCode.DEADLINE_EXCEEDED,
    MessageError: grpc.StatusCode.INVALID_ARGUMENT,
    MetadataError: grpc.StatusCode.INVALID_ARGUMENT,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    ReadOnlyError: grpc.StatusCode.FAILED_PRECONDITION,
    ReceiptError: grpc.StatusCode.FAILED_PRECONDITION,
    OutputExistsError: grpc.StatusCode.ALREADY_EXISTS,
    ReloadError: grpc.StatusCode.FAILED_PRECONDITION,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    GalleryFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    ReaderStalledError: grpc.StatusCode.DEADLINE_EXCEEDED,
    GalleryBehindError: grpc.StatusCode.UNAVAILABLE,
    RemainsError: grpc.StatusCode.UNAVAILABLE,
    EngineStuckError: grpc.StatusCode.UNAVAILABLE,
    BackendUnavailableError: grpc.StatusCode.UNAVAILABLE,
    NotServingError: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """The code, reason and message that an error leaves with; of what is our own fault, its reason alone."""
    code = _code_of(type(error))
    reason = error.reason if isinstance(error, ReidError) else "INTERNAL"
    if isinstance(error, DecodeError):
        return code, "REQUEST_INVALID", "the request is no message of reid.v1"
    if isinstance(error, BackendUnavailableError):
        # Where that is, is nothing to a caller.
        return code, reason, AWAY
    if code is grpc.StatusCode.INTERNAL:
        return code, reason, "internal error; the server's log says more"
    # Cut between characters, and without half ones of file names.
    return code, reason, str(error).encode(errors="replace")[:LONGEST_MESSAGE].decode(errors="ignore")


def _code_of(kind: type[Exception]) -> grpc.StatusCode:
    return next((_TABLE[base] for base in kind.__mro__ if base in _TABLE), grpc.StatusCode.INTERNAL)


def refusal_of(error: Exception) -> reid_pb2.Refusal:
    """What of several was refused, and why: the same that it would have been refused with alone."""
    code, reason, message = status_of(error)
    return reid_pb2.Refusal(code=code.name, reason=reason, message=message)


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], error: Exception, request_id: str) -> NoReturn:
    """End a call with the status of an error, its reason in a google.rpc.ErrorInfo, and when to try again."""
    code, reason, message = status_of(error)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata={"request_id": request_id})
    details = [_packed(info)]
    if isinstance(error, ReidError) and error.retry_after is not None:
        seconds, rest = divmod(round(error.retry_after * 1e9), 10**9)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=seconds, nanos=rest))))
    number, _ = code.value
    status = status_pb2.Status(code=number, message=message, details=details)
    await context.abort(code, message, ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID, request_id)))
    raise AssertionError("abort returned")


def _packed(detail: Message) -> any_pb2.Any:
    # What Any.Pack does, in a third of its time: refusals must be cheap.
    return any_pb2.Any(type_url=f"type.googleapis.com/{detail.DESCRIPTOR.full_name}", value=detail.SerializeToString())
