"""Draws of chance: every identity, camera and picture has a generator of its own, so none moves another."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

from numpy.random import Generator, default_rng

T = TypeVar("T")


def generator(*path: str | int) -> Generator:
    """Give the generator that belongs to a path of words and numbers (at least 0), always the same one."""
    return default_rng([zlib.crc32(word.encode()) if isinstance(word, str) else word for word in path])


def pick(rng: Generator, items: Sequence[T]) -> T:
    """Draw one item, each equally likely."""
    # Generator.choice turns the items into an array first, and takes ten times as long.
    return items[int(rng.integers(len(items)))]


def chance(rng: Generator, probability: float) -> bool:
    """Draw yes with a probability, 0 to 1."""
    return float(rng.random()) < probability


def between(rng: Generator, low: float, high: float) -> float:
    """Draw a number from low to high."""
    return low + (high - low) * float(rng.random())
