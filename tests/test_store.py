import shutil
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from reidserve.errors import EntryError, GalleryError, GalleryLockedError
from reidserve.index.entry import MAX_TEXT, Entry
from reidserve.index.lock import writer_lock
from reidserve.index.store import DATABASE, Origin, Record, Store, create_store, holds_gallery, open_store
from tests.conftest import unit_rows

ORIGIN = Origin("f" * 64, "fp32/onnxruntime-cpu", 8)


def record(name: str, seed: int = 0, **fields) -> Record:
    name = name or "unused"
    return Record(Entry(name, **fields), bytes([seed]) * 32, unit_rows(np.random.default_rng(seed), 1, 8)[0])


@pytest.fixture
def store(tmp_path: Path):
    opened = create_store(tmp_path / "g.gallery", ORIGIN)
    yield opened
    opened.close()


def damage(store: Store, statement: str):
    with sqlite3.connect(store.folder / DATABASE) as connection:
        found = connection.execute(statement).fetchone()
    connection.close()
    return found


def test_what_was_written_is_read_back(store: Store):
    written = [record("a", 1, pid="7", camid="2", timestamp=-5, source="/x/a.jpg"), record("b", 2)]
    assert store.write(written) == 1
    changes = store.changes(since=0)
    assert changes.generation == 1
    assert changes.rows.tolist() == [1, 2]
    assert list(changes.entries) == [one.entry for one in written]
    np.testing.assert_array_equal(changes.vectors, np.stack([one.vector for one in written]))
    assert changes.deleted.tolist() == []


def test_writing_an_entry_again_gives_it_a_new_row_and_buries_the_old_one(store: Store):
    store.write([record("a", 1), record("b", 2)])
    store.write([record("a", 3, pid="9")])
    changes = store.changes(since=1)
    assert changes.rows.tolist() == [3]
    assert changes.entries[0] == Entry("a", pid="9")
    assert changes.deleted.tolist() == [1]
    assert store.ids() == {"a", "b"}


def test_a_row_number_is_never_used_again(store: Store):
    store.write([record("a", 1)])
    store.write([], delete=["a"])
    store.write([record("b", 2)])
    assert store.changes(since=0).rows.tolist() == [2]


def test_deleting_what_is_not_there_changes_nothing_but_the_generation(store: Store):
    store.write([record("a", 1)])
    assert store.write([], delete=["nobody"]) == 2
    changes = store.changes(since=1)
    assert (changes.rows.tolist(), changes.deleted.tolist()) == ([], [])


def test_a_transaction_that_fails_half_way_writes_nothing(store: Store):
    store.write([record("a", 1)])
    with pytest.raises(GalleryError, match="UNIQUE constraint failed: entry.id; what was committed before is safe"):
        store.write([record("b", 2), record("c", 3), record("c", 4)], delete=["a"])
    changes = store.changes(since=0)
    assert (changes.generation, [entry.id for entry in changes.entries]) == (1, ["a"])


def test_a_reopened_gallery_is_the_one_that_was_closed(store: Store):
    store.write([record("a", 1)])
    store.close()
    again = open_store(store.folder)
    assert again.origin == ORIGIN
    np.testing.assert_array_equal(again.changes(since=0).vectors[0], record("a", 1).vector)
    again.close()


def test_an_embedding_is_found_by_the_content_it_came_from(store: Store):
    store.write([record("a", 1)])
    np.testing.assert_array_equal(store.find_vector(bytes([1]) * 32), record("a", 1).vector)
    assert store.find_vector(bytes([2]) * 32) is None
    assert store.contents() == {"a": (Entry("a"), bytes([1]) * 32)}


def test_another_connection_sees_what_was_committed(store: Store):
    reader = open_store(store.folder)
    before = reader.version()
    assert reader.version() == before
    store.write([record("a", 1)])
    assert reader.version() != before
    assert [entry.id for entry in reader.changes(since=0).entries] == ["a"]
    reader.close()


