import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest

from reidserve.errors import EntryError, EntryNotFoundError, GalleryError, GalleryFullError, GalleryLockedError
from reidserve.index.entry import MAX_TEXT, Entry
from reidserve.index.storage.database import DATABASE, Origin
from reidserve.index.storage.lock import writer_lock
from reidserve.index.storage.rows import Damage, Record, Stored, Written
from reidserve.index.storage.store import Store, create_store, open_store
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


def got(store: Store, name: str) -> Stored:
    found = store.get(name)
    assert found is not None
    return found


def entries_of(store: Store):
    return [found.entry for found in store.scan() if isinstance(found, Stored)]


def test_what_was_written_is_read_back(store: Store):
    attributes = {"colour": "red", "speed": 13.9, "doors": 4, "seen": True}
    written = [record("a", 1, pid="7", camid="2", timestamp=-5, source="/x/a.jpg", attributes=attributes)]
    written.append(record("b", 2))
    assert store.upsert(written) == Written(1, 2)
    changes = store.changes(since=0)
    (piece,) = changes.pieces
    assert (changes.generation, changes.anew, list(changes.damaged)) == (1, False, [])
    assert piece.rows.tolist() == [1, 2]
    assert list(piece.entries) == [one.entry for one in written]
    assert type(piece.entries[0].attributes["doors"]) is int
    assert piece.entries[0].attributes["seen"] is True
    np.testing.assert_array_equal(piece.vectors, np.stack([one.vector for one in written]))
    assert changes.deleted.tolist() == []
    assert store.count() == 2


def test_writing_an_entry_again_gives_it_a_new_row_and_buries_the_old_one(store: Store):
    store.upsert([record("a", 1), record("b", 2)])
    assert store.upsert([record("a", 3, pid="9")]) == Written(2, 1)
    changes = store.changes(since=1)
    (piece,) = changes.pieces
    assert piece.rows.tolist() == [3]
    assert piece.entries[0] == Entry("a", pid="9")
    assert changes.deleted.tolist() == [1]
    assert store.ids() == {"a", "b"}
    assert store.count() == 2


def test_writing_what_is_there_as_it_is_changes_nothing(store: Store):
    store.upsert([record("a", 1, pid="9", attributes={"x": 1.5}), record("b", 2)])
    assert store.upsert([record("a", 1, pid="9", attributes={"x": 1.5}), record("b", 2)]) == Written(1, 0)
    assert store.upsert([]) == Written(1, 0)
    assert store.upsert([record("a", 1, pid="9", attributes={"x": 1.5}), record("b", 3)]) == Written(2, 1)
    assert [found.row for found in store.scan()] == [1, 3]


@pytest.mark.parametrize(("was", "is_now"), [(1, True), (True, 1), (0, False), (1, 1.0), (1, "1")])
def test_a_value_of_another_type_is_another_value(store: Store, was, is_now):
    store.upsert([record("a", 1, attributes={"x": was})])
    assert store.upsert([record("a", 1, attributes={"x": is_now})]) == Written(2, 1)
    assert store.update([Entry("a", attributes={"x": was})]) == Written(3, 1)
    ((_, kept),) = entries_of(store)[0].attributes.items()
    assert (kept, type(kept)) == (was, type(was))


def test_a_row_number_is_never_used_again(store: Store):
    store.upsert([record("a", 1)])
    store.delete(["a"])
    store.upsert([record("b", 2)])
    assert [found.row for found in store.scan()] == [2]
    store.delete(["b"])
    store.compact()
    store.upsert([record("c", 3)])
    assert [found.row for found in store.scan()] == [3]


def test_deleting_what_is_not_there_changes_nothing(store: Store):
    store.upsert([record("a", 1)])
    assert store.delete(["nobody", "nobody"]) == Written(1, 0)
    assert store.delete(["a", "nobody", "a"]) == Written(2, 1)
    changes = store.changes(since=1)
    assert (list(changes.pieces), changes.deleted.tolist()) == ([], [1])


def test_an_update_changes_what_is_said_and_keeps_the_embedding(store: Store):
    store.upsert([record("a", 1), record("b", 2)])
    assert store.update([Entry("a", pid="5"), Entry("b")]) == Written(2, 1)
    kept = got(store, "a")
    assert (kept.entry, kept.content_sha256, kept.row) == (Entry("a", pid="5"), bytes([1]) * 32, 3)
    np.testing.assert_array_equal(kept.vector, record("a", 1).vector)
    with pytest.raises(EntryNotFoundError, match="no entry 'c'"):
        store.update([Entry("a", pid="6"), Entry("c")])
    assert (got(store, "a").entry, store.generation()) == (Entry("a", pid="5"), 2)


