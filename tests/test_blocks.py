from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.index import Entry, Filter, FolderSnapshot
from reidserve.index.search.blocks import Growth, entry_bytes
from reidserve.index.storage.rows import Changes, Piece
from tests.conftest import unit_rows

ROWS = 8


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reidserve.index.search.blocks.BLOCK_ROWS", ROWS)
        yield


def piece(rows) -> Piece:
    vectors = np.concatenate([unit_rows(np.random.default_rng(row), 1, 4) for row in rows])
    return Piece(np.array(rows), [Entry(f"e{row}") for row in rows], vectors, np.array(rows, np.uint32))


def changes(rows, deleted=(), *, anew=False) -> Changes:
    pieces = [piece(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
    return Changes(0, anew, pieces, np.array(sorted(deleted), np.int64), [])


def held(blocks) -> list[int]:
    """The live rows, each seen to be what was put in."""
    found = []
    for block in blocks:
        assert (np.diff(block.rows) > 0).all()
        assert block.count == block.live.sum() > 0
        assert block.vectors.flags.c_contiguous
        for place in np.flatnonzero(block.live).tolist():
            row = int(block.rows[place])
            assert block.entries[place] == Entry(f"e{row}")
            assert block.columns.find(f"e{row}", len(block.rows)) == [place]
            assert block.crc32s[place] == row
            np.testing.assert_array_equal(block.vectors[place], piece([row]).vectors[0])
            found.append(row)
    return found


@settings(max_examples=100, deadline=None)
@given(
    moves=st.lists(
        st.tuples(st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**32 - 1), st.booleans()), max_size=25
    )
)
def test_blocks_hold_the_live_rows_in_order_and_what_was_handed_out_stays(moves):
    growth, live, row, snapshots = Growth(4), [], 0, []
    for count, share, seed, anew in moves:
        rng = np.random.default_rng(seed)
        rows = list(range(row + 1, row + 1 + count))
        row += count + int(rng.integers(3))
        if anew and seed % 5 == 0:
            rows = [number for number in live if rng.random() < 0.5] + rows
            blocks = growth.apply(changes(rows, anew=True))
            live = rows
        else:
            gone = [number for number in live if rng.random() < share]
            never_seen = [row + 100, row + 200]  # born and deleted between two looks
            blocks = growth.apply(changes(rows, [*gone, *never_seen]))
            live = [number for number in live if number not in set(gone)] + rows
        assert held(blocks) == live
        assert all(len(block.rows) <= ROWS for block in blocks)
        assert tuple(blocks[: len(growth.sealed)]) == tuple(growth.sealed)
        snapshots.append((blocks, list(live)))
        for before, was_live in snapshots[-5:]:
            assert held(before) == was_live


def test_full_blocks_are_shared_and_a_deletion_copies_what_lives_and_not_the_vectors():
    growth = Growth(4)
    before = growth.apply(changes(list(range(1, 21))))
    assert [len(block.rows) for block in before] == [8, 8, 4]
    after = growth.apply(changes([21], [3]))
    assert after[0].vectors is before[0].vectors
    assert after[1] is before[1]
    assert (before[0].count, after[0].count) == (8, 7)
    assert np.shares_memory(after[2].vectors, before[2].vectors)
    assert (len(before[2].rows), len(after[2].rows)) == (4, 5)


def test_neighbours_that_are_mostly_dead_share_a_block_and_full_ones_are_left_alone():
    growth = Growth(4)
    growth.apply(changes(list(range(1, 41))))
    blocks = growth.apply(changes([], [*range(1, 6), *range(9, 15), *range(33, 40)]))
    assert [block.rows.tolist() for block in growth.sealed] == [
        [6, 7, 8, 15, 16],
        list(range(17, 25)),
        list(range(25, 33)),
        [40],
    ]
    assert held(blocks) == [6, 7, 8, 15, 16, *range(17, 33), 40]
    again = growth.apply(changes([], [20]))
    assert again[0] is blocks[0]  # packed once, not with every deletion
    assert again[3] is blocks[3]


def test_a_gallery_that_was_emptied_holds_no_block_and_grows_again():
    growth = Growth(4)
    growth.apply(changes(list(range(1, 21))))
    assert growth.apply(changes([], range(1, 21))) == ()
    assert growth.sealed == ()
    assert held(growth.apply(changes([30, 31]))) == [30, 31]


@pytest.mark.parametrize("together", [5, 8])
def test_the_texts_of_what_went_are_forgotten_and_filters_find_what_is_there(monkeypatch, together):
    monkeypatch.setattr("reidserve.index.search.blocks.STALE_ROWS", 32)
    growth, most = Growth(4), 0
    for first in range(1, 2000, together):
        new = piece(range(first, first + together))
        new = replace(new, entries=[replace(entry, pid=f"p{entry.id}") for entry in new.entries])
        gone = np.arange(max(2, first - 40), max(2, first - 40 + together))  # but not the very first
        blocks = growth.apply(Changes(first, False, [new], gone, []))
        most = max(most, *(len(block.columns.codes) for block in blocks))
        snapshot = FolderSnapshot(first, 4, blocks)
        wanted = ["e1", f"e{first}", f"e{max(1, first - 20)}"]
        found = snapshot.matching(Filter(pids=frozenset(f"p{name}" for name in wanted)))
        assert {entry.id for entry in found} == set(wanted)
    assert 100 < most < 400


def test_an_entry_takes_more_memory_than_its_embedding():
    assert entry_bytes(2048) > 4 * 2048
    assert entry_bytes(512) < entry_bytes(2048)
