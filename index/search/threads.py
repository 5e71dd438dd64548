"""The threads of searches. Work is divided among them here and never by the BLAS. Nothing else asks for threadpoolctl.

A BLAS that divides a product has its threads wait for each other, and keeps them spinning for a good while in
case another product follows: beside an engine on the same cores, a third of a server's time (benchmarks/workers.py).
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

from reidserve.embed.cores import cores


def divide(work: Sequence[Callable[[], object]]) -> None:
    """Do all of it, each once and in any order: on this thread, and on one of every other core that is free.

    Of several errors one is raised, once nothing of the work goes on.
    """
    left = iter(work)

    def take() -> None:
        for some in left:
            some()

    with undivided_products():
        helping = [_helpers().submit(take) for _ in range(min(len(work), _count()) - 1)]
        try:
            take()
        finally:
            # Whoever has not begun by now has nothing left to do.
            wait([one for one in helping if not one.cancel()])
        for one in helping:
            if not one.cancelled():
                one.result()


@contextmanager
def undivided_products() -> Iterator[None]:
    """Have each of NumPy's matrix products computed by the thread that asks for it, until the last block ends."""
    _products.enter()
    try:
        yield
    finally:
        _products.leave()


class _Products:
    """How many want products undivided. Limits that were each set and reset by itself would restore one another's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._limit: Any = None  # threadpoolctl has no types

    def enter(self) -> None:
        with self._lock:
            if not self._blocks:
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._blocks += 1

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._limit.restore_original_limits()


_products = _Products()


@functools.cache
def _controller() -> Any:  # noqa: ANN401
    return ThreadpoolController()  # it looks at every library of the process, which takes longer than a search


@functools.cache
def _count() -> int:
    return cores()


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, _count() - 1), thread_name_prefix="search")
