import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from reidserve.index.search import threads
from reidserve.index.search.threads import divide, undivided_products

WAIT = 30


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    helpers = ThreadPoolExecutor(2)
    monkeypatch.setattr(threads, "_count", lambda: 3)
    monkeypatch.setattr(threads, "_helpers", lambda: helpers)
    with helpers:
        yield


@pytest.fixture(autouse=True)
def divided() -> Iterator[None]:
    """NumPy's products take two threads, whatever the machine, and no test leaves them otherwise."""
    with threadpool_limits(2, "blas"):
        yield
        assert threads_of_products() == {2}


def threads_of_products() -> set[int]:
    libraries = [one for one in threadpool_info() if one["user_api"] == "blas" and "numpy" in one["filepath"]]
    return {one["num_threads"] for one in libraries}


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_all_work_is_done_once(count: int):
    done: list[int] = []
    divide([partial(done.append, place) for place in range(count)])
    assert sorted(done) == list(range(count))


def test_every_core_has_its_part():
    together = threading.Barrier(3, timeout=WAIT)
    divide([together.wait] * 3)


def test_whoever_asks_does_the_work_of_helpers_that_are_busy():
    release = threading.Event()
    busy = [threads._helpers().submit(release.wait, WAIT) for _ in range(2)]
    done: list[threading.Thread] = []
    divide([lambda: done.append(threading.current_thread())] * 5)
    assert done == [threading.current_thread()] * 5
    release.set()
    assert all(one.result() for one in busy)


def test_an_error_is_raised_once_nothing_goes_on():
    together, ended = threading.Barrier(3, timeout=WAIT), list[float]()

    def fail() -> None:
        together.wait()
        raise ValueError("no")

    def last() -> None:
        together.wait()
        time.sleep(0.1)
        ended.append(time.monotonic())

    with pytest.raises(ValueError, match="no"):
        divide([fail, fail, last])
    assert ended
    assert ended[0] <= time.monotonic()


def test_products_are_each_computed_by_one_thread_while_work_is_divided():
    seen: list[set[int]] = []
    divide([lambda: seen.append(threads_of_products())] * 4)
    assert seen == [{1}] * 4


def test_products_stay_undivided_until_the_last_who_wants_them_so_leaves():
    first, second = undivided_products(), undivided_products()
    with first:
        with second:
            assert threads_of_products() == {1}
        assert threads_of_products() == {1}
        divide([lambda: None])
        assert threads_of_products() == {1}
    assert threads_of_products() == {2}


def test_many_at_a_time_leave_the_products_as_they_were():
    vectors = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    expected = vectors @ vectors.T

    def often() -> float:
        furthest = 0.0
        for _ in range(50):
            found = np.empty_like(expected)
            parts = [slice(start, start + 128) for start in range(0, 512, 128)]
            divide([partial(np.matmul, vectors[part], vectors.T, out=found[part]) for part in parts])
            furthest = max(furthest, float(np.abs(found - expected).max()))
        return furthest

    with ThreadPoolExecutor(4) as callers:
        assert max(callers.map(lambda _: often(), range(4))) <= 1e-4


SERVING = """
import sys, os, signal, pathlib, asyncio, threadpoolctl
from reidserve.server import Settings, serve

def said():
    libraries = threadpoolctl.threadpool_info()
    print([one["num_threads"] for one in libraries if one["user_api"] == "blas" and "numpy" in one["filepath"]])

def ready(_):
    said()
    os.kill(os.getpid(), signal.SIGTERM)

import numpy
threadpoolctl.threadpool_limits(2, "blas")
said()
asyncio.run(serve(Settings(pathlib.Path(sys.argv[1]), [pathlib.Path(sys.argv[2])], "127.0.0.1:0"), on_ready=ready))
said()
"""


def test_a_server_leaves_products_undivided_for_as_long_as_it_serves(model: Path, gallery: Path):
    served = subprocess.run(
        [sys.executable, "-P", "-c", SERVING, model, gallery], capture_output=True, text=True, check=False
    )
    assert served.returncode == 0, served.stderr
    assert served.stdout.split() == ["[2]", "[1]", "[2]"]