@pytest.mark.parametrize("call", ["upsert", "update"])
def test_an_id_that_comes_twice_is_refused_and_nothing_written(store: Store, call):
    store.upsert([record("a", 1)])
    given = [record("b", 2), record("c", 3), record("c", 4)]
    with pytest.raises(EntryError, match="entry 'c' comes twice in one write"):
        getattr(store, call)(given if call == "upsert" else [one.entry for one in given])
    assert (store.generation(), store.ids()) == (1, {"a"})


def test_a_transaction_that_fails_half_way_writes_nothing(store: Store, monkeypatch):
    store.upsert([record("a", 1)])
    insert, calls = Store._insert, []

    def failing(self, one, generation):
        calls.append(one)
        if len(calls) == 3:
            raise sqlite3.OperationalError("the disk is gone")
        insert(self, one, generation)

    monkeypatch.setattr(Store, "_insert", failing)
    with pytest.raises(GalleryError, match="the disk is gone; what was committed before is safe"):
        store.upsert([record("a", 9), record("b", 2), record("c", 3)])
    assert (store.generation(), store.count(), store.ids()) == (1, 1, {"a"})
    assert got(store, "a").row == 1
    assert store.upsert([record("d", 4)]) == Written(2, 1)
    assert store.faults() == []


def test_of_a_malformed_file_nothing_is_called_safe(store: Store, monkeypatch):
    def failing(self, name):
        raise malformed

    malformed = sqlite3.DatabaseError("database disk image is malformed")
    malformed.sqlite_errorcode = sqlite3.SQLITE_CORRUPT_INDEX
    monkeypatch.setattr(Store, "_find", failing)
    with pytest.raises(GalleryError, match="malformed; restore a snapshot, or build the gallery again$"):
        store.get("a")


def test_a_full_gallery_writes_nothing_of_the_call(store: Store):
    store.most_entries = 2
    store.upsert([record("a", 1), record("b", 2)])
    with pytest.raises(GalleryFullError, match="would hold 3 entries, 2 fit in the memory .* raise --max-memory"):
        store.upsert([record("a", 9), record("c", 3)])
    assert (store.generation(), store.count(), got(store, "a").row) == (1, 2, 1)
    store.upsert([record("a", 9)])
    store.most_entries = 1
    store.upsert([record("b", 8)])  # it is too full, but this makes it no fuller
    store.update([Entry("a", pid="1")])
    store.delete(["a"])
    assert store.ids() == {"b"}


def test_a_reopened_gallery_is_the_one_that_was_closed(store: Store):
    store.upsert([record("a", 1)])
    store.close()
    again = open_store(store.folder)
    assert again.origin == ORIGIN
    (piece,) = again.changes(since=0).pieces
    np.testing.assert_array_equal(piece.vectors[0], record("a", 1).vector)
    again.close()


def test_an_embedding_is_found_by_the_content_it_came_from(store: Store):
    store.upsert([record("a", 1)])
    np.testing.assert_array_equal(store.find_vector(bytes([1]) * 32), record("a", 1).vector)
    assert store.find_vector(bytes([2]) * 32) is None
    assert store.contents() == {"a": (Entry("a"), bytes([1]) * 32)}


def test_the_embedding_of_a_damaged_entry_is_not_used_again(store: Store):
    store.upsert([record("a", 1), record("b", 1)])
    damage(store, "UPDATE vector SET blob = zeroblob(32) WHERE row = 1")
    np.testing.assert_array_equal(store.find_vector(bytes([1]) * 32), record("a", 1).vector)
    damage(store, "UPDATE vector SET blob = zeroblob(32) WHERE row = 2")
    assert store.find_vector(bytes([1]) * 32) is None
    assert store.contents() == {}
    assert store.ids() == {"a", "b"}


def test_another_connection_sees_what_was_committed(store: Store):
    reader = open_store(store.folder)
    before = reader.version()
    assert reader.version() == before
    store.upsert([record("a", 1)])
    assert reader.version() != before
    assert [entry.id for entry in reader.changes(since=0).pieces[0].entries] == ["a"]
    reader.close()


