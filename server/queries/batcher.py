"""The batcher: single items in, batches to worker threads, each answer to its caller."""

import asyncio
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from reidserve.errors import EngineStuckError, ReidError

PASSED_OVER = 16
"""Items behind go after those ahead, but after so many of those one of them has its turn."""

BEHIND_PART = 4
"""Of a batch, items behind take at most one place in so many: whoever comes ahead meanwhile waits no longer for it."""

_CLOSING_SECONDS = 0.001
_WATCHES = 10  # looks at what is under way within the time that it may take

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@dataclass(slots=True, eq=False)
class _Batch(Generic[_Item, _Answer]):
    items: Sequence[_Item]
    answers: Sequence["asyncio.Future[_Answer]"]
    begun: float
    stuck: bool = False


class Batcher(Generic[_Item, _Answer]):
    """Greedy batching: a batch is whatever queued while every worker was busy, and an idle worker never waits.

    `compute` gets one to `most` items and gives an answer or an error for each, in their order; an error reaches the
    caller whose item caused it, and no other. Items that nobody waits for any more leave the queue and cost nothing.
    Items go ahead or behind; the latter go last, and still get at least one turn in PASSED_OVER.

    A call of `compute` that takes longer than `patience` seconds is stuck: those who wait are told, and so is whoever
    comes, until it and all others that are stuck return. Its thread is no reason for the process not to end.

    Attributes:
        stuck: whether a call has taken longer than it should.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[_Item]], Sequence[_Answer | ReidError]],
        *,
        most: int,
        name: str,
        workers: int = 1,
        patience: float = math.inf,
        tell: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self.stuck = False
        self._compute = compute
        self._most = most
        self._name = name
        self._patience = patience
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._waking = False
        # What follows is the threads' too, and changed under this lock alone.
        self._changed = threading.Condition()
        self._lanes = _Lanes[_Item, _Answer]()
        self._under_way = set[_Batch[_Item, _Answer]]()
        self._idle = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{place}", daemon=True) for place in range(workers)
        ]
        for thread in self._threads:
            thread.start()
        self._watching = None if patience == math.inf else self._loop.call_later(0, self._watch)

    @property
    def idle(self) -> bool:
        """Whether nothing is computed and nothing waits."""
        with self._changed:
            return self._idle == len(self._threads) and not len(self._lanes)

    @property
    def waiting(self) -> int:
        """How many items wait for a worker."""
        return len(self._lanes)

    def check(self) -> None:
        """See that an item would be computed.

        Raises:
            EngineStuckError: a call has not returned.
        """
        if self.stuck:
            raise self._stuck_error()

    def submit(self, item: _Item, *, behind: bool = False) -> "asyncio.Future[_Answer]":
        """The answer to one item, or the error that it caused; cancel it to give the item up.

        Raises:
            EngineStuckError: a call has not returned.
        """
        self.check()
        answer: asyncio.Future[_Answer] = self._loop.create_future()
        with self._changed:
            self._lanes.append(item, answer, behind=behind)
        answer.add_done_callback(self._forget)
        if not self._waking:
            # What comes in one turn of the loop goes together.
            self._waking = True
            self._loop.call_soon(self._wake)
        return answer

    async def close(self) -> None:
        """Stop; nobody may be waiting any more. What is stuck is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while any(thread.is_alive() for thread in self._threads) and not self.stuck:
            await asyncio.sleep(_CLOSING_SECONDS)
        if self._watching is not None:
            self._watching.cancel()

    def _wake(self) -> None:
        self._waking = False
        with self._changed:
            self._changed.notify(len(self._lanes))

    def _forget(self, answer: "asyncio.Future[_Answer]") -> None:
        if answer.cancelled():
            with self._changed:
                self._lanes.remove(answer)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            results: Sequence[_Answer | Exception]
            try:
                results = self._compute(batch.items)
                if len(results) != len(batch.items):
                    raise RuntimeError(f"{len(batch.items)} items got {len(results)} answers")
            except Exception as error:  # noqa: BLE001  # nobody's fault: all are told, and the worker lives on
                results = [error] * len(batch.items)
            with self._changed:
                self._under_way.remove(batch)
            try:
                self._loop.call_soon_threadsafe(self._end, batch, results, time.monotonic() - batch.begun)
            except RuntimeError:  # the loop is closed, so nobody waits
                return
            # Answers may be large: they are their callers' from here on.
            del batch, results

    def _next(self) -> _Batch[_Item, _Answer] | None:
        """What queued meanwhile, at once, or what comes next; None where nothing will."""
        with self._changed:
            self._idle += 1
            while not self._closing:
                share = -(-len(self._lanes) // self._idle)
                items, answers = self._lanes.take(min(share, self._most), behind=max(1, self._most // BEHIND_PART))
                if items:
                    self._idle -= 1
                    batch = _Batch(items, answers, time.monotonic())
                    self._under_way.add(batch)
                    return batch
                self._changed.wait()
            return None

    def _end(self, batch: _Batch[_Item, _Answer], results: Sequence[_Answer | Exception], seconds: float) -> None:
        if batch.stuck:
            with self._changed:
                self.stuck = any(other.stuck for other in self._under_way)
        self._tell(len(batch.items), seconds)
        for answer, result in zip(batch.answers, results, strict=True):
            if answer.done():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

    def _watch(self) -> None:
        self._watching = self._loop.call_later(self._patience / _WATCHES, self._watch)
        now = time.monotonic()
        with self._changed:
            late = [batch for batch in self._under_way if now - batch.begun > self._patience and not batch.stuck]
            waiting = self._lanes.clear() if late else []
        for batch in late:
            self.stuck = batch.stuck = True
            waiting += batch.answers
        for answer in waiting:
            if not answer.done():
                answer.set_exception(self._stuck_error())

    def _stuck_error(self) -> EngineStuckError:
        return EngineStuckError(
            f"the {self._name} has been computing one batch for more than {self._patience:g} s: it is used again when "
            "that ends; if it does not, restart the server"
        )


async def settled(answers: Sequence["asyncio.Future[_Answer]"]) -> list[_Answer | ReidError]:
    """What each of a batcher's answers came to; an error that is no item's own fault is raised."""
    results = await asyncio.gather(*answers, return_exceptions=True)
    kept: list[_Answer | ReidError] = []
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, ReidError):
            raise result
        kept.append(result)
    return kept


class _Lanes(Generic[_Item, _Answer]):
    """Items that wait, ahead and behind; what nobody waits for any more is not among them."""

    def __init__(self) -> None:
        self._ahead: OrderedDict[asyncio.Future[_Answer], _Item] = OrderedDict()
        self._behind: OrderedDict[asyncio.Future[_Answer], _Item] = OrderedDict()
        self._passed = 0

    def __len__(self) -> int:
        return len(self._ahead) + len(self._behind)

    def append(self, item: _Item, answer: "asyncio.Future[_Answer]", *, behind: bool) -> None:
        """Wait in a lane until it is taken, or given up."""
        (self._behind if behind else self._ahead)[answer] = item

    def remove(self, answer: "asyncio.Future[_Answer]") -> None:
        """Let go of an item that was given up."""
        self._ahead.pop(answer, None)
        self._behind.pop(answer, None)

    def take(self, most: int, *, behind: int) -> tuple[list[_Item], list["asyncio.Future[_Answer]"]]:
        """At most so many items, of which at most `behind` from that lane, and their answers."""
        items, answers = list[_Item](), list[asyncio.Future[_Answer]]()
        while len(items) < most and (lane := self._next(behind=behind > 0)):
            answer, item = lane.popitem(last=False)
            # It may have been given up in this turn of the loop.
            if not answer.done():
                items.append(item)
                answers.append(answer)
                behind -= lane is self._behind
        return items, answers

    def clear(self) -> list["asyncio.Future[_Answer]"]:
        """Take out everything; the answers are still owed."""
        answers = [*self._ahead, *self._behind]
        self._ahead.clear()
        self._behind.clear()
        return answers

    def _next(self, *, behind: bool) -> "OrderedDict[asyncio.Future[_Answer], _Item] | None":
        if behind and self._behind and (not self._ahead or self._passed >= PASSED_OVER):
            self._passed = 0
            return self._behind
        if not self._ahead:
            return None
        self._passed += bool(self._behind)
        return self._ahead
