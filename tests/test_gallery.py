import base64
import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reidserve.datasets import Attributes
from reidserve.errors import (
    EntryNotFoundError,
    GalleryBehindError,
    GalleryError,
    GalleryFullError,
    GalleryLockedError,
    GalleryModelError,
)
from reidserve.index import (
    Condition,
    Entry,
    Filter,
    FolderGallery,
    FolderSnapshot,
    open_writer,
    read_snapshot,
)
from reidserve.index.gallery import open_gallery
from reidserve.index.search.blocks import BLOCK_ROWS, Growth, entry_bytes
from reidserve.index.storage.rows import Record
from reidserve.index.storage.store import REBUILDING, STATE, Store, create_store
from tests.conftest import unit_rows
from tests.plain import Plain, assert_equal, assert_holds
from tests.test_store import ORIGIN, damage, entries_of, record


@pytest.fixture
def store(tmp_path: Path):
    opened = create_store(tmp_path / "g.gallery", ORIGIN)
    opened.upsert([record(f"e{number}", number, pid=str(number % 3)) for number in range(10)])
    yield opened
    opened.close()


@pytest.fixture
def gallery(store: Store):
    opened = open_gallery(store.folder)
    yield opened
    opened.close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reidserve.index.search.blocks.BLOCK_ROWS", 8)
    monkeypatch.setattr("reidserve.index.storage.rows.PIECE_ROWS", 8)


def names(hits):
    return [hit.entry.id for hit in hits]


def test_refreshing_without_a_write_changes_nothing(gallery: FolderGallery):
    before = gallery.snapshot
    assert not gallery.refresh()
    assert gallery.snapshot is before


def test_a_snapshot_never_changes(store: Store, gallery: FolderGallery):
    before = gallery.snapshot
    ranking = before.search(record("", 0).vector[None], top_k=10)
    store.upsert([record("e0", 77), record("new", 0)])
    store.delete(["e1", "e2"])
    assert gallery.refresh()
    assert_equal(before.search(record("", 0).vector[None], top_k=10), ranking)
    assert (len(before), before.generation) == (10, 1)
    assert (len(gallery.snapshot), gallery.snapshot.generation) == (9, 3)
    assert names(gallery.snapshot.hits(gallery.snapshot.search(record("", 0).vector[None], top_k=1))[0]) == ["new"]


def test_a_gallery_grows_over_many_blocks_without_copying_the_sealed_ones(store: Store, gallery: FolderGallery):
    vectors = unit_rows(np.random.default_rng(0), 2 * BLOCK_ROWS + 5, 8)
    for start in range(0, len(vectors), 5000):
        stop = min(start + 5000, len(vectors))
        store.upsert([Record(Entry(f"n{place}"), bytes(32), vectors[place]) for place in range(start, stop)])
        gallery.refresh()
    sealed = gallery.snapshot.blocks[0].vectors
    store.upsert([record("last", 99)])
    gallery.refresh()
    assert [len(block.rows) for block in gallery.snapshot.blocks] == [BLOCK_ROWS, BLOCK_ROWS, 16]
    assert gallery.snapshot.blocks[0].vectors is sealed
    for place in (0, BLOCK_ROWS - 11, BLOCK_ROWS - 10, 2 * BLOCK_ROWS + 4):
        row = gallery.snapshot.row(f"n{place}")
        np.testing.assert_array_equal(gallery.snapshot.vector(row), vectors[place])


def test_a_gallery_of_another_model_is_refused_by_both_names(store: Store):
    with pytest.raises(GalleryModelError, match=r"embeddings of model ffffffffffff, this is model 0000"):
        open_gallery(store.folder, identity="0" * 64)
    with (
        pytest.raises(GalleryModelError, match=r"embeddings of model ffffffffffff"),
        open_writer(store.folder, identity="0" * 64),
    ):
        pass


