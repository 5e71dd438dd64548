"""Counting in products, compiled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidserve.index.compiled import compiled
from reidserve.index.search.ranking import Scores

Counts = NDArray[np.int64]

_GROUP = 16  # products that a processor compares together
_STRIDE = 4 * _GROUP  # products looked at in a few instructions: seldom does one of them reach the last right entry
_LOWEST = np.float32(-2)  # below every product of unit vectors, above what is masked


@dataclass(frozen=True, slots=True, eq=False)
class Doubts:
    """What products of one tile leave in doubt.

    Attributes:
        near: int64 (m, 2), pairs of a right entry and the gallery place of a wrong one that is too near to tell.
        contenders: int64 (c, 2), pairs of a query and the place of a wrong entry that may be its best.
        products: float32 (c,), those of the contenders.
    """

    near: Counts
    contenders: Counts
    products: Scores


def count_wrong(
    products: Scores, first: int, starts: Counts, scores: Scores, tops: Scores, above: Counts, within: np.float32
) -> Doubts:
    """Compare a tile (Q, w) of products of wrong entries, all else -inf, with the scores (n,) of right ones.

    The tile's first column is gallery place `first`; right entries of query i stand from `starts[i]` to
    `starts[i + 1]`, best first. Each product clearly above a right entry adds 1 in `above` (n,) to the best such one;
    near is not farther than `within`. `tops` (Q,), the best products so far, are kept up.
    """
    return Doubts(*_count(products, first, starts, scores + within, scores - within, tops, above, 2 * within))


def bin_scores(products: Scores, bins: int) -> Counts:
    """How many products lie in each of `bins` equal parts of -1 to 1; what is -inf is left out."""
    counts = np.zeros(bins, np.int64)
    _bin(products, counts)
    return counts


@compiled
def _count(
    products: Scores,
    first: int,
    starts: Counts,
    highest: Scores,
    lowest: Scores,
    tops: Scores,
    above: Counts,
    contending: np.float32,
) -> tuple[Counts, Counts, Scores]:  # pragma: no cover  # compiled
    near, contenders = [(0, 0) for _ in range(0)], [(0, 0) for _ in range(0)]
    values = [np.float32(0) for _ in range(0)]
    places, lanes = np.empty(products.shape[1] + 1, np.int32), np.empty(_GROUP, np.float32)
    for query in range(len(products)):
        row, begin, end = products[query], starts[query], starts[query + 1]
        least = np.float32(np.inf) if begin == end else lowest[end - 1]
        found, top = _reaching(row, least, contending, tops[query], places, lanes)
        tops[query] = top
        contender = top - contending
        for place in places[:found]:
            product = row[place]
            if product >= contender:
                contenders.append((query, first + place))
                values.append(product)
            # The best right entry that the product is not clearly below.
            low, high = begin, end
            while low < high:
                middle = (low + high) // 2
                if product >= lowest[middle]:
                    high = middle
                else:
                    low = middle + 1
            while low < end and product <= highest[low]:
                near.append((low, first + place))
                low += 1
            if low < end:
                above[low] += 1
    return _pairs(near), _pairs(contenders), np.array(values, np.float32)


@compiled
def _reaching(
    row: Scores,
    least: np.float32,
    contending: np.float32,
    top: np.float32,
    places: NDArray[np.int32],
    lanes: Scores,
) -> tuple[int, np.float32]:  # pragma: no cover  # compiled
    """Write the places of products that reach the least or come near the best so far, and say how many they are.

    The second is the best product so far. Most products are nowhere near, and are passed over many at a time.
    """
    found, floor = 0, max(_LOWEST, min(least, top - contending))
    for begin in range(0, len(row) - _STRIDE + 1, _STRIDE):
        high = _highest(row, begin, lanes)
        if high > top:
            top = high
            floor = max(_LOWEST, min(least, top - contending))
        if high < floor:
            continue
        for group in range(begin, begin + _STRIDE, _GROUP):
            wanted = np.int32(0)
            for lane in range(_GROUP):
                wanted += np.int32(row[group + lane] >= floor)
            if wanted:
                for lane in range(_GROUP):
                    places[found] = group + lane
                    found += row[group + lane] >= floor
    for place in range(len(row) // _STRIDE * _STRIDE, len(row)):
        top = max(top, row[place])
        places[found] = place
        found += row[place] >= max(_LOWEST, min(least, top - contending))
    return found, top


@compiled
def _highest(row: Scores, begin: int, lanes: Scores) -> np.float32:  # pragma: no cover  # compiled
    """The best of a stride, lane by lane, which a processor compares together."""
    for lane in range(_GROUP):
        one, other = row[begin + lane], row[begin + _GROUP + lane]
        third, fourth = row[begin + 2 * _GROUP + lane], row[begin + 3 * _GROUP + lane]
        one = one if one > other else other
        third = third if third > fourth else fourth
        lanes[lane] = one if one > third else third
    high: np.float32 = lanes[0]
    for lane in range(1, _GROUP):
        high = lanes[lane] if lanes[lane] > high else high
    return high


@compiled
def _pairs(listed: list[tuple[int, int]]) -> Counts:  # pragma: no cover  # compiled
    pairs = np.empty((len(listed), 2), np.int64)
    for place, pair in enumerate(listed):
        pairs[place, 0], pairs[place, 1] = pair
    return pairs


@compiled
def _bin(products: Scores, counts: Counts) -> None:  # pragma: no cover  # compiled
    bins = len(counts)
    half = bins / 2
    for query in range(len(products)):
        for product in products[query]:
            if product >= -2:
                counts[max(0, min(bins - 1, int((product + 1) * half)))] += 1
