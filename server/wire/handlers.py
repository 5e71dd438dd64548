"""The gRPC handlers: bytes in, bytes out, and every error under the table."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Any

import grpc

from reidserve.errors import ReaderStalledError
from reidserve.server.call import REQUEST_ID, Arrival, join_metadata
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.methods import Method
from reidserve.server.wire.status import abort

PATIENCE_SECONDS = 30.0
"""How long a caller may take to read one message of a stream."""

_LONGEST_SECONDS = 86_400.0  # what a client writes where it means no deadline is beyond a day
_WORD_SECONDS = 0.01  # so that our own word of a missed deadline comes before the caller's clock

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Unary = Callable[[bytes, _Context], Awaitable[bytes]]
_Stream = Callable[[Any, _Context], Awaitable[None]]


class _StalledError(ReaderStalledError):
    """A caller does not read on.

    Attributes:
        writing: the message that is on its way to it.
    """

    def __init__(self, message: str, writing: "asyncio.Future[None]") -> None:
        super().__init__(message)
        self.writing = writing


def handlers(
    calls: Calls, methods: Sequence[Method], *, patience: float = PATIENCE_SECONDS
) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of methods, to be added to a server.

    They take raw bytes, which are parsed under the table: a deserializer that raises would leak its error as UNKNOWN.
    """

    def made(method: Method) -> "grpc.RpcMethodHandler[bytes, bytes]":
        match method.kind:
            case "unary":
                return grpc.unary_unary_rpc_method_handler(_unary(calls, method))
            case "stream":
                return grpc.unary_stream_rpc_method_handler(_stream(calls, method, patience))
            case "duplex":
                return grpc.stream_stream_rpc_method_handler(_stream(calls, method, patience))

    return tuple(
        grpc.method_handlers_generic_handler(service, {method.name: made(method) for method in own})
        for service, own in groupby(methods, lambda method: method.service)
    )


def _unary(calls: Calls, method: Method) -> _Unary:
    async def handle(raw: bytes, context: _Context) -> bytes:
        arrival = _arrival(context)
        try:
            reply = (await calls.answer(method, raw, arrival)).SerializeToString()
        except Exception as error:  # noqa: BLE001  # the table decides what leaves
            await abort(context, error, arrival.request_id)
        context.set_trailing_metadata(((REQUEST_ID, arrival.request_id),))
        return reply

    return handle


def _stream(calls: Calls, method: Method, patience: float) -> _Stream:
    """A handler that answers with a stream; what it holds is let go where the caller does not read on."""

    async def handle(sent: bytes | AsyncIterator[bytes], context: _Context) -> None:
        arrival = _arrival(context)
        try:
            async with aclosing(calls.answers(method, sent, arrival)) as messages:
                async for message in messages:
                    try:
                        await _write(context, message.SerializeToString(), patience)
                    except _StalledError as error:
                        await messages.athrow(error)
            context.set_trailing_metadata(((REQUEST_ID, arrival.request_id),))
            return
        except _StalledError as error:
            stalled = error
        except Exception as error:  # noqa: BLE001  # the table decides what leaves
            await abort(context, error, arrival.request_id)
        # It holds nothing any more: nobody waits for a caller that does not read.
        with calls.stalled():
            await _read_at_last(stalled)
        await abort(context, stalled, arrival.request_id)

    return handle


def _arrival(context: _Context) -> Arrival:
    left: float | None = context.time_remaining()  # None where there is none, whatever its types say
    deadline = None
    if left is not None and left < _LONGEST_SECONDS:
        deadline = time.monotonic() + left - min(_WORD_SECONDS, left / 10)
    return Arrival(join_metadata(context.invocation_metadata() or ()), context.peer(), "grpc", deadline)


async def _write(context: _Context, message: bytes, patience: float) -> None:
    writing = asyncio.ensure_future(context.write(message))
    try:
        await asyncio.wait_for(asyncio.shield(writing), patience)
    except TimeoutError as error:
        raise _StalledError(
            f"a message was not read within {patience:g} s: read faster, or ask for less", writing
        ) from error
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError("the caller has gone") from error
    except asyncio.CancelledError:
        writing.cancel()
        raise


async def _read_at_last(stalled: _StalledError) -> None:
    """Wait until a caller that was cut off reads on, to be told: gRPC has no other way to end a call."""
    try:
        await stalled.writing
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError("the caller has gone") from error
