import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import EmbeddingError, EngineStuckError
from reidserve.server.queries.batcher import BEHIND_PART, PASSED_OVER, Batcher, settled
from tests.conftest import HEIGHT, WIDTH


class Gate:
    """A session like the real one, which waits until it is opened and remembers the batches it saw."""

    engine = "fp32/onnxruntime-cpu"
    max_batch = 4
    lanes = 1

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


async def start(batcher: Batcher, images) -> list[asyncio.Future]:
    answers = [batcher.submit(image) for image in images]
    await asyncio.sleep(0.05)
    return answers


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


class Slate:
    """A computation that writes down its batches, and waits for its first one's end until it is told."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.batches: list[list] = []

    def __call__(self, items):
        self.go.wait(10)
        self.batches.append(list(items))
        return items


async def test_items_behind_go_last_but_have_their_turn_and_leave_room_in_every_batch():
    slate = Slate()
    batcher: Batcher = Batcher(slate, most=4, name="lanes")
    first = await start(batcher, ["first"])
    behind = [batcher.submit(f"b{place}", behind=True) for place in range(6)]
    ahead = [batcher.submit(place) for place in range(40)]
    slate.go.set()
    await asyncio.gather(*first, *behind, *ahead)
    assert (PASSED_OVER, 4 // BEHIND_PART) == (16, 1)
    taken = [item for batch in slate.batches[1:] for item in batch]
    assert taken == [*range(16), "b0", *range(16, 32), "b1", *range(32, 40), "b2", "b3", "b4", "b5"]
    assert [len(batch) for batch in slate.batches[1:]] == [4] * 10 + [3, 1, 1, 1]
    await batcher.close()


async def test_several_workers_share_what_waits_and_compute_at_once():
    both = threading.Barrier(2, timeout=10)

    def compute(items):
        both.wait()
        return [len(items)] * len(items)

    batcher: Batcher = Batcher(compute, most=4, name="pair", workers=2)
    assert await asyncio.gather(*(batcher.submit(place) for place in range(6))) == [3] * 6
    await batcher.close()


async def test_what_is_given_up_leaves_the_queue_at_once(batcher, gate, images):
    answers = [*await start(batcher, images[:1]), *await start(batcher, images[1:])]
    assert len(batcher._lanes) == 8
    for answer in answers[1:]:
        answer.cancel()
    await asyncio.sleep(0)
    assert len(batcher._lanes) == 0
    gate.opened.set()
    await answers[0]
    assert gate.batches == [1]


async def test_settled_answers_keep_errors_of_items_and_raise_what_is_nobodys_fault():
    error = EmbeddingError("of the second")
    batcher: Batcher = Batcher(lambda items: [1, error], most=4, name="two")
    assert await settled([batcher.submit("a"), batcher.submit("b")]) == [1, error]
    with pytest.raises(RuntimeError, match="1 items got 2 answers"):
        await settled([batcher.submit("a")])
    await batcher.close()


async def test_an_engine_that_hangs_is_noticed_and_used_again_when_it_comes_back(
    model: Path, gate: Gate, images, embedder: Embedder
):
    slow = Embedder(read_artifact(model).contract, gate)
    batcher: Batcher = Batcher(lambda images: slow.embed_each(np.stack(images)), most=4, name="engine", patience=0.2)
    waiting = [*await start(batcher, images[:1]), *await start(batcher, images[1:])]
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(one) for one in told} == {EngineStuckError}
    assert "engine has been computing one batch for more than 0.2 s" in str(told[0])
    with pytest.raises(EngineStuckError):
        batcher.submit(images[0])
    gate.opened.set()
    async with asyncio.timeout(10):
        while batcher.stuck:
            await asyncio.sleep(0.01)
    np.testing.assert_array_equal(await batcher.submit(images[5]), embedder.embed(images[5:6])[0])
    assert gate.batches == [1, 1], "those that were told are not computed"
    await batcher.close()


async def test_an_engine_of_which_one_call_hangs_is_stuck_until_that_one_returns():
    returns = {"first": threading.Event(), "second": threading.Event()}
    batcher: Batcher = Batcher(
        lambda items: [returns[item].wait(10) for item in items], most=1, workers=2, name="engine", patience=0.1
    )
    told = await asyncio.gather(*map(batcher.submit, returns), return_exceptions=True)
    assert {type(one) for one in told} == {EngineStuckError}
    returns["first"].set()
    async with asyncio.timeout(10):
        while len(batcher._under_way) == 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    with pytest.raises(EngineStuckError):
        batcher.check()
    returns["second"].set()
    async with asyncio.timeout(10):
        while batcher.stuck:
            await asyncio.sleep(0.01)
    returns["third"] = returns["first"]
    assert await batcher.submit("third")
    await batcher.close()


HANGING = """
import asyncio, threading
from reidserve.errors import EngineStuckError
from reidserve.server.queries.batcher import Batcher

async def main():
    batcher = Batcher(lambda items: threading.Event().wait(), most=4, name="engine", patience=0.05)
    try:
        await batcher.submit("image")
    except EngineStuckError:
        print("told")
    await batcher.close()

asyncio.run(main())
print("ended")
"""


def test_a_process_whose_engine_never_comes_back_can_end():
    ran = subprocess.run([sys.executable, "-P", "-c", HANGING], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "told\nended\n", "")
