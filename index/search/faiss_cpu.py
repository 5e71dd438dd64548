"""Nominators on FAISS: 1-bit codes and half-precision vectors. Nothing else imports faiss (on the CPU).

A nominator covers a fixed set of rows and never changes, because FAISS crashes where an index is added to while it
is searched: growth makes the next one, which shares all full shards with the last. Shards are cut at multiples of
SHARD_ROWS, so that a nominator is the same whether its rows came at once or one by one. Searches may run from any
number of threads. No FAISS search parameters and no selectors are used, and nothing is deserialised by FAISS.

Threads: FAISS's OpenMP team is as large as its calling thread says. Few queries run on the calling thread alone, as a
team waits for its slowest member and thereby loses a scheduler tick wherever cores are busy; MANY_QUERIES or
more are divided among all cores. Neither changes a result.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from reidserve.embed import UNIT_TOLERANCE, Embedding, Embeddings
from reidserve.index.search.ranking import Rows, Scores

SHARD_ROWS = 65_536
"""Rows of one FAISS index: what is packed again when rows are added is less than that."""

MOST = 16_384
MANY_QUERIES = 32
CALL_QUERIES = 512
"""Queries of one FAISS call: bounds the memory of its answer."""

QUERY_BITS = 8
"""Precision of the query against the codes. FastScan spends no more time on 8 than on 4."""

ROUNDS = 3
"""Rounds of signs and Hadamard transforms. One leaves a recall@10 of .995 on heavy-tailed features, two are enough."""

NARROW_DIM = 1024
"""Up to so many dimensions FastScan's sums of one byte for 4 dimensions fit its 16 bits, whatever the query."""

VERSION = f"faiss {faiss.__version__}, {ROUNDS} rounds, wide from {NARROW_DIM}"
"""What makes codes here: those of another version are made anew."""

_MOST_SUM = 60_000  # of 2**16, with room for what is rounded

_HALF_ULP, _SUBNORMAL_HALF_ULP, _SINGLE_ULP = 2.0**-11, 2.0**-25, 2.0**-24

Codes = NDArray[np.uint8]
Nominated = tuple[Scores, Rows]


class Searchable(Protocol):
    """The only method of a FAISS index that is used."""

    def search(self, queries: Embeddings, count: int, /) -> Nominated:
        """Scores (Q, count), best first, and places in the index; -1 where there are fewer."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What codes are relative to: codes of equal frames can be compared, whenever and wherever they were made.

    Attributes:
        centre: float32 (dim,), about the mean of the embeddings. It need not be exact, but ReID features lie in a
            narrow cone (mean cosine .57 on photographs), and without it recall suffers.
        seed: of the rotation's signs.
    """

    centre: Embedding
    seed: int = 0

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return len(self.centre)

    @property
    def code_size(self) -> int:
        """Bytes of one row's code: a bit per dimension and two float32."""
        return (_width(self.dim) + 7) // 8 + 8


def fit_frame(vectors: Embeddings, *, seed: int = 0) -> Frame:
    """A frame centred on the mean of embeddings (N, dim), N > 0; some thousands are enough."""
    return Frame(vectors.mean(axis=0, dtype=np.float64).astype(np.float32), seed)


def rotate(vectors: Embeddings, *, seed: int) -> Embeddings:
    """Embeddings (N, dim) turned at random, so that no dimension weighs more than others in a 1-bit code.

    Each round flips signs and applies a Hadamard transform to the first or to the last dimensions, as many as the
    largest power of two (Kac's walk; RaBitQ, Gao and Long 2024, asks for a random rotation). As it is a product of
    small matrices per row, always of one shape, a row comes out the same in any batch.
    """
    dim = vectors.shape[1]
    power = 1 << (dim.bit_length() - 1)
    left, right = _hadamard(1 << (power.bit_length() - 1) // 2), _hadamard(1 << power.bit_length() // 2)
    rotated = vectors.astype(np.float32, order="C")
    signs = _signs(seed, dim)
    for start in range(0, len(rotated), 256):  # what fits a cache
        part = rotated[start : start + 256]
        for turn, sign in enumerate(signs):
            part *= sign
            place = slice(0, power) if turn % 2 == 0 else slice(dim - power, dim)
            square = part[:, place].reshape(-1, len(left), len(right))
            part[:, place] = np.matmul(np.matmul(left, square), right).reshape(-1, power)
    return rotated


def _hadamard(size: int) -> NDArray[np.float32]:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))


def _signs(seed: int, dim: int) -> NDArray[np.float32]:
    # From a hash: NumPy's generators may change their streams between versions, and codes outlive those.
    size = (ROUNDS * dim + 7) // 8
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(f"signs {seed}".encode()).digest(size), np.uint8))
    return (1 - 2 * bits[: ROUNDS * dim].astype(np.float32)).reshape(ROUNDS, dim)


