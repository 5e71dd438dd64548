"""HTTP beside gRPC, in the same event loop and without signals of its own. Nothing else imports uvicorn."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from reidserve.errors import ServerError
from reidserve.server.guard.tls import Certificate, https_context
from reidserve.server.guard.watched import Watched
from reidserve.server.settings import read_address

HEAD_SECONDS = 30.0
"""How long a connection may take to send the head of a request; uvicorn would wait for ever."""

READ_SECONDS = 30.0
"""How long a connection may take nothing of what is sent to it."""

IDLE_SECONDS = 75
"""How long a connection may be idle between requests: longer than what stands before a server keeps its own."""

MOST_CONNECTIONS = 2048
MOST_HEAD_BYTES = 2**15

_LAST_WORDS_SECONDS = 1  # for replies that are on their way when the last call is done


@asynccontextmanager
async def listening_http(app: Starlette, address: str, certificate: Watched[Certificate] | None) -> AsyncIterator[str]:
    """Answer HTTP at an address while the block lasts, which gets the address with its port.

    Raises:
        ServerError: the address cannot be listened on.
    """
    bound = _bind(address)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        log_level="error",  # a line for each connection that talks nonsense would help nobody
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
        ssl_context_factory=None if certificate is None else lambda config, default: https_context(certificate),
    )
    server = _Server(config)
    serving, started = asyncio.create_task(server.serve(sockets=[bound])), asyncio.create_task(server.listening.wait())
    try:
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            raise ServerError(f"HTTP cannot be served at {address}") from serving.exception()
        yield f"{address.rpartition(':')[0]}:{bound.getsockname()[1]}"
    finally:
        started.cancel()
        server.should_exit = True
        await asyncio.wait({serving})
        bound.close()
    await serving  # whatever went wrong with it


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever serves, and says when it listens.

    Attributes:
        listening: set when it does.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listening.set()


class _Protocol(H11Protocol):
    """A connection that is closed where the head of a request does not come, or an answer is not taken."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._head = _Timer(self.loop, self._give_up)
        # Closing would wait until all is taken.
        self._reader = _Timer(self.loop, self.transport.abort)
        self._head.start(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_asked():
            self._head.stop()
        else:
            self._head.start(HEAD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        if not self._is_asked():
            super().send_400_response(msg)
            return
        # Behind a request came what is none: an answer cannot be told from one to that any more.
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.start(READ_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head.stop()
        self._reader.stop()

    def _give_up(self) -> None:
        if not self._is_asked():
            self.transport.close()

    def _is_asked(self) -> bool:
        """Whether a request is under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete


class _Timer:
    """Acts once its time is over, unless it is stopped before; starting it again changes nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
        self._loop = loop
        self._act = act
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, self._over)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _over(self) -> None:
        self._handle = None
        self._act()


def _bind(address: str) -> socket.socket:
    host, port = read_address(address, name="http")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServerError(f"{address} cannot be listened on: {error.strerror}: is the port in use?") from error