def test_damage_that_comes_later_is_named_and_the_rest_is_served(store: Store, gallery: FolderGallery):
    store.upsert([record("bad", 50), record("good", 51)])
    damage(store, "UPDATE vector SET crc32 = 1 WHERE row = 11")
    assert gallery.refresh()
    assert [(found.row, found.id, found.fault) for found in gallery.snapshot.damaged] == [
        (11, "bad", "it fails its checksum")
    ]
    assert len(gallery.snapshot) == 11
    assert gallery.snapshot.find("bad") is None
    assert gallery.snapshot.find("good") == Entry("good")


def test_a_damaged_entry_is_overwritten_or_deleted_like_any_other(store: Store, gallery: FolderGallery):
    damage(store, "UPDATE vector SET crc32 = 1 WHERE row <= 2")
    store.upsert([record("x", 60)])
    with contextlib.closing(open_gallery(store.folder)) as second:
        assert [found.id for found in second.snapshot.damaged] == ["e0", "e1"]
        store.upsert([record("e0", 0, pid="0")])
        store.delete(["e1"])
        second.refresh()
        assert list(second.snapshot.damaged) == []
        assert second.snapshot.find("e0") == Entry("e0", pid="0")
        assert len(second.snapshot) == store.count() == 10
    assert store.faults() == []


def test_a_gallery_whose_entries_are_all_gone_has_no_hits(store: Store, gallery: FolderGallery):
    store.delete([f"e{number}" for number in range(10)])
    gallery.refresh()
    assert gallery.snapshot.hits(gallery.snapshot.search(record("", 0).vector[None], top_k=5)) == [[]]


def test_what_a_gallery_writes_it_sees_at_once_and_others_when_they_look(store: Store, gallery: FolderGallery):
    store.close()
    with contextlib.closing(open_gallery(store.folder, write=True)) as writer:
        written = writer.upsert([record("new", 70)])
        assert (written.generation, written.changed) == (2, 1)
        assert writer.snapshot.find("new") == Entry("new")
        assert writer.update([Entry("new", camid="c1")]).changed == 1
        assert gallery.snapshot.find("new") is None
        assert gallery.wait(3, timeout=10).find("new") == Entry("new", camid="c1")
        assert writer.delete(where=Filter(camids=frozenset({"c1"}))).changed == 1
        assert writer.delete(["nobody"]).changed == 0
        assert gallery.wait(4, timeout=10).find("new") is None


def test_waiting_for_what_never_comes_ends_and_says_where_the_gallery_is(gallery: FolderGallery):
    with pytest.raises(GalleryBehindError, match=r"is at generation 1, 2 was waited for 0.02 s"):
        gallery.wait(2, timeout=0.02)


def test_a_gallery_opened_for_reading_is_not_written(gallery: FolderGallery):
    for call in (
        lambda: gallery.upsert([record("x", 1)]),
        lambda: gallery.update([Entry("e0")]),
        lambda: gallery.delete(["e0"]),
    ):
        with pytest.raises(GalleryError, match="was opened for reading: open it to write"):
            call()
    with pytest.raises(TypeError, match="ids or a filter"):
        gallery.delete()


def test_an_update_of_what_is_not_there_changes_nothing(store: Store):
    store.close()
    with contextlib.closing(open_gallery(store.folder, write=True)) as writer:
        with pytest.raises(EntryNotFoundError, match="no entry 'nobody'"):
            writer.update([Entry("e0", pid="x"), Entry("nobody")])
        assert (writer.snapshot.generation, writer.snapshot.find("e0")) == (1, Entry("e0", pid="0"))


def test_a_second_writer_is_told_who_the_first_is_and_may_write_after_it(store: Store):
    store.close()
    with contextlib.closing(open_gallery(store.folder, write=True)) as writer:
        for opening in (lambda: open_gallery(store.folder, write=True), lambda: open_writer(store.folder).__enter__()):
            with pytest.raises(GalleryLockedError, match=f"is being written to by process {os.getpid()}"):
                opening()
        writer.upsert([record("x", 1)])
    open_gallery(store.folder, write=True).close()


