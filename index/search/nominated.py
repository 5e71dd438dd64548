"""Nominated search: an index proposes rows and vecdot settles them, so that most rows are never multiplied."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings
from reidserve.index.search import flat
from reidserve.index.search.blocks import Block
from reidserve.index.search.flat import Part
from reidserve.index.search.ranking import Ranking, Rows, Scores, empty_ranking, settled_pairs, write_pairs
from reidserve.index.search.threads import divide

CANDIDATES = 50
CANDIDATES_A_HIT = 10
CANDIDATES_DIM = 2048
"""A quantised index proposes CANDIDATES + CANDIDATES_A_HIT * top_k rows at CANDIDATES_DIM dimensions, and more at
fewer, as it has a bit for each: of 100,000 rows, 150 by 2048 bits and 600 by 512 bits hold the 10 best
(benchmarks/gallery.py)."""

MOST_CANDIDATES = 0.05
"""Where more than this part of the rows would be proposed, multiplying all is no slower."""

NARROW = 0.1
"""Where less than this part of the rows may be found, they are multiplied rather than searched for."""

MANY_QUERIES = 32
"""From so many queries on, threads settle what is proposed."""

_WIDER = 4
_SPARE = 32


class Nominator(Protocol):
    """Proposes rows of a fixed set of embeddings that may be a query's best; safe from any thread.

    What it proposes for a query depends on nothing but the query and the set. Deleted rows and filters are
    not its business: the caller drops what may not be found, and asks for more.
    """

    @property
    def kind(self) -> str:
        """Its name, such as "rabitq"."""

    @property
    def rows(self) -> Rows:
        """int64 (n,), ascending: what it covers."""

    @property
    def window(self) -> float | None:
        """Its scores lie within so much of vecdot; None where no bound holds."""

    @property
    def most(self) -> int:
        """The most candidates that one query may ask for."""

    def nominate(self, queries: Embeddings, count: int) -> tuple[Scores, Rows]:
        """Approximate scores (Q, count), best first, and their rows; -inf and -1 where there are fewer."""


@dataclass(frozen=True, slots=True, eq=False)
class Covered:
    """A nominator and the blocks whose rows it covers.

    Attributes:
        nominator: what proposes.
        blocks: the first blocks of a snapshot.
        rows: int64 (n,), the rows of the blocks, one after the other.
        starts: int64, where each block's rows start in `rows`, and their end.
    """

    nominator: Nominator
    blocks: Sequence[Block]
    rows: Rows
    starts: NDArray[np.int64]


def cover(nominator: Nominator, blocks: Sequence[Block]) -> Covered:
    """Bring a nominator and the blocks that it covers together."""
    rows = np.concatenate([block.rows for block in blocks])
    return Covered(nominator, blocks, rows, np.cumsum([0, *(len(block.rows) for block in blocks)]))


def rank(
    queries: Embeddings, covered: Covered, parts: Sequence[Part], *, top_k: int, left_out: Rows | None = None
) -> Ranking:
    """The `top_k` best rows of parts, which are of the covered blocks; exact where the nominator has a window."""
    nominator = covered.nominator
    accepted = sum(part.count for part in parts)
    share = accepted / len(nominator.rows)
    wanted = top_k if nominator.window is not None else _candidates(queries.shape[1], top_k)
    ranking = empty_ranking(len(queries), top_k)
    open_places = np.arange(len(queries))
    if share >= NARROW and wanted <= MOST_CANDIDATES * len(nominator.rows):
        # Where nothing is dropped, what is wanted is enough; a window needs to see beyond it.
        sure = nominator.window is None and share == 1 and left_out is None
        fetched = wanted if sure else int((wanted + _SPARE) / share) + 1
        while len(open_places) and fetched <= min(nominator.most, len(nominator.rows)):
            proposals = nominator.nominate(queries[open_places], fetched)
            open_places = _settle_all(queries, open_places, proposals, covered, parts, wanted, ranking, left_out)
            fetched *= _WIDER
    if len(open_places):
        some = None if left_out is None else left_out[open_places]
        exact = flat.rank(queries[open_places], parts, top_k=top_k, left_out=some)
        ranking.scores[open_places], ranking.rows[open_places] = exact.scores, exact.rows
    return ranking


def _candidates(dim: int, top_k: int) -> int:
    return (CANDIDATES + CANDIDATES_A_HIT * top_k) * max(1, CANDIDATES_DIM // dim)


def _settle_all(
    queries: Embeddings,
    places: NDArray[np.intp],
    proposals: tuple[Scores, Rows],
    covered: Covered,
    parts: Sequence[Part],
    wanted: int,
    ranking: Ranking,
    left_out: Rows | None,
) -> NDArray[np.intp]:
    """Settle the queries whose proposals are enough; returns the places of those that need more."""
    window = covered.nominator.window
    positions = np.searchsorted(covered.rows, proposals[1])
    positions[positions == len(covered.rows)] = 0
    allowed = covered.rows[positions] == proposals[1]
    if any(part.accepted is not None for part in parts):
        allowed &= _accepted(parts)[positions]
    if left_out is not None:
        allowed &= proposals[1] != left_out[places, np.newaxis]
    chosen = [_chosen(scores, ok, wanted, window) for scores, ok in zip(proposals[0], allowed, strict=True)]
    turns = [turn for turn, some in enumerate(chosen) if some is not None]
    if turns:
        some = [positions[turn, chosen[turn]] for turn in turns]
        owners = np.repeat(places[turns], [len(each) for each in some])
        _settle(queries, owners, np.concatenate(some), covered, ranking)
    return places[[turn for turn, some in enumerate(chosen) if some is None]]


def _accepted(parts: Sequence[Part]) -> NDArray[np.bool_]:
    return np.concatenate(
        [np.ones(len(part.block.rows), np.bool_) if part.accepted is None else part.accepted for part in parts]
    )


def _chosen(scores: Scores, allowed: NDArray[np.bool_], wanted: int, window: float | None) -> NDArray[np.intp] | None:
    """Which proposals are to be settled; None where more must be proposed before anything is certain."""
    good = np.flatnonzero(allowed)
    if len(good) < wanted:
        return None
    if window is None:
        return good[:wanted]
    # A row below this cannot reach the k-th, though each score may be off by a window.
    lowest = scores[good[wanted - 1]] - np.float32(2 * window)
    if scores[-1] >= lowest:
        return None
    reaching: NDArray[np.intp] = good[scores[good] >= lowest]
    return reaching


def _settle(
    queries: Embeddings, owners: NDArray[np.intp], positions: NDArray[np.intp], covered: Covered, ranking: Ranking
) -> None:
    """Score pairs of a query and a position among the covered rows by vecdot, and write each query's best."""
    order = np.argsort(positions, kind="stable")
    owners, positions = owners[order], positions[order]
    cuts = np.searchsorted(positions, covered.starts)
    scores = np.empty(len(positions), np.float32)

    def settle(place: int) -> None:
        part = slice(cuts[place], cuts[place + 1])
        inside = positions[part] - covered.starts[place]
        scores[part] = settled_pairs(queries, owners[part], covered.blocks[place].vectors, inside)

    # Rows come from memory, which one core cannot fill: with many queries, blocks are settled side by side.
    work = [partial(settle, place) for place in np.flatnonzero(np.diff(cuts)).tolist()]
    if len(queries) < MANY_QUERIES:
        for some in work:
            some()
    else:
        divide(work)
    write_pairs(ranking, owners, covered.rows[positions], scores)
