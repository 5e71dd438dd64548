import asyncio
import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import EmbeddingError
from reidserve.server.batcher import Batcher
from tests.conftest import HEIGHT, WIDTH


class Gate:
    """A session like the real one, which waits until it is opened and remembers the batches it saw."""

    engine = "fp32/onnxruntime-cpu"
    max_batch = 4

    def __init__(self, session: OnnxSession) -> None:
        self._session = session
        self.opened = threading.Event()
        self.batches: list[int] = []
        self.fault: Exception | None = None

    def __call__(self, batch, /):
        self.opened.wait(10)
        self.batches.append(len(batch))
        if self.fault is not None:
            raise self.fault
        rows = self._session(batch)
        rows[~batch.any(axis=(1, 2, 3))] = np.nan
        return rows


@pytest.fixture
def gate(model: Path) -> Gate:
    return Gate(OnnxSession((model / MODEL_FILE).read_bytes()))


@pytest.fixture
async def batcher(model: Path, gate: Gate):
    embedder = Embedder(read_artifact(model).contract, gate)
    running: Batcher = Batcher(lambda images: embedder.embed_each(np.stack(images)), most=4, name="engine")
    yield running
    await running.close()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (9, HEIGHT, WIDTH, 3), dtype=np.uint8)


async def start(batcher: Batcher, images) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(batcher.submit(image)) for image in images]
    await asyncio.sleep(0.05)
    return tasks


async def test_an_idle_engine_does_not_wait_and_a_busy_one_gathers_a_batch(batcher, gate, images, embedder: Embedder):
    # The first is alone in the engine when the other eight come.
    tasks = [*await start(batcher, images[:1]), *await start(batcher, images[1:])]
    gate.opened.set()
    answers = await asyncio.gather(*tasks)
    assert gate.batches == [1, 4, 4]
    np.testing.assert_array_equal(np.stack(answers), embedder.embed(images))


async def test_a_worker_that_answers_too_few_tells_its_callers_and_lives_on():
    answers: list[list[int]] = [[], [1]]
    batcher: Batcher = Batcher(lambda items: answers.pop(0), most=4, name="short")
    with pytest.raises(RuntimeError, match="1 items got 0 answers"):
        await batcher.submit("first")
    assert await batcher.submit("second") == 1
    await batcher.close()


async def test_a_failing_image_fails_its_caller_and_no_other(batcher, gate, images, embedder: Embedder):
    images[3] = 0
    tasks = await start(batcher, images)
    gate.opened.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[3], EmbeddingError)
    others = [place for place in range(9) if place != 3]
    np.testing.assert_array_equal(np.array([answers[place] for place in others]), embedder.embed(images)[others])


async def test_what_was_cancelled_while_it_queued_costs_no_engine_time(batcher, gate, images):
    tasks = await start(batcher, images)
    for task in tasks[5:]:
        task.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(gate.batches) == 5


async def test_a_fault_of_the_engine_fails_that_batch_and_the_worker_lives_on(batcher, gate, images):
    gate.opened.set()
    gate.fault = RuntimeError("device lost")
    with pytest.raises(RuntimeError, match="device lost"):
        await batcher.submit(images[0])
    gate.fault = None
    assert (await batcher.submit(images[0])).shape == (24,)


async def test_an_idle_worker_keeps_no_answer_in_memory():
    batcher: Batcher = Batcher(lambda items: [np.full(3, item) for item in items], most=4, name="large")
    answers = await asyncio.gather(*(batcher.submit(item) for item in range(6)))
    kept = [weakref.ref(answer) for answer in answers]
    assert [answer.tolist() for answer in answers] == [[item] * 3 for item in range(6)]
    del answers
    await asyncio.sleep(0.05)
    gc.collect()
    assert [answer() is None for answer in kept] == [True] * 6
    await batcher.close()
