"""Calls: what every call goes through, whatever it asks: counted, parsed and answered under the error table."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from reidserve.errors import NotServingError, OverloadedError, ReaderStalledError
from reidserve.server.pipeline import Pipeline
from reidserve.server.status import abort

PATIENCE_SECONDS = 30.0
"""How long a caller may take to read one message of a stream."""

MOST_STALLED = 64
"""From so many callers on who do not read, no stream is begun: each keeps one message in memory until it is gone."""

_QUIET_SECONDS = 0.2
_QUIET_TRIES = 10

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Request = TypeVar("_Request", bound=Message)


class _StalledError(ReaderStalledError):
    """A caller does not read on.

    Attributes:
        writing: the message that is on its way to it.
    """

    def __init__(self, message: str, writing: "asyncio.Future[None]") -> None:
        super().__init__(message)
        self.writing = writing


class Calls:
    """The calls under way on a server.

    Attributes:
        pipeline: what answers; None while the server loads, and again when it drains.
    """

    def __init__(self, *, patience: float = PATIENCE_SECONDS) -> None:
        self.pipeline: Pipeline | None = None
        self._patience = patience
        self._stalled = 0
        self._taken = 0
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def unary(
        self, request_type: type[_Request], method: Callable[[Pipeline, _Request], Awaitable[Message]]
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """A handler that answers with one message.

        It takes raw bytes and parses them itself: a deserializer that raises would leak its error as UNKNOWN.
        """

        async def call(raw: bytes, context: _Context) -> bytes:
            with self._counted():
                try:
                    reply = await method(self._ready(), request_type.FromString(raw))
                    return reply.SerializeToString()
                except Exception as error:  # noqa: BLE001  # the table decides what leaves
                    await abort(context, error)

        return grpc.unary_unary_rpc_method_handler(call)

    def stream(
        self, request_type: type[_Request], method: Callable[[Pipeline, _Request], AsyncGenerator[Message]]
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """A handler that answers with a stream; what it holds is let go where the caller does not read on."""

        async def call(raw: bytes, context: _Context) -> None:
            with self._counted():
                try:
                    self._check_stalled()
                    async with contextlib.aclosing(method(self._ready(), request_type.FromString(raw))) as messages:
                        async for message in messages:
                            await self._write(context, message.SerializeToString())
                    return
                except _StalledError as error:
                    stalled = error
                except Exception as error:  # noqa: BLE001  # the table decides what leaves
                    await abort(context, error)
            # No longer counted: nobody waits for a caller that does not read.
            await self._end_stalled(context, stalled)

        return grpc.unary_stream_rpc_method_handler(call)

    async def drain(self, *, grace: float) -> None:
        """Refuse new calls, wait for those under way, at most `grace` seconds, and then for quiet.

        A stopping gRPC server cuts off calls that its transport has taken and asyncio has not yet seen, so callers
        are refused in words until none comes for a moment.
        """
        self.pipeline = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace)
        for _ in range(_QUIET_TRIES):
            before = self._taken
            await asyncio.sleep(_QUIET_SECONDS)
            if before == self._taken:
                break

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._taken += 1
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _ready(self) -> Pipeline:
        if self.pipeline is None:
            raise NotServingError("the server is loading or draining: try again soon")
        return self.pipeline

    def _check_stalled(self) -> None:
        if self._stalled >= MOST_STALLED:
            raise OverloadedError(f"{self._stalled} callers do not read what they asked for: try again later")

    async def _write(self, context: _Context, message: bytes) -> None:
        writing = asyncio.ensure_future(context.write(message))
        try:
            await asyncio.wait_for(asyncio.shield(writing), self._patience)
        except TimeoutError as error:
            raise _StalledError(
                f"a message was not read within {self._patience:g} s: read faster, or ask for less", writing
            ) from error
        except grpc.aio.InternalError as error:
            raise asyncio.CancelledError("the caller has gone") from error
        except asyncio.CancelledError:
            writing.cancel()
            raise

    async def _end_stalled(self, context: _Context, stalled: _StalledError) -> None:
        """Tell a caller that it was cut off, when it reads on at last: gRPC has no other way to end a call."""
        self._stalled += 1
        try:
            await stalled.writing
        except grpc.aio.InternalError as error:
            raise asyncio.CancelledError("the caller has gone") from error
        finally:
            self._stalled -= 1
        await abort(context, stalled)