def encode(frame: Frame, vectors: Embeddings) -> Codes:
    """The codes (N, code_size) of embeddings (N, dim); a row's code depends on that row and the frame alone."""
    if not len(vectors):
        return np.empty((0, frame.code_size), np.uint8)
    index = _empty_codes(frame)
    chunks = (vectors[start : start + 8192] for start in range(0, len(vectors), 8192))
    return np.concatenate([index.sa_encode(_widened(rotate(chunk, seed=frame.seed))) for chunk in chunks])


def _empty_codes(frame: Frame) -> Any:  # noqa: ANN401, FAISS has no types
    index = faiss.IndexRaBitQ(_width(frame.dim), faiss.METRIC_INNER_PRODUCT)
    centre = _widened(rotate(frame.centre[np.newaxis], seed=frame.seed))[0]
    faiss.copy_array_to_vector(centre, index.center)
    index.is_trained = True
    return index


def _width(dim: int) -> int:
    """The dimensions of codes: 8 more than those of embeddings, where FastScan's sums could overflow (`_bounded`)."""
    return dim if dim <= NARROW_DIM else 8 * -(-dim // 8) + 8


def _widened(vectors: Embeddings) -> Embeddings:
    """Embeddings (N, dim) with zeros behind, (N, `_width`)."""
    dim = vectors.shape[1]
    return vectors if _width(dim) == dim else np.pad(vectors, ((0, 0), (0, _width(dim) - dim)))


def _bounded(queries: Embeddings, centre: Embeddings) -> Embeddings:
    """Rotated queries (Q, dim), widened so that no sum over a row's code overflows FastScan's 16 bits.

    FastScan scales a query so that its widest 4 dimensions span a byte, and adds up without looking: the more a row
    is like the query the larger the sum, so of 2048 dimensions on it is the very best that wrap around and are lost.
    Two further numbers in 4 dimensions of their own are wide enough to scale all others down. Codes have no bits
    there and the two sum to nothing, so that no estimate changes.
    """
    wide = _widened(queries)
    if wide is not queries:
        most = np.abs(queries - centre).sum(axis=1) * np.float32(255 / 2 / _MOST_SUM)
        wide[:, -8], wide[:, -7] = most, -most
    return wide


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    rows: Rows
    codes: Codes
    index: Searchable


class _Sharded:
    """A nominator over shards of SHARD_ROWS rows, each a FAISS index of its rows' codes."""

    kind: ClassVar[str]
    window: float | None

    def __init__(self, rows: Rows, codes: Codes, *, full: Sequence[_Shard] = ()) -> None:
        if len(rows) != len(codes):
            raise ValueError(f"expected a code for each of {len(rows)} rows, got {len(codes)}")
        shards = list(full)
        for start in range(0, len(rows), SHARD_ROWS):
            part = slice(start, start + SHARD_ROWS)
            shards.append(_Shard(rows[part], codes[part], self._index(np.ascontiguousarray(codes[part]))))
        self._shards = tuple(shards)
        self.rows: Rows = np.concatenate([np.empty(0, np.int64), *(shard.rows for shard in shards)])
        self.most = MOST

    @property
    def codes(self) -> Codes:
        """uint8 (n, code_size), the rows' codes, in their order; copied."""
        return np.concatenate([shard.codes for shard in self._shards]) if self._shards else np.empty((0, 0), np.uint8)

    def nominate(self, queries: Embeddings, count: int) -> Nominated:
        """Approximate scores (Q, count) of float32 queries (Q, dim), best first, then by row, and their rows.

        `count` is 1 to `most`; -inf and -1 stand where there are fewer rows.
        """
        scores = np.full((len(queries), count), -np.inf, np.float32)
        rows = np.full((len(queries), count), -1, np.int64)
        for start in range(0, len(queries), CALL_QUERIES):
            part = slice(start, start + CALL_QUERIES)
            prepared = self._prepared(queries[part])
            with _threads(len(prepared)):
                found = [_searched(shard, prepared, count) for shard in self._shards]
            if found:
                best = best_of(found, count)
                width = best[0].shape[1]
                scores[part, :width], rows[part, :width] = best
        return scores, rows

    def _prepared(self, queries: Embeddings) -> Embeddings:
        raise NotImplementedError

    def _index(self, codes: Codes) -> Searchable:
        raise NotImplementedError

    def _partial(self, rows: Rows, codes: Codes) -> tuple[Sequence[_Shard], Rows, Codes]:
        """The full shards, and the rows and codes of what is to follow them."""
        full = [shard for shard in self._shards if len(shard.rows) == SHARD_ROWS]
        rest = self._shards[len(full) :]
        return (
            full,
            np.concatenate([*(shard.rows for shard in rest), rows]),
            np.concatenate([*(shard.codes for shard in rest), codes]),
        )


class RaBitQ(_Sharded):
    """Nominates by codes of one bit per dimension (RaBitQ, in FAISS's FastScan layout).

    Attributes:
        frame: what the codes are relative to.
        rows: int64 (n,), ascending: what it covers.
        window: None, its errors have no bound worth having.
        most: the most candidates one query may ask for.
    """

    kind = "rabitq"
    window = None

    def __init__(self, frame: Frame, rows: Rows, codes: Codes, *, full: Sequence[_Shard] = ()) -> None:
        if codes.shape[1:] != (frame.code_size,):
            raise ValueError(f"expected codes of {frame.code_size} bytes, got {codes.shape[1:]}")
        self.frame = frame
        self._centre = rotate(frame.centre[np.newaxis], seed=frame.seed)
        super().__init__(rows, codes, full=full)

    def extended(self, rows: Rows, codes: Codes) -> Self:
        """The nominator of these rows too, which follow all that are here; full shards are shared."""
        full, rows, codes = self._partial(rows, codes)
        return type(self)(self.frame, rows, codes, full=full)

    def _prepared(self, queries: Embeddings) -> Embeddings:
        turned = rotate(queries, seed=self.frame.seed)
        # FAISS finds nothing at all for a query that is the centre, as of a gallery that repeats one photograph.
        turned[(turned == self._centre).all(axis=1), 0] += np.float32(1e-6)
        return _bounded(turned, self._centre)

    def _index(self, codes: Codes) -> Searchable:
        plain = _empty_codes(self.frame)
        faiss.copy_array_to_vector(codes.reshape(-1), plain.codes)
        plain.ntotal = len(codes)
        packed = faiss.IndexRaBitQFastScan(plain)
        packed.qb = QUERY_BITS
        packed.orig_codes = None  # type: ignore[attr-defined]  # it would point to the codes of `plain`, which go
        index: Searchable = packed
        return index


class FlatFp16(_Sharded):
    """Nominates by exact products with embeddings rounded to half precision: half the memory that is read.

    Attributes:
        rows: int64 (n,), ascending: what it covers.
        window: its scores lie within so much of vecdot (`half_window`).
        most: the most candidates one query may ask for.
    """

    kind = "flat-fp16"

    def __init__(self, rows: Rows, vectors: Embeddings, *, full: Sequence[_Shard] = ()) -> None:
        self.dim = vectors.shape[1]
        self.window = half_window(self.dim)
        super().__init__(rows, _halves(vectors), full=full)

    def extended(self, rows: Rows, vectors: Embeddings) -> Self:
        """The nominator of these rows too, which follow all that are here; full shards are shared."""
        full, rows, codes = self._partial(rows, _halves(vectors))
        # Rounding what is rounded already changes nothing.
        return type(self)(rows, codes.view("<f2").astype(np.float32), full=full)

    def _prepared(self, queries: Embeddings) -> Embeddings:
        return np.ascontiguousarray(queries)

    def _index(self, codes: Codes) -> Searchable:
        index = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(codes.reshape(-1), index.codes)
        index.ntotal = len(codes)
        searchable: Searchable = index
        return searchable


def _halves(vectors: Embeddings) -> Codes:
    return np.ascontiguousarray(vectors.astype("<f2")).view(np.uint8)


def half_window(dim: int, *, rounded_queries: bool = False) -> float:
    """How far a product with a half-precision embedding can lie from vecdot of the float32 rows.

    Rounding to half precision moves a component x by at most 2^-11 |x|, or by 2^-25 where it is subnormal, and none
    overflows in a row of unit length. So by Cauchy and Schwarz the product moves by at most
    (2^-11 + 2^-25 sqrt(dim)) |q| |x|; twice that, and its square, where queries are rounded too. Each of the two
    float32 sums, in whatever order, errs by at most g |q| |x|, where g = dim u / (1 - dim u) and u = 2^-24
    (Higham, Accuracy and Stability, 3.1); u is taken twice, as tensor cores truncate. Lengths are within
    UNIT_TOLERANCE of 1. At 2048 dimensions it is 9.8e-4; errors seen are about 2e-5.
    """
    moved = _HALF_ULP + _SUBNORMAL_HALF_ULP * float(np.sqrt(dim))
    rounding = (1 + moved) ** 2 - 1 if rounded_queries else moved
    unit = 2 * dim * _SINGLE_ULP
    summing = 2 * unit / (1 - unit) * (1 + rounding)
    return (rounding + summing) * (1 + UNIT_TOLERANCE) ** 2


def best_of(found: Sequence[Nominated], count: int) -> Nominated:
    """The `count` best of several answers to the same queries, by score, then by row."""
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    rows = np.concatenate([rows for _, rows in found], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :count]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def numbered(places: Rows, scores: NDArray[np.float32], rows: Rows) -> Nominated:
    """FAISS's answer with row numbers for places; -inf and -1 where it found nothing.

    A place that has no row yet, as the index has grown since, keeps its score: nothing below it was looked at.
    """
    missing = places < 0
    known = ~missing & (places < len(rows))
    # FAISS pads with the lowest float32, which is finite.
    return np.where(missing, -np.inf, scores).astype(np.float32), np.where(known, rows[np.where(known, places, 0)], -1)


def _searched(shard: _Shard, queries: Embeddings, count: int) -> Nominated:
    scores, places = shard.index.search(queries, min(count, len(shard.rows)))
    return numbered(places, scores, shard.rows)


@contextlib.contextmanager
def _threads(queries: int) -> Iterator[None]:
    # Holds for the calling thread and no other.
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before if queries >= MANY_QUERIES else 1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