def test_a_gallery_that_does_not_open_lets_go_of_the_lock(store: Store):
    store.close()
    with pytest.raises(GalleryFullError) as kept:  # the error holds the frames that it came through
        open_gallery(store.folder, write=True, max_memory=entry_bytes(8))
    open_gallery(store.folder, write=True).close()
    assert "has 10 entries, 1 fit in the memory" in str(kept.value)


def test_a_gallery_that_is_not_there_is_not_made_by_opening_it(tmp_path: Path):
    for write in (False, True):
        with pytest.raises(GalleryError, match="no gallery at"):
            open_gallery(tmp_path / "nothing", write=write)
    with pytest.raises(GalleryError, match="no gallery at"), open_writer(tmp_path / "nothing"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_rebuild_is_not_served(store: Store):
    store.write_note(STATE, REBUILDING)
    with pytest.raises(GalleryError, match="unfinished rebuild"):
        read_snapshot(store.folder)


def test_a_full_gallery_refuses_more_and_keeps_serving(store: Store):
    store.close()
    room = 12 * entry_bytes(8)
    with contextlib.closing(open_gallery(store.folder, write=True, max_memory=room)) as writer:
        with pytest.raises(GalleryFullError, match="would hold 13 entries, 12 fit in the memory"):
            writer.upsert([record(f"n{number}", number) for number in range(3)])
        assert (len(writer.snapshot), writer.snapshot.generation) == (10, 1)
        writer.upsert([record(f"n{number}", number) for number in range(2)])
        writer.upsert([record("n0", 99)])  # one that is there takes no more room
        writer.delete(["n0"])
        writer.upsert([record("n5", 5)])
        assert len(writer.snapshot) == 12


def test_a_reader_that_a_gallery_outgrows_keeps_its_snapshot_and_says_so(store: Store):
    with contextlib.closing(open_gallery(store.folder, max_memory=11 * entry_bytes(8))) as reader:
        store.upsert([record("x", 1), record("y", 2)])
        for _ in range(2):
            with pytest.raises(GalleryFullError, match="has 12 entries, 11 fit"):
                reader.refresh()
        assert len(reader.snapshot) == 10
        store.delete(["e0"])
        assert reader.refresh()
        assert len(reader.snapshot) == 11


def test_what_memory_failed_for_is_read_again_and_once(small_blocks, store: Store, gallery: FolderGallery, monkeypatch):
    store.upsert([record(f"n{number}", number) for number in range(30)])
    append, fails = Growth._append, [False, True]

    def failing(self, piece):
        if fails and fails.pop():
            append(self, piece)
            raise MemoryError
        append(self, piece)

    monkeypatch.setattr(Growth, "_append", failing)
    with pytest.raises(MemoryError):
        gallery.refresh()
    assert gallery.snapshot.generation == 1
    assert gallery.refresh()
    assert [entry.id for entry in gallery.snapshot.entries()] == [entry.id for entry in entries_of(store)]


def test_a_write_that_could_not_be_shown_is_shown_by_the_next_refresh(store: Store, monkeypatch):
    store.close()
    with contextlib.closing(open_gallery(store.folder, write=True)) as writer:
        with monkeypatch.context() as patched:
            patched.setattr(Growth, "apply", lambda self, changes: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(GalleryBehindError, match="the write is on the disk"):
                writer.upsert([record("new", 9)])
        assert writer.snapshot.find("new") is None
        assert writer.refresh()
        assert writer.snapshot.find("new") == Entry("new")


def test_a_reader_from_before_a_compaction_reads_everything_again(store: Store, gallery: FolderGallery):
    store.delete(["e3"])
    store.upsert([record("new", 20)])
    held = gallery.snapshot
    store.compact()
    assert gallery.refresh()
    assert [entry.id for entry in gallery.snapshot.entries()] == [entry.id for entry in entries_of(store)]
    assert (len(held), held.find("e3")) == (10, Entry("e3", pid="0"))
    assert not gallery.refresh()


# A dict against the gallery. The writes that are killed are made by a process that has never opened the gallery's
# file before: SQLite's locks do not live through a fork.

KILLED = """
import base64, json, os, pickle, signal, sys, time
from pathlib import Path
from reidserve.index import open_gallery
from reidserve.index.storage.store import Store

def write(folder, kind, given, dies_at, told):
    count = [0]
    def counted(plain):
        def call(*arguments):
            count[0] += 1
            if count[0] == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments)
        return call
    Store._insert, Store._remove = counted(Store._insert), counted(Store._remove)
    gallery = open_gallery(Path(folder), write=True)
    os.write(told, b"o")
    getattr(gallery, kind)(given)
    os.write(told, b"a")
    signal.pause()

for line in sys.stdin:
    folder, kind, given, dies_at, delay = pickle.loads(base64.b64decode(line))
    hears, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(hears)
        write(folder, kind, given, dies_at, told)
    os.close(told)
    heard = os.read(hears, 1)
    if not dies_at:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    while more := os.read(hears, 1):
        heard += more
        if heard == b"oa":
            os.kill(child, signal.SIGKILL)
    os.close(hears)
    os.waitpid(child, 0)
    print(json.dumps(heard.decode()), flush=True)
"""


@dataclass
class KilledWriter:
    process: subprocess.Popen

    def write(self, folder: Path, kind: str, given, *, dies_at: int = 0, delay: float = 0) -> bool:
        """Have it write and be killed, at its n-th row or after some seconds; returns whether the call returned."""
        line = base64.b64encode(pickle.dumps((str(folder), kind, given, dies_at, delay)))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        heard = json.loads(self.process.stdout.readline())
        assert heard in ("o", "oa")
        return heard == "oa"


_killed_writers: list[KilledWriter] = []


def killed_writer() -> KilledWriter:
    if not _killed_writers:
        process = subprocess.Popen([sys.executable, "-P", "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _killed_writers.append(KilledWriter(process))
    return _killed_writers[0]


@pytest.fixture(scope="module", autouse=True)
def _no_killed_writer_stays():
    yield
    for writer in _killed_writers:
        writer.process.communicate()
    _killed_writers.clear()


NUMBERS = st.lists(st.integers(0, 40), min_size=1, max_size=25, unique=True)
FACTS = st.integers(0, 11)
ATTRIBUTES: list[Attributes] = [
    {},
    {"n": 1},
    {"n": True},
    {"n": 1.0, "colour": "red"},
    {"colour": "blåtand\0"},
    {"n": "1"},
]
FILTERS = [
    Filter(),
    Filter(pids=frozenset({"p0", "p1"})),
    Filter(camids=frozenset({"c1"})),
    Filter(not_camids=frozenset({"c1"})),
    Filter(ids=frozenset({"e1", "e2", "e3", "nobody"})),
    Filter(ids=frozenset()),
    Filter(since=3, until=9),
    Filter(attributes=(Condition("n", "==", (1,)),)),
    Filter(attributes=(Condition("n", "==", (True,)),)),
    Filter(attributes=(Condition("colour", "in", ("red", "green")),)),
]


def facts_of(number: int, facts: int) -> Entry:
    return Entry(
        f"e{number}",
        pid=None if facts == 5 else f"p{number % 4}",
        camid=None if facts == 7 else f"c{(number + facts) % 3}",
        timestamp=None if facts == 3 else facts,
        attributes=ATTRIBUTES[facts % len(ATTRIBUTES)],
    )


def content_of(number: int, facts: int, content: int) -> Record:
    # Contents are few: many entries have equal vectors.
    return Record(facts_of(number, facts), bytes([content]) * 32, record("", content).vector)


class GalleryAgainstDict(RuleBasedStateMachine):
    """Any sequence of moves leaves what a dict would hold, here and in a second reader, and what it was before."""

    @initialize()
    def make(self) -> None:
        self.undo = contextlib.ExitStack()
        patch = self.undo.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("reidserve.index.search.blocks.BLOCK_ROWS", 8)
        patch.setattr("reidserve.index.storage.rows.PIECE_ROWS", 8)
        self.folder = Path(self.undo.enter_context(tempfile.TemporaryDirectory())) / "g"
        create_store(self.folder, ORIGIN).close()
        self.open_writer()
        self.reader = open_gallery(self.folder)
        self.plain = Plain()
        self.held: list[tuple[FolderSnapshot, Plain]] = [(self.reader.snapshot, self.plain.copy())]

    def open_writer(self) -> None:
        self.writer = open_gallery(self.folder, write=True)

    @rule(numbers=NUMBERS, facts=FACTS, content=st.integers(0, 6), spread=st.booleans())
    def upsert(self, numbers, facts, content, spread) -> None:
        records = [content_of(number, facts, content + spread * number) for number in numbers]
        before = self.plain.generation
        changed = self.plain.upsert(records)
        written = self.writer.upsert(records)
        assert (written.changed, written.generation) == (changed, before + bool(changed))

    @rule(numbers=NUMBERS, facts=FACTS)
    def update(self, numbers, facts) -> None:
        entries = [facts_of(number, facts) for number in numbers]
        if all(entry.id in self.plain.held for entry in entries):
            assert self.writer.update(entries).changed == self.plain.update(entries)
            return
        with pytest.raises(EntryNotFoundError):
            self.writer.update(entries)
        there = [entry for entry in entries if entry.id in self.plain.held]
        assert self.writer.update(there).changed == self.plain.update(there)

    @rule(numbers=NUMBERS)
    def delete(self, numbers) -> None:
        ids = [f"e{number}" for number in numbers]
        assert self.writer.delete(ids).changed == self.plain.delete(ids)

    @rule(where=st.sampled_from(FILTERS[1:]))
    def delete_where(self, where) -> None:
        assert self.writer.delete(where=where).changed == self.plain.delete(self.plain.matching(where))

    @rule()
    def refresh(self) -> None:
        behind = self.reader.snapshot.generation != self.plain.generation
        assert self.reader.refresh() == behind
        assert_holds(self.reader.snapshot, self.plain)

    @rule()
    def hold(self) -> None:
        self.held.append((self.writer.snapshot, self.plain.copy()))
        self.held = self.held[-4:]

    @rule(whose=st.sampled_from(["writer", "reader", "both"]))
    def reopen(self, whose) -> None:
        if whose != "reader":
            self.writer.close()
        if whose != "writer":
            self.reader.close()
            self.reader = open_gallery(self.folder)
            assert_holds(self.reader.snapshot, self.plain)
        if whose != "reader":
            self.open_writer()

    @rule()
    def compact(self) -> None:
        self.writer.close()
        with open_writer(self.folder) as store:
            store.compact()
            assert store.faults() == []
        self.open_writer()

    @rule(
        numbers=NUMBERS,
        facts=FACTS,
        content=st.integers(0, 6),
        deletes=st.booleans(),
        dies_at=st.integers(0, 12),
        delay=st.floats(0, 0.008),
    )
    def kill(self, numbers, facts, content, deletes, dies_at, delay) -> None:
        self.writer.close()
        after = self.plain.copy()
        given: list
        if deletes:
            kind, given = "delete", [f"e{number}" for number in numbers]
            after.delete(given)
        else:
            kind, given = "upsert", [content_of(number, facts, content) for number in numbers]
            after.upsert(given)
        returned = killed_writer().write(self.folder, kind, given, dies_at=dies_at, delay=delay)
        self.open_writer()
        if returned or self.writer.snapshot.generation == after.generation:
            self.plain = after

    @rule(seed=st.integers(0, 99), where=st.sampled_from([None, *FILTERS]), top_k=st.sampled_from([1, 3, 10, 50]))
    def search(self, seed, where, top_k) -> None:
        queries = unit_rows(np.random.default_rng(seed), 7, 8)
        queries[3:5] = record("", seed % 8).vector
        left_out = None
        if seed % 2:
            rows = [row for row, _ in self.plain.held.values()]
            left_out = np.array([rows[seed * place % len(rows)] if rows else -1 for place in range(7)], np.int64)
        expected = self.plain.search(queries, top_k=top_k, where=where, left_out=left_out)
        assert_equal(self.writer.snapshot.search(queries, top_k=top_k, where=where, left_out=left_out), expected)
        for snapshot, plain in self.held:
            assert_equal(
                snapshot.search(queries[2:4], top_k=top_k, where=where),
                plain.search(queries[2:4], top_k=top_k, where=where),
            )

    @rule(number=st.integers(0, 40), top_k=st.sampled_from([1, 5, 50]))
    def search_entry(self, number, top_k) -> None:
        name = f"e{number}"
        if name not in self.plain.held:
            with pytest.raises(EntryNotFoundError):
                self.writer.snapshot.search_entry(name, top_k=top_k)
            return
        row, held = self.plain.held[name]
        expected = self.plain.search(held.vector[np.newaxis], top_k=top_k, left_out=np.array([row]))
        assert_equal(self.writer.snapshot.search_entry(name, top_k=top_k), expected)

    @precondition(lambda self: hasattr(self, "writer"))
    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert_holds(self.writer.snapshot, self.plain)
        for snapshot, plain in self.held:
            assert_holds(snapshot, plain)

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            self.reader.close()
            with open_writer(self.folder) as store:
                assert store.faults() == []
                assert store.count() == len(self.plain.held)
            self.undo.close()


TestGalleryAgainstDict = GalleryAgainstDict.TestCase
TestGalleryAgainstDict.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_long_walk_with_small_blocks_seals_packs_and_forgets_like_a_dict(tmp_path: Path, small_blocks):
    rng = np.random.default_rng(11)
    plain = Plain()
    create_store(tmp_path / "g", ORIGIN).close()
    with contextlib.ExitStack() as opened:
        writer, reader = (
            opened.enter_context(contextlib.closing(open_gallery(tmp_path / "g", write=write)))
            for write in (True, False)
        )
        lengths = set()
        for step in range(300):
            # It grows, and shrinks to next to nothing, again and again.
            share = 0.15 if step // 40 % 2 else 0.85
            numbers = rng.choice(200, int(rng.integers(1, 20)), replace=False).tolist()
            if rng.random() < share:
                records = [content_of(number, step % 12, int(rng.integers(200))) for number in numbers]
                assert writer.upsert(records).changed == plain.upsert(records)
            else:
                ids = [f"e{number}" for number in range(200) if rng.random() < 0.3]
                assert writer.delete(ids).changed == plain.delete(ids)
            lengths |= {len(block.rows) for block in writer.snapshot.blocks}
            assert all(0 < block.count <= len(block.rows) <= 8 for block in writer.snapshot.blocks)
            if step % 3 == 0:
                queries = unit_rows(rng, 6, 8)
                where = FILTERS[int(rng.integers(len(FILTERS)))] if step % 2 else None
                expected = plain.search(queries, top_k=7, where=where)
                assert_equal(writer.snapshot.search(queries, top_k=7, where=where), expected)
            if step % 7 == 0:
                queries = unit_rows(rng, 3, 8)
                reader.refresh()
                assert_equal(reader.snapshot.search(queries, top_k=5), plain.search(queries, top_k=5))
            if step % 20 == 0:
                assert_holds(writer.snapshot, plain)
        assert lengths == set(range(1, 9))
        reader.refresh()
        assert_holds(reader.snapshot, plain)
    with contextlib.closing(open_gallery(tmp_path / "g")) as anew:
        assert_holds(anew.snapshot, plain)
