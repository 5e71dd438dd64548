"""The batcher: single images in, batches to the engine, each answer to its caller."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reidserve.embed import Embedder, Embeddings, Image
from reidserve.errors import EmbeddingError


class Batcher:
    """Greedy batching: a batch is whatever queued while the engine was busy, and an idle engine never waits.

    What was cancelled while it queued is dropped. A failure reaches the callers who caused it and no others.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._queue: deque[tuple[Image, asyncio.Future[Embeddings]]] = deque()
        self._arrived = asyncio.Event()
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def embed(self, image: Image) -> Embeddings:
        """The embedding (dim,) of one prepared image.

        Raises:
            EmbeddingError: the model gave no embedding for it.
        """
        answer: asyncio.Future[Embeddings] = asyncio.get_running_loop().create_future()
        self._queue.append((image, answer))
        self._arrived.set()
        return await answer

    async def close(self) -> None:
        """Stop; nobody may be waiting any more."""
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._engine.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not batch:
                self._arrived.clear()
                continue
            images = np.stack([image for image, _ in batch])
            try:
                results: list[Embeddings | EmbeddingError] = await loop.run_in_executor(
                    self._engine, self._embedder.embed_each, images
                )
            except Exception as error:  # noqa: BLE001  # the engine's own; the worker must live on
                _fail(batch, error)
                continue
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.cancelled():
                    continue
                if isinstance(result, EmbeddingError):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    def _take(self) -> list[tuple[Image, asyncio.Future[Embeddings]]]:
        batch: list[tuple[Image, asyncio.Future[Embeddings]]] = []
        while self._queue and len(batch) < self._embedder.max_batch:
            image, answer = self._queue.popleft()
            if not answer.cancelled():
                batch.append((image, answer))
        return batch


def _fail(batch: list[tuple[Image, asyncio.Future[Embeddings]]], error: Exception) -> None:
    for _, answer in batch:
        if not answer.cancelled():
            answer.set_exception(error)
