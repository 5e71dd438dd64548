"""Decoding ahead: threads prepare the next images while the engine computes these."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

DECODERS = 2

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    ahead: int,
    threads: int = DECODERS,
    give_up: Callable[[], object] = lambda: None,
) -> Generator[_Result, None, None]:
    """`map` in order, with threads working at most `ahead` items in front of the consumer; close it to stop them.

    Where it ends early, `give_up` is called before what is under way is waited for, so as to shorten it.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BaseException:
        give_up()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
