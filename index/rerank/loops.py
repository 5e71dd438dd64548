"""Loops over products and encodings, compiled.

They hold no lock of Python and start no thread: callers share the rows out among threads of their own, between
matrix products and never beside them.
"""

import numpy as np
from numpy.typing import NDArray

from reidserve.index.compiled import compiled

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

_STRIDE = 64  # products looked at in a few instructions: seldom is one of them wanted
_BLOCK = 1024  # columns whose bounds stay in the nearest cache while all rows pass


@compiled
def _offer(scores: Floats, rows: Ints, score: np.float32, row: int) -> None:
    """Put a row among one image's best (kept,), where it is better than the worst of them."""
    place = len(scores) - 1
    while place > 0 and scores[place - 1] < score:
        scores[place] = scores[place - 1]
        rows[place] = rows[place - 1]
        place -= 1
    scores[place] = score
    rows[place] = row


@compiled
def keep_of_rows(
    first: int, products: Floats, scores: Floats, rows: Ints, lowest: Floats, start: int, stop: int
) -> None:
    """Offer images `first` + i, i from `start` to `stop`, all others of products (n, m): m images from `first` on.

    The best (N, kept) of each stay in `scores` and `rows`, the lowest product of all in `lowest` (N,).
    """
    for place in range(start, stop):
        image = first + place
        for begin in range(0, products.shape[1], _STRIDE):
            some = products[place, begin : begin + _STRIDE]
            worst, low = scores[image, -1], lowest[image]
            wanted = 0
            for column in range(len(some)):
                wanted += (some[column] > worst) | (some[column] < low)
            if wanted:
                for column in range(len(some)):
                    lowest[image] = min(lowest[image], some[column])
                    if some[column] > scores[image, -1] and begin + column != place:
                        _offer(scores[image], rows[image], some[column], first + begin + column)


@compiled
def keep_of_columns(
    first: int, products: Floats, scores: Floats, rows: Ints, lowest: Floats, start: int, stop: int
) -> None:
    """The same for images `first` + j, j from `start` to `stop`, which are columns and are offered every row."""
    worst = scores[:, -1].copy()
    for block in range(start, stop, _BLOCK):
        for place in range(len(products)):
            for begin in range(block, min(block + _BLOCK, stop), _STRIDE):
                end = min(begin + _STRIDE, stop)
                some = products[place, begin:end]
                high, low = worst[first + begin : first + end], lowest[first + begin : first + end]
                wanted = 0
                for column in range(len(some)):
                    wanted += (some[column] > high[column]) | (some[column] < low[column])
                if wanted:
                    for column in range(len(some)):
                        low[column] = min(low[column], some[column])
                        if some[column] > high[column]:
                            image = first + begin + column
                            _offer(scores[image], rows[image], some[column], first + place)
                            high[column] = scores[image, -1]


@compiled
def share(
    starts: Ints,
    places: Ints,
    weights: Floats,
    columns: Ints,
    rows: Ints,
    others: Floats,
    shared: Floats,
    start: int,
    stop: int,
) -> None:
    """Write what queries `start` to `stop` share with each gallery row, their smaller weights summed, to `shared`.

    Queries come as sparse rows (starts, places, weights), the gallery as sparse columns (columns, rows, others).
    """
    for query in range(start, stop):
        shared[query] = 0
        for entry in range(starts[query], starts[query + 1]):
            place, weight = places[entry], weights[entry]
            for other in range(columns[place], columns[place + 1]):
                shared[query, rows[other]] += min(weight, others[other])
