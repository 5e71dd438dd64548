"""Forgetting: what was removed is in no file of the gallery any more, whatever cut it off before."""

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reidserve.client import Client
from reidserve.client import Filter as Asked
from reidserve.datasets import read_crops
from reidserve.embed import Embedder
from reidserve.errors import GalleryError, RemainsError, RetentionError
from reidserve.index import (
    Entry,
    Filter,
    Record,
    build_gallery,
    forget_entries,
    open_gallery,
    open_writer,
    parse_filter,
)
from reidserve.index.search.faiss_cpu import VERSION, Frame
from reidserve.index.storage import database
from reidserve.index.storage.cache import load_codes
from reidserve.index.storage.database import DATABASE, Origin
from reidserve.index.storage.store import ERASED, create_store, open_store
from reidserve.index.verify import verify_gallery
from tests.conftest import run_command, start_server, stop_server, unit_rows, write_crops
from tests.test_database import old_gallery

PERSON = Filter(pids=frozenset({"person-0017"}))
ORIGIN = Origin("a" * 64, "fp32/onnxruntime-cpu", 700)
VECTORS = unit_rows(np.random.default_rng(17), 400, ORIGIN.dim)


@pytest.fixture(autouse=True)
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite as it comes elsewhere: Debian's overwrites what is deleted, of which others keep the bytes."""
    connect = database._connect

    def keeps(path: Path, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    monkeypatch.setattr(database, "_connect", keeps)


def bytes_of(folder: Path) -> bytes:
    """Every byte in a gallery's folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def record(number: int, **said) -> Record:
    """An entry of which every part can be told from all others: vectors of 2,800 bytes, thumbnails of 1,500."""
    rng = np.random.default_rng(number)
    pid = "person-0017" if number % 3 == 0 else f"person-{1000 + number}"
    entry = Entry(f"camera/photo-{number:05}.jpg", **{"pid": pid, "source": f"/srv/photo-{number:05}", **said})
    return Record(entry, rng.bytes(32), VECTORS[number], rng.bytes(1500))


def traces(one: Record) -> dict[str, bytes]:
    """What would tell of a record: pieces that are shorter than SQLite's pages, of each of its parts."""
    blob, thumbnail = one.vector.astype("<f4").tobytes(), one.thumbnail
    assert one.entry.source is not None
    assert thumbnail is not None
    return {
        "id": one.entry.id.encode(),
        "source": one.entry.source.encode(),
        "content": one.content_sha256,
        **{f"vector {start}": blob[start : start + 24] for start in range(0, len(blob), 256)},
        **{f"thumbnail {start}": thumbnail[start : start + 24] for start in range(0, len(thumbnail), 256)},
    }


def left(one: Record, data: bytes) -> list[str]:
    """Which traces of a record there are."""
    return [name for name, trace in traces(one).items() if trace in data]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery of 90 entries, 30 of which are of one person; some were said something else of, some replaced."""
    out = tmp_path / "shop.gallery"
    with contextlib.closing(create_store(out, ORIGIN)) as store:
        for start in range(0, 90, 10):
            store.upsert([record(number) for number in range(start, start + 10)])
    return out


@pytest.mark.parametrize("dim", [24, 700, 2048])
def test_not_a_byte_is_left_of_what_was_forgotten_and_all_of_the_rest(tmp_path: Path, dim: int):
    vectors = unit_rows(np.random.default_rng(dim), 90, dim)

    def of(number: int) -> Record:
        one = record(number)
        return Record(one.entry, one.content_sha256, vectors[number], one.thumbnail)

    records = [of(number) for number in range(90)]
    with contextlib.closing(create_store(tmp_path / "g", Origin("a" * 64, "fp32/x", dim))) as store:
        for start in range(0, 90, 7):
            store.upsert(records[start : start + 7])
    gone = [one for one in records if one.entry.pid == "person-0017"]
    stay = [one for one in records if one.entry.pid != "person-0017"]
    before = bytes_of(tmp_path / "g")
    assert all({"id", "vector 0", "thumbnail 0"} <= set(left(one, before)) for one in records)
    assert b"person-0017" in before
    done = forget_entries(tmp_path / "g", PERSON)
    assert (len(done.entries), done.thumbnails, done.timeless, done.damaged) == (30, 30, 90, [])
    after = bytes_of(tmp_path / "g")
    assert [left(one, after) for one in gone] == [[]] * 30
    assert b"person-0017" not in after
    assert all({"id", "vector 0", "thumbnail 0"} <= set(left(one, after)) for one in stay)
    assert verify_gallery(tmp_path / "g").clean
    with contextlib.closing(open_store(tmp_path / "g")) as store:
        assert store.ids() == {one.entry.id for one in stay}
        assert store.with_thumbnail() == store.ids()


def test_deleting_alone_leaves_bytes_which_is_why_there_is_more(folder: Path):
    with open_writer(folder) as store:
        store.delete([record(3).entry.id])
    assert left(record(3), bytes_of(folder)) != []


def test_what_an_entry_was_before_is_forgotten_with_it(folder: Path):
    before, after = record(1), record(200, source="/srv/another place")
    with open_writer(folder) as store:
        store.upsert([Record(Entry(before.entry.id), after.content_sha256, after.vector, after.thumbnail)])
        store.update([Entry(record(2).entry.id, attributes={"note": "a name that was wrong"})])
        store.update([Entry(record(2).entry.id)])
        assert b"a name that was wrong" in bytes_of(folder)
    forget_entries(folder, PERSON)
    data = bytes_of(folder)
    assert b"a name that was wrong" not in data
    assert left(before, data) == ["id"]


def test_after_much_coming_and_going_only_what_is_there_is_there(tmp_path: Path):
    """Rows move between pages as they come and go: the copies that are left behind on the way must go as well."""
    rng = np.random.default_rng(5)
    there: dict[int, Record] = {}
    gone: list[Record] = []
    with contextlib.closing(create_store(tmp_path / "g", ORIGIN)) as store:
        for step in range(12):
            fresh = [record(number) for number in range(30 * step, 30 * step + 30)]
            store.upsert(fresh)
            there |= {30 * step + place: one for place, one in enumerate(fresh)}
            leaving = rng.choice(sorted(there), 20, replace=False).tolist()
            store.delete(there[number].entry.id for number in leaving)
            gone += [there.pop(number) for number in leaving]
    with contextlib.closing(open_gallery(tmp_path / "g", write=True)) as gallery:
        assert gallery.erase()
        # While it is open still, and its log is there.
        data = bytes_of(tmp_path / "g")
        assert [left(one, data) for one in gone] == [[]] * len(gone)
        assert not gallery.erase()
        assert gallery.snapshot.generation == 24
    assert all("vector 0" in left(one, data) for one in there.values())


def test_a_copy_from_before_a_migration_goes_too(tmp_path: Path):
    records = old_gallery(tmp_path / "g")
    open_store(tmp_path / "g").close()
    assert (tmp_path / "g" / "gallery.format-1.db").exists()
    forget_entries(tmp_path / "g", Filter(pids=frozenset({"4"})))
    assert not (tmp_path / "g" / "gallery.format-1.db").exists()
    assert records[2].vector.astype("<f4").tobytes() not in bytes_of(tmp_path / "g")


def test_no_code_of_what_was_removed_comes_back_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reidserve.index.search.blocks.BLOCK_ROWS", 32)
    monkeypatch.setattr("reidserve.index.storage.rows.PIECE_ROWS", 32)
    create_store(tmp_path / "g", ORIGIN).close()
    code_size = Frame(VECTORS[0], 0).code_size

    def cached() -> list[int]:
        found = load_codes(tmp_path / "g", kind="rabitq", version=VERSION, dim=ORIGIN.dim, code_size=code_size)
        return [] if found is None else found.rows.tolist()

    with contextlib.closing(open_gallery(tmp_path / "g", write=True, kind="rabitq")) as gallery:
        gallery.upsert([record(number) for number in range(80)])
        assert cached() == list(range(1, 65))
        gallery.delete([record(number).entry.id for number in (0, 5, 40)])
        gallery.erase()
        expected = [row for row in range(1, 65) if row not in (1, 6, 41)]
        assert cached() == expected
        gallery.delete([record(7).entry.id])
        gallery.upsert([record(number) for number in range(80, 120)])
    assert cached() == [row for row in range(1, 97) if row not in (1, 6, 8, 41)]
    forget_entries(tmp_path / "g", Filter(ids=frozenset({record(9).entry.id})))
    assert not (tmp_path / "g" / "cache").exists()


KILLED = """
import contextlib, os, pathlib, sqlite3, sys
from reidserve.index import forget_entries, parse_filter
from reidserve.index.storage import database

moment, connect = sys.argv[2], database._connect

def die(statement):
    if statement.startswith(moment):
        os.kill(os.getpid(), 9)

def watched(path, mode):
    connection = connect(path, mode)
    connection.execute("PRAGMA secure_delete = OFF")
    connection.set_trace_callback(die)
    if moment == "within":
        steps = []
        # Each step is a thousand instructions: the deletion is over, and the writing anew is under way.
        connection.set_progress_handler(lambda: steps.append(1) or len(steps) > 25 and os.kill(os.getpid(), 9), 100)
    return connection

database._connect = watched
forget_entries(pathlib.Path(sys.argv[1]), parse_filter("pid == person-0017"))
"""


@pytest.mark.parametrize(
    "moment", ["DELETE FROM thumbnail", "COMMIT", "within", "VACUUM", "PRAGMA wal_checkpoint", "INSERT OR REPLACE INTO"]
)
def test_a_forgetting_that_was_killed_is_finished_by_the_next(folder: Path, moment: str):
    child = subprocess.run([sys.executable, "-P", "-c", KILLED, folder, moment], check=False, capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    done = forget_entries(folder, PERSON)
    assert len(done.entries) == (30 if moment in ("DELETE FROM thumbnail", "COMMIT") else len(done.entries))
    data = bytes_of(folder)
    assert [left(record(number), data) for number in range(0, 90, 3)] == [[]] * 30
    assert verify_gallery(folder).clean
    with contextlib.closing(open_store(folder)) as store:
        assert (store.count(), store.has_remains()) == (60, False)


def test_while_somebody_reads_what_was_it_says_that_bytes_are_left(folder: Path):
    with contextlib.closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as reading:
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM entry").fetchone()
        with pytest.raises(RemainsError, match="its bytes are in the files, as long as the gallery is being read"):
            forget_entries(folder, PERSON)
        reading.execute("COMMIT")
    assert len(forget_entries(folder, PERSON).entries) == 0
    assert b"person-0017" not in bytes_of(folder)


def test_a_repair_that_takes_orphans_away_leaves_remains_to_be_cleared(folder: Path):
    forget_entries(folder, PERSON)
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute("INSERT INTO thumbnail VALUES (9999, ?, 7)", (b"a likeness of nobody" * 9,))
    with open_writer(folder) as store:
        assert not store.has_remains()
        store.mend()
        assert store.has_remains()
        assert store.note(ERASED) is None
    forget_entries(folder, PERSON)
    assert b"a likeness of nobody" not in bytes_of(folder)


def test_a_damaged_entry_is_named_since_it_may_have_been_meant(folder: Path):
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute("UPDATE entry SET pid = 'person-9999' WHERE row = 1")
    done = run_command("reid-index", "forget", folder, "--pid", "person-0017", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["removed"], said["damaged"]) == (1, 29, [record(0).entry.id])


def test_the_command_says_what_it_did_and_what_it_cannot_reach(folder: Path, tmp_path: Path):
    audit = tmp_path / "audit.jsonl"
    said = ("--pid", "person-0017", "--pid", "person-1001", "--where", "id in (camera/photo-00003.jpg, x)")
    done = run_command("reid-index", "forget", folder, *said, "--audit", audit, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["removed"], answer["thumbnails"], answer["ids"]) == (1, 1, ["camera/photo-00003.jpg"])
    assert answer["sources"] == ["/srv/photo-00003"]
    assert "snapshots" in answer["unreached"]
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["what"], line["gallery"], line["method"]) for line in lines] == [
        ("forget", "shop", "reid-index forget"),
        ("erase", "shop", "reid-index forget"),
    ]
    assert (lines[0]["changed"], lines[0]["generation"]) == (1, 10)
    assert "photo" not in audit.read_text()
    done = run_command("reid-index", "forget", folder, "--pid", "person-1001")
    assert (done.returncode, "removed" in done.stdout, "snapshots" in done.stdout) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "expected what to forget"),
        (["--where", "pids == 7"], "the filter is wrong"),
        (["--older-than", "30 years"], "expected an age such as 30d"),
        (["--pid", "7", "--server", "x:1", "--audit", "a"], "--audit and --server do not go together"),
    ],
)
def test_wrong_usage_changes_nothing(folder: Path, arguments: list[str], fault: str):
    before = (folder / DATABASE).read_bytes()
    done = run_command("reid-index", "forget", folder, *arguments)
    assert (done.returncode, fault in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert (folder / DATABASE).read_bytes() == before


def test_a_clock_that_is_wrong_does_not_empty_a_gallery(tmp_path: Path):
    with contextlib.closing(create_store(tmp_path / "g", ORIGIN)) as store:
        store.upsert([record(number, timestamp=10**15 + number) for number in range(6)] + [record(6)])
    done = run_command("reid-index", "forget", tmp_path / "g", "--older-than", "30d", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]["reason"]) == (1, "RETENTION_REFUSED")
    with pytest.raises(RetentionError, match="4 of 7 entries have grown too old at once, and none was removed"):
        forget_entries(tmp_path / "g", parse_filter(f"timestamp < {10**15 + 4}"), most_share=0.5)
    done = run_command("reid-index", "forget", tmp_path / "g", "--older-than", "30d", "--yes", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["removed"], said["timeless"]) == (0, 6, 1)


def test_through_a_server_it_is_the_same(tmp_path: Path, model: Path, embedder: Embedder):
    write_crops(tmp_path / "crops", pids=4)
    build_gallery(
        read_crops(tmp_path / "crops"), tmp_path / "crops", tmp_path / "shop.gallery", embedder, thumbnails=True
    )
    with contextlib.closing(open_store(tmp_path / "shop.gallery")) as store:
        stored, thumbnail = store.get("0001_c1s1_000000_00.png"), store.thumbnail("0001_c1s1_000000_00.png")
    assert stored is not None
    assert thumbnail is not None
    vector = stored.vector.tobytes()
    audit = tmp_path / "audit.jsonl"
    server = start_server("--model", model, "--gallery", tmp_path / "shop.gallery", "--audit", audit)
    try:
        refused = run_command("reid-index", "forget", tmp_path / "shop.gallery", "--pid", "0001")
        assert refused.returncode == 1
        assert "let it do this: --server HOST:PORT" in refused.stderr
        before = bytes_of(tmp_path / "shop.gallery")
        assert vector in before
        assert thumbnail[100:200] in before
        done = run_command(
            "reid-index", "forget", tmp_path / "shop.gallery", "--pid", "0001", "--server", server.target, "--json"
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["removed"] == 2
        after = bytes_of(tmp_path / "shop.gallery")
        assert vector not in after
        assert thumbnail[100:200] not in after
        assert b"0001_c1s1" not in after
        with Client(server.target) as client:
            assert client.gallery("shop").entries == 6
            assert client.delete(where=Asked(pids=["0001"]), erase=True).deleted == 0
        guarded = run_command("reid-index", "forget", "shop", "--older-than", "1h", "--server", server.target, "--json")
        assert (guarded.returncode, json.loads(guarded.stdout)["removed"]) == (0, 0)
    finally:
        assert stop_server(server) == 0
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["what"], line.get("changed")) for line in lines] == [
        ("delete", 2),
        ("erase", None),
        ("delete", 0),
        ("delete", 0),
    ]


def test_a_cache_that_cannot_be_removed_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "cache").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(RemainsError, match="the folder cache, which has codes of embeddings, cannot be removed"):
        forget_entries(folder, PERSON)
    monkeypatch.undo()
    forget_entries(folder, PERSON)
    assert not (folder / "cache").exists()


def test_what_is_no_gallery_is_none_afterwards_either(tmp_path: Path):
    with pytest.raises(GalleryError, match="no gallery at"):
        forget_entries(tmp_path / "g", PERSON)
    assert not (tmp_path / "g").exists()
