"""Receipts: what was answered under a request id, so that a call may be sent again without being made again."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from reidserve.errors import ReceiptError, ReidError

KEPT_SECONDS = 600.0
MOST_KEPT = 10_000
MOST_BYTES = 16 * 2**20

Key = tuple[str, str]
"""A caller's name and its request id: no caller sees what another one was answered."""

Work = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class _Receipt:
    """What was answered.

    Attributes:
        digest: of the request.
        answer: as it goes over the wire.
        until: when it is forgotten, on the clock.
    """

    digest: bytes
    answer: bytes
    until: float


class Receipts:
    """Answers by request id: MOST_KEPT of MOST_BYTES at most, each for KEPT_SECONDS; the oldest make room.

    Work that was begun under a request id goes on to its end even where its caller is gone: whoever sends it again
    waits for that. Failures are not kept, so that what failed may be tried again under its id.
    """

    def __init__(
        self, *, most: int = MOST_KEPT, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._clock = clock
        self._kept: OrderedDict[Key, _Receipt] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[Key, tuple[bytes, asyncio.Task[bytes]]] = {}

    async def once(self, key: Key, digest: bytes, work: Work) -> bytes:
        """What `work` answers, or answered when it was first asked for under this key; `digest` is of the request.

        Raises:
            ReceiptError: another request had this id.
        """
        while True:
            self._drop_old()
            if (kept := self._kept.get(key)) is not None:
                _check_same(key, kept.digest, digest)
                return kept.answer
            first = self._under_way.get(key)
            if first is None:
                task = asyncio.create_task(self._work(key, digest, work))
                task.add_done_callback(_seen)
                self._under_way[key] = digest, task
                return await asyncio.shield(task)
            _check_same(key, first[0], digest)
            try:
                return await asyncio.shield(first[1])
            except ReidError:
                # It may have failed of what was the first caller's own, such as its deadline.
                continue

    async def finish(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*(task for _, task in self._under_way.values()), return_exceptions=True)

    async def _work(self, key: Key, digest: bytes, work: Work) -> bytes:
        try:
            answer = await work()
        finally:
            del self._under_way[key]
        self._kept[key] = _Receipt(digest, answer, self._clock() + KEPT_SECONDS)
        self._bytes += len(answer)
        self._drop_old()
        return answer

    def _drop_old(self) -> None:
        now = self._clock()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if len(self._kept) <= self._most and self._bytes <= self._most_bytes and oldest.until > now:
                break
            self._kept.popitem(last=False)
            self._bytes -= len(oldest.answer)


def _seen(task: asyncio.Task[bytes]) -> None:
    """Look at how a task ended, which asyncio would complain of where its caller is gone."""
    if not task.cancelled():
        task.exception()


def _check_same(key: Key, first: bytes, digest: bytes) -> None:
    if first != digest:
        raise ReceiptError(
            f"request id {key[1]!r} was used for another request within the last {KEPT_SECONDS / 60:.0f} minutes: "
            "take a new id for what is new, and send the same again only under its own"
        )