def test_commits_are_synchronous_and_checksums_are_of_the_bytes(store: Store):
    store.upsert([record("a", 1), record("b", 1, attributes={"z": 1, "a": "x"})])
    with sqlite3.connect(store.folder / DATABASE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        (blob, crc32), (_, with_attributes) = connection.execute("SELECT blob, crc32 FROM vector").fetchall()
    connection.close()
    assert blob == record("a", 1).vector.astype("<f4").tobytes()
    assert crc32 == zlib.crc32(blob + b'["a",null,null,null,null]')
    said = b'["b",null,null,null,null,"{\\"a\\":\\"x\\",\\"z\\":1}"]'
    assert msgspec.json.decode(said)[-1] == '{"a":"x","z":1}'
    assert with_attributes == zlib.crc32(blob + said)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


DAMAGES = [
    ("UPDATE vector SET blob = zeroblob(32) WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE vector SET blob = zeroblob(31) WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE vector SET crc32 = crc32 + 1 WHERE row = 2", "b", "it fails its checksum"),
    ("DELETE FROM vector WHERE row = 2", "b", "its vector is missing"),
    ("UPDATE entry SET pid = '8' WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE entry SET camid = NULL WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE entry SET id = 'c' WHERE row = 2", "c", "it fails its checksum"),
    ("UPDATE entry SET id = '' WHERE row = 2", "", "an entry's id must not be empty"),
    ("UPDATE entry SET timestamp = 1 WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE entry SET source = '' WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE entry SET attributes = '{\"x\":2}' WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE entry SET attributes = '{}' WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE entry SET attributes = '{\"x\":' WHERE row = 2", "b", "truncated"),
    ("UPDATE entry SET attributes = '[1]' WHERE row = 2", "b", "Expected `object`"),
    ("UPDATE entry SET attributes = '{\"x\":null}' WHERE row = 2", "b", "attribute x must be text"),
    ("UPDATE entry SET pid = CAST(x'ff37' AS TEXT) WHERE row = 2", "b", "it fails its checksum"),
    ("UPDATE entry SET id = CAST(x'ff62' AS TEXT) WHERE row = 2", "\\xffb", "it fails its checksum"),
]


@pytest.mark.parametrize(("statement", "name", "fault"), DAMAGES)
def test_damage_is_noticed_and_its_entry_named_and_the_rest_is_read(store: Store, statement, name, fault):
    store.upsert([record("a", 1), record("b", 2, pid="7", camid="1", attributes={"x": 1}), record("d", 3)])
    damage(store, statement)
    changes = store.changes(since=0)
    (found,) = changes.damaged
    assert (found.row, found.id) == (2, name)
    assert fault in found.fault
    assert [entry.id for entry in changes.pieces[0].entries] == ["a", "d"]
    assert [type(one) for one in store.scan()] == [Stored, Damage, Stored]
    assert set(store.contents()) == {"a", "d"}
    assert store.ids() == {"a", "d", name}


@pytest.mark.parametrize("statement", [statement for statement, name, _ in DAMAGES if name == "b"])
def test_a_damaged_entry_is_refused_by_name_and_mended_by_writing_it_again(store: Store, statement):
    store.upsert([record("a", 1), record("b", 2, pid="7", camid="1", attributes={"x": 1}), record("d", 3)])
    damage(store, statement)
    for call in (lambda: store.get("b"), lambda: store.update([Entry("a", pid="2"), Entry("b")])):
        with pytest.raises(GalleryError, match="is damaged: entry 'b': .*reid-index verify --repair"):
            call()
    assert store.upsert([record("b", 2, pid="7", camid="1", attributes={"x": 1})]) == Written(2, 1)
    changes = store.changes(since=1)
    assert (changes.deleted.tolist(), list(changes.damaged)) == ([2], [])
    assert got(store, "b").row == 4
    assert (store.count(), store.faults()) == (3, [])


def test_types_that_no_column_ever_had_are_damage_too(store: Store):
    store.upsert([record("a", 1), record("b", 2)])
    with sqlite3.connect(store.folder / DATABASE) as connection:
        # A flipped bit in a record's header turns one type into another; STRICT tables only look when they are written.
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'vector'")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ') STRICT', ')') WHERE name = 'entry'")
    connection.close()
    with sqlite3.connect(store.folder / DATABASE) as connection:
        connection.execute("UPDATE vector SET blob = 7 WHERE row = 1")
        connection.execute("UPDATE entry SET pid = x'37', attributes = 5.5 WHERE row = 2")
    connection.close()
    again = open_store(store.folder)
    assert [(one.row, one.id) for one in again.changes(since=0).damaged] == [(1, "a"), (2, "b")]
    again.close()


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


