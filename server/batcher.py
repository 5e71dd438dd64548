"""The batcher: single items in, batches to a worker thread, each answer to its caller."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from reidserve.errors import ReidError

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Batcher(Generic[_Item, _Answer]):
    """Greedy batching: a batch is whatever queued while the worker was busy, and an idle worker never waits.

    `compute` gets one to `most` items and gives an answer or an error for each, in their order. What was cancelled
    while it queued is dropped; an error reaches the caller whose item caused it, and no other.
    """

    def __init__(
        self, compute: Callable[[Sequence[_Item]], Sequence[_Answer | ReidError]], *, most: int, name: str
    ) -> None:
        self._compute = compute
        self._most = most
        self._queue: deque[tuple[_Item, asyncio.Future[_Answer]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._worker = asyncio.create_task(self._work(), name=name)

    async def submit(self, item: _Item) -> _Answer:
        """The answer to one item; raises the error that it caused."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((item, answer))
        self._arrived.set()
        return await answer

    async def close(self) -> None:
        """Stop; nobody may be waiting any more."""
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if batch := self._take():
                await self._answer(batch)
                # Answers may be large: they are their callers' from here on.
                del batch
            else:
                self._arrived.clear()

    async def _answer(self, batch: Sequence[tuple[_Item, asyncio.Future[_Answer]]]) -> None:
        items = [item for item, _ in batch]
        results: Sequence[_Answer | Exception]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(items)} items got {len(results)} answers")
        except Exception as error:  # noqa: BLE001  # nobody's fault: all are told, and the worker lives on
            results = [error] * len(batch)
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.cancelled():
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

    def _take(self) -> list[tuple[_Item, asyncio.Future[_Answer]]]:
        batch: list[tuple[_Item, asyncio.Future[_Answer]]] = []
        while self._queue and len(batch) < self._most:
            item, answer = self._queue.popleft()
            if not answer.cancelled():
                batch.append((item, answer))
        return batch
