"""Bodies of requests: read within bounds of size, time and memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from reidserve.errors import MessageError, MessageStalledError, MessageTooLargeError, OverloadedError

AT_ONCE = 8
"""How many bodies of the largest size may be on their way: admission counts calls, which these are not yet."""

_LINGER_SECONDS = 1.0


class Bodies:
    """Reads bodies of up to `most` bytes that come within so many seconds."""

    def __init__(self, most: int, *, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._coming = 0

    async def read(self, request: Request, *, until: float | None = None) -> bytes:
        """The body of a request; `until` is when its call must have ended, on time.monotonic's clock.

        Raises:
            MessageError: it is compressed.
            MessageTooLargeError: it has more bytes than are accepted; they are not read.
            MessageStalledError: it does not come in time.
            OverloadedError: too much is on its way already.
            ClientDisconnect: nobody sends it any more.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise MessageError("a body must come as it is, without a Content-Encoding")
        said, chunks = request.headers.get("content-length", ""), request.stream()
        if said.isdigit() and int(said) > self._most:
            await _discard(request, chunks)
            raise self._too_large(int(said))
        # The loop's clock is time.monotonic's.
        now = asyncio.get_running_loop().time()
        limit = now + self._seconds if until is None else min(until, now + self._seconds)
        body = bytearray()
        try:
            async with asyncio.timeout_at(limit):
                async for chunk in chunks:
                    body += chunk
                    self._coming += len(chunk)
                    if len(body) > self._most:
                        break
                    if self._coming > AT_ONCE * self._most:
                        raise OverloadedError("too many large bodies are on their way: try again soon")
        except TimeoutError as error:
            raise MessageStalledError(f"the body did not come within {limit - now:.3g} s: send it faster") from error
        finally:
            self._coming -= len(body)
        if len(body) > self._most:
            await _discard(request, chunks)
            raise self._too_large(len(body))
        return bytes(body)

    def _too_large(self, size: int) -> MessageTooLargeError:
        return MessageTooLargeError(f"a body may have {self._most:,} bytes, got {size:,} or more")


async def _discard(request: Request, chunks: AsyncIterator[bytes]) -> None:
    """Let a caller finish what it sends, for a moment: most read an answer only then."""
    if "expect" in request.headers:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            async for _ in chunks:
                pass
