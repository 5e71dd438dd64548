"""Loops over numbers, compiled. Nothing else imports numba."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba import njit

_P = ParamSpec("_P")
_T = TypeVar("_T")

_NEVER = {"nnan", "nsz"}  # NaN, and a difference between the zeros


def compiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function over arrays and numbers as machine code, which runs without Python's lock and starts no thread.

    Its numbers are never NaN, so that loops may look at several at once. What was compiled is kept beside the source,
    or below the home, for the next process.
    """
    try:
        made: Callable[_P, _T] = njit(cache=True, nogil=True, fastmath=_NEVER)(function)
    except RuntimeError:
        # Nothing can be written there: each process compiles for itself.
        made = njit(nogil=True, fastmath=_NEVER)(function)
    return made