def test_a_damaged_page_is_a_gallery_error_in_every_call(store: Store):
    store.upsert([record(f"e{number}", number) for number in range(200)])
    store.close()
    data = bytearray((store.folder / DATABASE).read_bytes())
    for page in range(1, len(data) // 16384):
        data[page * 16384 : page * 16384 + 200] = b"\xff" * 200
    (store.folder / DATABASE).write_bytes(data)
    calls = [
        *(Store.ids, Store.contents, Store.count, Store.generation, Store.compact, Store.mend),
        *(lambda opened: opened.changes(since=0), lambda opened: opened.note("x"), lambda opened: opened.get("e1")),
        *(lambda opened: opened.upsert([record("new")]), lambda opened: opened.delete(["e1"])),
        *(lambda opened: opened.update([Entry("e1")]), lambda opened: list(opened.scan())),
    ]
    for call in calls:
        with pytest.raises(GalleryError):
            call(open_store(store.folder, write=True))


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.ones(7, np.float32), r"expected a vector of 8 dimensions, got \(7,\)"),
        (np.ones(8, np.float32), "expected a vector of unit length, got 2.82843"),
        (np.full(8, np.nan, np.float32), "expected a vector of unit length, got nan"),
        (np.full(8, 1e30, np.float32), "expected a vector of unit length, got inf"),
    ],
)
def test_a_vector_that_no_search_could_use_is_never_acknowledged(store: Store, vector, message):
    good = record("good", 1)
    with pytest.raises(EntryError, match=f"entry 'bad': {message}"):
        store.upsert([good, Record(Entry("bad"), good.content_sha256, vector)])
    assert store.ids() == set()


def test_notes_are_kept_and_change_no_generation(store: Store):
    assert store.note("root") is None
    store.write_note("root", "/a")
    store.write_note("root", "/b")
    assert (store.note("root"), store.generation()) == ("/b", 0)


def test_a_compaction_forgets_who_went_and_gives_the_disk_back(store: Store):
    store.upsert([record(f"e{number}", number % 200) for number in range(2000)])
    store.delete([f"e{number}" for number in range(1990)])
    before = (store.folder / DATABASE).stat().st_size + (store.folder / f"{DATABASE}-wal").stat().st_size
    store.compact()
    after = (store.folder / DATABASE).stat().st_size + (store.folder / f"{DATABASE}-wal").stat().st_size
    assert after < before / 3
    assert (store.count(), store.generation(), store.faults()) == (10, 2, [])
    assert damage(store, "SELECT count(*) FROM deleted") == (0,)
    behind, level = store.changes(since=1), store.changes(since=2)
    assert (behind.anew, [len(piece.rows) for piece in behind.pieces]) == (True, [10])
    assert (level.anew, list(level.pieces), level.deleted.tolist()) == (False, [], [])


def test_faults_are_named_and_mended(store: Store):
    store.upsert([record("a", 1), record("b", 2)])
    damage(store, "UPDATE meta SET value = 7 WHERE key = 'entries'")
    damage(store, "DELETE FROM entry WHERE row = 1")
    assert store.faults() == ["the counter says 7 entries, the table holds 1", "1 vectors belong to no entry"]
    store.mend()
    assert (store.faults(), store.count()) == ([], 1)


def test_a_damaged_row_is_given_the_vector_that_it_had_and_no_other(store: Store):
    store.upsert([record("a", 1, pid="3"), record("b", 2)])
    damage(store, "UPDATE vector SET blob = zeroblob(32) WHERE row = 1")
    (found,) = store.changes(since=0).damaged
    assert not store.replace_vector(found, bytes([1]) * 32, record("", 5).vector)
    assert not store.replace_vector(found, bytes([5]) * 32, record("", 1).vector)
    assert store.generation() == 1
    assert store.replace_vector(found, bytes([1]) * 32, record("", 1).vector)
    assert got(store, "a").entry == Entry("a", pid="3")
    assert (store.generation(), store.count(), store.faults()) == (2, 2, [])
    assert not store.replace_vector(found, bytes([1]) * 32, record("", 1).vector)


def test_a_scan_that_is_given_up_leaves_the_store_usable(store: Store):
    store.upsert([record("a", 1), record("b", 2)])
    scan = cast(Generator, store.scan())
    next(scan)
    scan.close()
    assert store.upsert([record("c", 3)]).generation == 2


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path):
    hold = (
        "import sys, pathlib; from reidserve.index.storage.lock import writer_lock\n"
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