def test_commits_are_synchronous_and_checksums_are_of_the_bytes(store: Store):
    store.write([record("a", 1)])
    with sqlite3.connect(store.folder / DATABASE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        blob, crc32 = connection.execute("SELECT blob, crc32 FROM vector").fetchone()
    connection.close()
    assert blob == record("a", 1).vector.astype("<f4").tobytes()
    assert crc32 == zlib.crc32(blob + b'["a",null,null,null,null]')
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_flipped_bit_is_noticed_and_its_entry_named(store: Store):
    store.write([record("a", 1), record("b", 2)])
    damage(store, "UPDATE vector SET blob = zeroblob(32) WHERE row = 2")
    with pytest.raises(GalleryError, match="entry .b. fails its checksum"):
        store.changes(since=0)


@pytest.mark.parametrize("change", ["pid = '8'", "camid = NULL", "id = 'c'", "timestamp = 1", "source = ''"])
def test_a_word_of_an_entry_that_changed_on_the_disk_is_noticed(store: Store, change):
    store.write([record("a", 1), record("b", 2, pid="7", camid="1")])
    damage(store, f"UPDATE entry SET {change} WHERE row = 2")
    with pytest.raises(GalleryError, match="fails its checksum"):
        store.changes(since=0)


def test_a_gallery_that_was_replaced_under_a_reader_is_said_to_be(store: Store):
    reader = open_store(store.folder)
    reader.version()
    shutil.copy(store.folder / DATABASE, store.folder / "copy")
    (store.folder / "copy").replace(store.folder / DATABASE)
    with pytest.raises(GalleryError, match="is not the file that was opened any more"):
        reader.version()
    (store.folder / DATABASE).unlink()
    with pytest.raises(GalleryError, match="is not the file that was opened any more"):
        reader.version()
    reader.close()


def test_an_entry_without_a_vector_is_noticed(store: Store):
    store.write([record("a", 1), record("b", 2)])
    damage(store, "DELETE FROM vector WHERE row = 1")
    with pytest.raises(GalleryError, match="2 entries were expected .* 1 were read"):
        store.changes(since=0)


def test_a_folder_without_a_gallery_is_refused(tmp_path: Path):
    with pytest.raises(GalleryError, match="no gallery at .*make one with reid-index build"):
        open_store(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path):
    (tmp_path / DATABASE).write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(GalleryError, match="does not open"):
        open_store(tmp_path)
    with pytest.raises(GalleryError, match="is no gallery"):
        holds_gallery(tmp_path)


@pytest.mark.parametrize("write", [False, True])
def test_somebody_elses_database_is_refused_and_left_as_it_was(tmp_path: Path, write: bool):
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("CREATE TABLE meta (key, value)")
    connection.close()
    before = (tmp_path / DATABASE).read_bytes()
    assert holds_gallery(tmp_path)
    with pytest.raises(GalleryError, match="is a database, but no gallery"):
        open_store(tmp_path, write=write)
    assert (tmp_path / DATABASE).read_bytes() == before


def test_a_damaged_page_is_a_gallery_error_in_every_call(store: Store):
    store.write([record(f"e{number}", number) for number in range(200)])
    store.close()
    data = bytearray((store.folder / DATABASE).read_bytes())
    for page in range(1, len(data) // 16384):
        data[page * 16384 : page * 16384 + 200] = b"\xff" * 200
    (store.folder / DATABASE).write_bytes(data)
    calls = [Store.ids, Store.contents, lambda opened: opened.changes(since=0), lambda opened: opened.note("x")]
    for call in [*calls, lambda opened: opened.write([record("new")])]:
        with pytest.raises(GalleryError):
            call(open_store(store.folder, write=True))


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.ones(7, np.float32), r"expected a vector of 8 dimensions, got \(7,\)"),
        (np.ones(8, np.float32), "expected a vector of unit length, got 2.82843"),
        (np.full(8, np.nan, np.float32), "expected a vector of unit length, got nan"),
    ],
)
def test_a_vector_that_no_search_could_use_is_never_acknowledged(store: Store, vector, message):
    good = record("good", 1)
    with pytest.raises(EntryError, match=f"entry 'bad': {message}"):
        store.write([good, Record(Entry("bad"), good.content_sha256, vector)])
    assert store.ids() == set()


def test_a_newer_format_is_refused(store: Store):
    damage(store, "PRAGMA user_version = 2")
    with pytest.raises(GalleryError, match="has format 2, this reidserve reads up to 1"):
        open_store(store.folder)


def test_a_gallery_whose_making_was_cut_off_is_made_whole(tmp_path: Path):
    (tmp_path / DATABASE).touch()
    assert not holds_gallery(tmp_path)
    create_store(tmp_path, ORIGIN).close()
    assert holds_gallery(tmp_path)


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path):
    hold = (
        "import sys, pathlib; from reidserve.index.lock import writer_lock\n"
        "with writer_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(GalleryLockedError, match=f"is being written to by process {holder.pid}"), writer_lock(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with writer_lock(tmp_path):
        pass


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "must not be empty"),
        ({"id": "x" * (MAX_TEXT + 1)}, "may have 4096 characters, got 4097"),
        ({"id": "a\udcff"}, "must be Unicode"),
        ({"id": "a", "pid": "\ud800"}, "an entry's pid must be Unicode"),
    ],
)
def test_an_entry_checks_itself_on_birth(fields, message):
    with pytest.raises(EntryError, match=message):
        Entry(**fields)
