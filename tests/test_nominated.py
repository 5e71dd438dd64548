from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.index import Entry, Filter, FolderSnapshot
from reidserve.index.search import nominated
from reidserve.index.search.blocks import Growth
from reidserve.index.search.flat import Part
from reidserve.index.search.nominated import cover
from reidserve.index.search.ranking import rank_plainly
from reidserve.index.storage.rows import Changes, Piece
from tests.conftest import unit_rows
from tests.plain import assert_equal
from tests.test_flat import parts_of


@pytest.fixture(scope="module", autouse=True)
def proposals_for_small_galleries():
    """Few candidates, so that proposals are asked for where a gallery is small."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nominated, "_candidates", lambda dim, top_k: 8 + 4 * top_k)
        patched.setattr(nominated, "MOST_CANDIDATES", 1)
        yield


@dataclass
class Proposer:
    """A nominator in NumPy: `rounded` products are those of float16 vectors, which a window bounds."""

    rows: np.ndarray
    vectors: np.ndarray
    rounded: bool
    most: int = 10**9
    kind: str = "plain"
    asked: list = field(default_factory=list)

    @property
    def window(self) -> float | None:
        # A float16 has 11 bits: each product of unit vectors is off by 2**-11 at most, and by float32's rounding.
        return 2**-11 + 1e-5 if self.rounded else None

    def nominate(self, queries, count):
        assert 1 <= count <= min(self.most, len(self.rows))
        self.asked.append((len(queries), count))
        vectors = self.vectors.astype(np.float16).astype(np.float32) if self.rounded else self.vectors
        scores = np.full((len(queries), count), -np.inf, np.float32)
        rows = np.full((len(queries), count), -1, np.int64)
        for place, query in enumerate(queries):
            products = np.vecdot(vectors, query)
            # Equal ones in no particular order: the last rows first, so that the order must be made after.
            best = np.lexsort((-self.rows, -products))[:count]
            scores[place, : len(best)], rows[place, : len(best)] = products[best], self.rows[best]
        return scores, rows


def make(rng, count, dim, copies):
    vectors = unit_rows(rng, count, dim)
    if count:
        vectors[rng.integers(0, count, copies)] = vectors[0]
    rows = np.sort(rng.choice(3 * count, count, replace=False)).astype(np.int64)
    return rows, vectors


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 400),
    dim=st.integers(2, 40),
    copies=st.integers(0, 60),
    share=st.sampled_from([0.005, 0.05, 0.09, 0.11, 0.3, 0.9, 1]),
    top_k=st.sampled_from([1, 2, 10, 50, 500]),
    size=st.integers(20, 200),
    rounded=st.booleans(),
    most=st.sampled_from([1, 30, 10**9]),
    leaves_out=st.booleans(),
    gone=st.floats(0, 1),
)
def test_a_nominated_ranking_equals_brute_force(
    seed, count, dim, copies, share, top_k, size, rounded, most, leaves_out, gone
):
    rng = np.random.default_rng(seed)
    # Without a window a proposer may miss the first of more equals than there are candidates.
    all_rows, all_vectors = make(rng, count, dim, copies if rounded else min(copies, 10))
    # Rows that the nominator still covers may have been packed away from the blocks.
    kept = rng.random(count) >= gone * 0.5
    kept[rng.integers(count)] = True
    rows, vectors = all_rows[kept], np.ascontiguousarray(all_vectors[kept])
    accepted = rng.random(len(rows)) < share
    parts = parts_of(rows, vectors, accepted, size)
    proposer = Proposer(all_rows, all_vectors, rounded, most)
    covered = cover(proposer, [part.block for part in parts])
    queries = np.concatenate([unit_rows(rng, 4, dim), vectors[:2]])
    left_out = rng.choice([*rows, -1], len(queries)) if leaves_out else None
    ranking = nominated.rank(queries, covered, parts, top_k=top_k, left_out=left_out)
    assert_equal(ranking, rank_plainly(queries, vectors, rows, top_k=top_k, accepted=accepted, left_out=left_out))


@pytest.mark.parametrize("rounded", [False, True])
def test_few_proposals_are_enough_where_there_are_many_rows(rounded):
    rng = np.random.default_rng(0)
    rows, vectors = make(rng, 5000, 32, 0)
    parts = parts_of(rows, vectors, np.ones(5000, bool), 1024)
    proposer = Proposer(rows, vectors, rounded)
    queries = unit_rows(rng, 9, 32)
    ranking = nominated.rank(queries, cover(proposer, [part.block for part in parts]), parts, top_k=10)
    assert_equal(ranking, rank_plainly(queries, vectors, rows, top_k=10))
    assert proposer.asked[0][0] == 9
    assert sum(queries * count for queries, count in proposer.asked) < 9 * 1000


def test_a_query_that_needs_more_is_asked_for_again_and_the_others_are_not():
    rng = np.random.default_rng(1)
    rows, vectors = make(rng, 4000, 16, 0)
    vectors[:200] = vectors[0]  # one query's best are all equal: the window reaches far
    accepted = np.ones(4000, bool)
    parts = parts_of(rows, vectors, accepted, 1000)
    proposer = Proposer(rows, vectors, rounded=True)
    queries = np.concatenate([unit_rows(rng, 5, 16), vectors[:1]])
    ranking = nominated.rank(queries, cover(proposer, [part.block for part in parts]), parts, top_k=10)
    assert_equal(ranking, rank_plainly(queries, vectors, rows, top_k=10))
    asked = [queries for queries, _ in proposer.asked]
    assert asked[0] == 6
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] < 6
    counts = [count for _, count in proposer.asked]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("share", [0.0002, 0.02])
def test_a_narrow_filter_is_multiplied_and_nothing_is_proposed(share):
    rng = np.random.default_rng(2)
    rows, vectors = make(rng, 5000, 16, 0)
    accepted = np.arange(5000) < 5000 * share
    parts = parts_of(rows, vectors, accepted, 1024)
    proposer = Proposer(rows, vectors, rounded=False)
    queries = unit_rows(rng, 3, 16)
    ranking = nominated.rank(queries, cover(proposer, [part.block for part in parts]), parts, top_k=5)
    assert proposer.asked == []
    assert_equal(ranking, rank_plainly(queries, vectors, rows, top_k=5, accepted=accepted))


def test_a_ranking_does_not_depend_on_the_batch():
    rng = np.random.default_rng(3)
    rows, vectors = make(rng, 2000, 16, 30)
    accepted = rng.random(2000) < 0.4
    parts = parts_of(rows, vectors, accepted, 512)
    queries = np.concatenate([unit_rows(rng, 20, 16), vectors[:3]])
    for rounded in (False, True):
        covered = cover(Proposer(rows, vectors, rounded), [part.block for part in parts])
        together = nominated.rank(queries, covered, parts, top_k=15)
        for place in range(len(queries)):
            alone = nominated.rank(queries[place : place + 1], covered, parts, top_k=15)
            np.testing.assert_array_equal(alone.rows[0], together.rows[place])
            np.testing.assert_array_equal(alone.scores[0], together.scores[place])


@pytest.mark.parametrize("rounded", [False, True])
def test_a_snapshot_asks_the_nominator_for_the_first_blocks_and_multiplies_the_rest(monkeypatch, rounded):
    monkeypatch.setattr("reidserve.index.search.blocks.BLOCK_ROWS", 64)
    rng = np.random.default_rng(4)
    growth, vectors, live = Growth(16), {}, {}
    proposer = None
    row = 0
    for generation in range(1, 30):
        fresh = unit_rows(rng, 40, 16)
        rows = np.arange(row + 1, row + 41)
        row += 40
        gone = np.sort(rng.choice(sorted(live), len(live) // 3, replace=False)) if live else np.empty(0, np.int64)
        entries = [Entry(f"e{number}", camid=f"c{number % 3}") for number in rows.tolist()]
        piece = Piece(rows, entries, fresh, np.zeros(40, np.uint32))
        blocks = growth.apply(Changes(generation, False, [piece], gone, []))
        live |= dict(zip(rows.tolist(), entries, strict=True))
        vectors |= dict(zip(rows.tolist(), fresh, strict=True))
        for number in gone.tolist():
            del live[number]
        if generation % 5 == 3:
            sealed = growth.sealed
            rows = np.concatenate([block.rows for block in sealed])
            proposer = Proposer(rows, np.concatenate([block.vectors for block in sealed]), rounded)
        if proposer is None:
            continue
        # What was covered is still proposed from, though blocks have been packed since.
        covers = [block for block in blocks if np.isin(block.rows, proposer.rows).all()]
        count = next((n for n, block in enumerate(blocks) if block not in covers), len(blocks))
        covered = cover(proposer, blocks[:count]) if count else None
        snapshot = FolderSnapshot(generation, 16, blocks, covered)
        assert snapshot.kind == ("plain" if covered else "flat")
        queries = unit_rows(rng, 5, 16)
        numbers = np.array(sorted(live))
        for where in (None, Filter(camids=frozenset({"c1"})), Filter(ids=frozenset({f"e{numbers[0]}"}))):
            accepted = np.array([where is None or where.accepts(live[number]) for number in numbers.tolist()])
            for top_k in (1, 7, 100):
                expected = rank_plainly(
                    queries,
                    np.stack([vectors[number] for number in numbers.tolist()]),
                    numbers,
                    top_k=min(top_k, int(accepted.sum())),
                    accepted=accepted,
                )
                assert_equal(snapshot.search(queries, top_k=top_k, where=where), expected)


def test_a_quantised_proposer_never_scores_or_orders_what_it_found_differently():
    rng = np.random.default_rng(5)
    rows, vectors = make(rng, 3000, 32, 0)
    parts: list[Part] = parts_of(rows, vectors, np.ones(3000, bool), 1024)
    coarse = Proposer(rows, np.sign(vectors) / np.float32(np.sqrt(32)), rounded=False)
    queries = unit_rows(rng, 10, 32)
    ranking = nominated.rank(queries, cover(coarse, [part.block for part in parts]), parts, top_k=10)
    for place, query in enumerate(queries):
        found = np.searchsorted(rows, ranking.rows[place])
        scores = np.vecdot(vectors[found], query)
        np.testing.assert_array_equal(ranking.scores[place], scores)
        np.testing.assert_array_equal(np.lexsort((ranking.rows[place], -scores)), np.arange(10))
