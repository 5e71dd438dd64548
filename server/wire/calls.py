"""Calls: what every call goes through, whatever it asks and however it came."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from reidserve.errors import DeadlineError, MetadataError, OverloadedError, PermissionDeniedError, RateLimitedError
from reidserve.server.call import Arrival, Call
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.audit import Audit
from reidserve.server.guard.gate import Gate
from reidserve.server.telemetry import Record, Telemetry
from reidserve.server.wire.fields import parse
from reidserve.server.wire.methods import Method, galleries_of, images_of
from reidserve.server.wire.status import status_of

DEFAULT_DEADLINE_SECONDS = 30.0
"""How long a call may take whose caller set no deadline; of a stream of answers, each of them. Imports, reloads and
snapshots have none: they take as long as what they are of is large."""

IDLE_SECONDS = 60.0
"""How long a caller may take to send the next message of a stream."""

MOST_STALLED = 64
"""From so many callers on who do not read, no stream is begun: each keeps one message in memory until it is gone."""

MOST_DUPLEX = 64
"""How many streams of requests may be under way: each holds a piece of entries in memory."""

MOST_METADATA, MOST_METADATA_BYTES = 64, 6 * 1024
"""How many names of metadata a call may have, and how many bytes they and their values may be together. (From 8 KiB
on, gRPC refuses in its own words.)"""

_LOOK_SECONDS = 0.5

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entered:
    """A call that was let in.

    Attributes:
        method: what it asks.
        served: what answers it, lent until it ends.
        call: who asks, and for how long.
        record: what telemetry hears of it.
    """

    method: Method
    served: Served
    call: Call
    record: Record


class Calls:
    """The calls under way on a server.

    Every one is told to telemetry, let in by the gate, parsed, held to its caller's scopes and rate, and
    answered before its deadline or not at all.

    Attributes:
        deployment: lends what answers.
    """

    def __init__(
        self,
        deployment: Deployment,
        gate: Gate,
        telemetry: Telemetry,
        *,
        default_deadline: float = DEFAULT_DEADLINE_SECONDS,
        idle: float = IDLE_SECONDS,
        audit: Audit | None = None,
    ) -> None:
        self.deployment = deployment
        self._gate = gate
        self._telemetry = telemetry
        self._default_deadline = default_deadline
        self._idle = idle
        self._audit = Audit() if audit is None else audit
        self._stalled = 0
        self._duplex = 0

    async def answer(self, method: Method, raw: bytes, arrival: Arrival) -> Message:
        """The answer to a call of one message for one.

        Raises:
            ReidError, DecodeError: it is refused; `status_of` says how that leaves.
        """
        with self._entered(method, arrival) as entered:
            if method.takes_places:
                # Refused unread: at ten times its capacity a server has little time for those whom it cannot answer.
                entered.served.pipeline.check_places(entered.call.deadline)
            request = self._read(entered, raw)
            async with _until(entered.call.deadline):
                answer: Message = await method.answer(entered.served, request, entered.call)
                return answer

    async def answers(
        self, method: Method, sent: bytes | AsyncIterator[bytes], arrival: Arrival
    ) -> AsyncGenerator[Message]:
        """The answers to a call that gets a stream of them, for one message or a stream of them.

        Whoever takes them and fails throws that into the generator, so that it is counted.

        Raises:
            ReidError, DecodeError: it is refused; `status_of` says how that leaves.
        """
        with self._entered(method, arrival) as entered, self._stream_place(method):
            # Parsed and checked before anything is begun.
            asked = self._read(entered, sent) if isinstance(sent, bytes) else self._read_each(entered, sent)
            async with aclosing(method.answer(entered.served, asked, entered.call)) as messages:
                while True:
                    async with _until(self._deadline(method, arrival)):
                        message = await anext(messages, None)
                    if message is None:
                        return
                    yield message

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Count a caller who does not read what it got, while its last message is in memory."""
        self._stalled += 1
        try:
            yield
        finally:
            self._stalled -= 1

    @contextmanager
    def _entered(self, method: Method, arrival: Arrival) -> Iterator[_Entered]:
        """Let a call in, and tell how it ended."""
        with self._telemetry.call(method.full_name, arrival) as record:
            try:
                _check_metadata(arrival.metadata)
                caller = self._gate.admit(arrival)
                record.caller = caller.name
                with self.deployment.lent() as served:
                    until = self._deadline(method, arrival)
                    call = Call(method.full_name, arrival.request_id, caller, until, arrival.peer)
                    yield _Entered(method, served, call, record)
            except Exception as error:
                code, record.reason, _ = status_of(error)
                record.code = code.name
                if code is grpc.StatusCode.INTERNAL:
                    _logger.error("a call failed by our own fault", exc_info=error)
                raise

    @contextmanager
    def _stream_place(self, method: Method) -> Iterator[None]:
        if self._stalled >= MOST_STALLED:
            raise OverloadedError(f"{self._stalled} callers do not read what they asked for: try again later")
        duplex = method.kind == "duplex"
        if duplex and self._duplex >= MOST_DUPLEX:
            raise OverloadedError(f"{self._duplex} imports are under way, the most that are taken: try again later")
        self._duplex += duplex
        try:
            yield
        finally:
            self._duplex -= duplex

    def _deadline(self, method: Method, arrival: Arrival) -> float:
        if arrival.deadline is not None:
            return arrival.deadline
        endless = method.kind == "duplex" or method.scope == "admin"
        return math.inf if endless else time.monotonic() + self._default_deadline

    def _read(self, entered: _Entered, raw: bytes) -> Message:
        """The request of a call, whose caller may ask it and has not sent too much."""
        request = parse(entered.method.request, raw)
        self._check_scope(entered, request)
        self._spend(entered, images_of(request))
        return request

    async def _read_each(self, entered: _Entered, sent: AsyncIterator[bytes]) -> AsyncGenerator[Message]:
        """The requests of a stream; who sends more than its rate is read more slowly."""
        checked: set[str] = set()
        raw = await self._first(sent)
        while raw is not None:
            request = parse(entered.method.request, raw)
            gallery = getattr(request, "gallery", "")
            if not checked or (gallery and gallery not in checked):
                self._check_scope(entered, request)
                checked.add(gallery)
            while True:
                try:
                    self._spend(entered, images_of(request))
                    break
                except RateLimitedError as error:
                    await asyncio.sleep(error.retry_after)
            yield request
            raw = await self._next(sent)

    async def _first(self, sent: AsyncIterator[bytes]) -> bytes | None:
        """The first message of a stream: who sends none keeps no server from ending."""
        reading = asyncio.ensure_future(self._next(sent))
        try:
            while not (await asyncio.wait({reading}, timeout=_LOOK_SECONDS))[0]:
                with self.deployment.lent():  # it is refused, as a call that came now would be
                    pass
            return await reading
        finally:
            reading.cancel()

    async def _next(self, sent: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(self._idle):
                return await anext(sent, None)
        except TimeoutError as error:
            raise DeadlineError(f"nothing was sent for {self._idle:g} s: go on behind what was acknowledged") from error

    def _check_scope(self, entered: _Entered, request: Message) -> None:
        for gallery in galleries_of(request, entered.served):
            try:
                entered.call.caller.check(entered.method.scope, gallery)
            except PermissionDeniedError as error:
                if entered.method.scope != "search":
                    self._audit.record(entered.call, "refused", gallery, result=error.reason)
                raise

    def _spend(self, entered: _Entered, images: int) -> None:
        self._gate.spend(entered.call.caller, images)
        entered.record.images += images


def _check_metadata(metadata: Mapping[str, str]) -> None:
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if len(metadata) > MOST_METADATA or size > MOST_METADATA_BYTES:
        raise MetadataError(
            f"a call may have {MOST_METADATA} names of metadata and {MOST_METADATA_BYTES:,} bytes of them, "
            f"got {len(metadata)} and {size:,}"
        )


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    """What is in the block ends by its deadline.

    Raises:
        DeadlineError: it has not, or is too late to begin.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError("the call's deadline had passed before it was begun")
    if left == math.inf:
        yield
        return
    limit = asyncio.timeout(left)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineError("the call was not answered before its deadline: give it longer, or ask for less") from error
