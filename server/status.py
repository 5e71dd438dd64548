"""Errors on the wire: one table from our tree to gRPC status codes, each with a google.rpc.ErrorInfo."""

import logging
from collections.abc import Mapping
from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from reidserve.errors import (
    EntryNotFoundError,
    GalleryNotFoundError,
    GenerationGoneError,
    ImageError,
    IncompleteRankingError,
    NotServingError,
    OverloadedError,
    QueryError,
    ReaderStalledError,
    ReidError,
)

DOMAIN = "reidserve"
LONGEST_MESSAGE = 500
DETAILS_KEY = "grpc-status-details-bin"

# The first class that fits decides; what fits none is our fault.
_TABLE: Mapping[type[Exception], grpc.StatusCode] = {
    EntryNotFoundError: grpc.StatusCode.NOT_FOUND,
    GalleryNotFoundError: grpc.StatusCode.NOT_FOUND,
    GenerationGoneError: grpc.StatusCode.FAILED_PRECONDITION,
    IncompleteRankingError: grpc.StatusCode.FAILED_PRECONDITION,
    QueryError: grpc.StatusCode.INVALID_ARGUMENT,
    ImageError: grpc.StatusCode.INVALID_ARGUMENT,
    DecodeError: grpc.StatusCode.INVALID_ARGUMENT,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ReaderStalledError: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotServingError: grpc.StatusCode.UNAVAILABLE,
    ReidError: grpc.StatusCode.INTERNAL,
}

_logger = logging.getLogger(__name__)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """The code, reason and message that an error leaves with; of what nobody planned, nothing leaves."""
    code = next((code for kind, code in _TABLE.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if isinstance(error, ReidError):
        return code, error.reason, str(error)
    if isinstance(error, DecodeError):
        return code, "REQUEST_INVALID", "the request is no message of reid.v1"
    _logger.error("a call failed in a way nobody planned", exc_info=error)
    return code, "INTERNAL", "internal error; the server's log says more"


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], error: Exception) -> NoReturn:
    """End a call with the status of an error, its reason in a google.rpc.ErrorInfo."""
    code, reason, message = status_of(error)
    # It travels twice in the trailers, which hold 8 KiB.
    message = message[:LONGEST_MESSAGE]
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    number, _ = code.value
    status = status_pb2.Status(code=number, message=message, details=[info])
    await context.abort(code, message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort returned")
