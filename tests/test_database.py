import contextlib
import gc
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest

from reidserve.errors import GalleryError, GalleryLockedError, OutputExistsError
from reidserve.index import Entry, open_gallery, read_snapshot
from reidserve.index.storage.database import (
    APPLICATION_ID,
    DATABASE,
    DATABASE_FILES,
    NEWEST,
    copy_database,
    create_database,
    holds_gallery,
)
from reidserve.index.storage.lock import LOCK, remote_file_system, writer_lock
from reidserve.index.storage.rows import Record
from reidserve.index.storage.store import create_store, open_store
from tests.conftest import unit_rows
from tests.test_store import ORIGIN, entries_of, got, record

# Python 3.12 warns of forks where there are threads, such as NumPy's; these children touch none of theirs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FORMAT_1 = f"""
PRAGMA page_size = 16384;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = 1;
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE entry (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    pid TEXT,
    camid TEXT,
    timestamp INTEGER,
    source TEXT,
    content_sha256 BLOB NOT NULL,
    generation INTEGER NOT NULL
) STRICT;
CREATE INDEX entry_content ON entry (content_sha256);
CREATE TABLE vector (row INTEGER PRIMARY KEY REFERENCES entry, blob BLOB NOT NULL, crc32 INTEGER NOT NULL) STRICT;
CREATE TABLE deleted (row INTEGER PRIMARY KEY, generation INTEGER NOT NULL) STRICT;
CREATE INDEX deleted_generation ON deleted (generation);
INSERT INTO meta VALUES ('identity', '{"f" * 64}'), ('engine', 'fp32/onnxruntime-cpu'), ('dim', 8), ('generation', 3),
    ('note:root', '/photographs');
INSERT INTO deleted VALUES (1, 2);
"""


def old_gallery(folder: Path) -> list[Record]:
    """A gallery as reidserve 0.1 at format 1 wrote it: rows 2 to 6 of three transactions."""
    folder.mkdir()
    records = [record(f"e{number}", number, pid=f"{number}", timestamp=number) for number in range(2, 7)]
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    connection.executescript(FORMAT_1)
    for row, one in enumerate(records, start=2):
        entry, blob = one.entry, one.vector.astype("<f4").tobytes()
        facts = (entry.id, entry.pid, entry.camid, entry.timestamp, entry.source)
        connection.execute("INSERT INTO entry VALUES (?,?,?,?,?,?,?,?)", (row, *facts, one.content_sha256, 3))
        crc32 = zlib.crc32(msgspec.json.encode(facts), zlib.crc32(blob))
        connection.execute("INSERT INTO vector VALUES (?, ?, ?)", (row, blob, crc32))
    connection.execute("COMMIT")
    connection.close()
    return records


def assert_is_format_1(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM entry JOIN vector USING (row)").fetchone() == (5,)
        assert "attributes" not in {name for _, name, *_ in connection.execute("PRAGMA table_info(entry)")}


@pytest.mark.parametrize("write", [False, True])
def test_a_gallery_of_format_1_is_migrated_with_all_it_holds_and_a_copy_is_kept(tmp_path: Path, write: bool):
    records = old_gallery(tmp_path / "g")
    with contextlib.closing(open_gallery(tmp_path / "g", write=write)) as gallery:
        assert list(gallery.snapshot.damaged) == []
        assert gallery.snapshot.generation == 3
        assert list(gallery.snapshot.entries()) == [one.entry for one in records]
        assert gallery.snapshot.row("e4") == 4
        np.testing.assert_array_equal(gallery.snapshot.vector(4), records[2].vector)
    assert_is_format_1(tmp_path / "g" / "gallery.format-1.db")
    with writer_lock(tmp_path / "g"), contextlib.closing(open_store(tmp_path / "g", write=True)) as store:
        assert (store.faults(), store.count(), store.note("root")) == ([], 5, "/photographs")
        assert store.upsert([record("new", 9, attributes={"x": 1})]).generation == 4
        assert got(store, "new").row == 7
        assert store.changes(since=1).deleted.tolist() == [1]
    assert sorted(path.name for path in (tmp_path / "g").glob("*.partial*")) == []


def test_a_migration_waits_for_nobody_and_says_who_writes(tmp_path: Path):
    old_gallery(tmp_path / "g")
    with writer_lock(tmp_path / "g"), pytest.raises(GalleryLockedError, match="is being written to by process"):
        open_store(tmp_path / "g")
    assert_is_format_1(tmp_path / "g" / DATABASE)
    open_store(tmp_path / "g").close()


@pytest.mark.parametrize("moment", ["copy", "rename", "script"])
def test_a_migration_that_was_cut_off_is_done_again(tmp_path: Path, monkeypatch, moment):
    old_gallery(tmp_path / "g")

    def cut_off(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if moment == "copy":
            patched.setattr("reidserve.index.storage.database.sync", cut_off)
        elif moment == "rename":
            patched.setattr(Path, "rename", cut_off)
        else:
            broken = (
                "BEGIN IMMEDIATE; ALTER TABLE entry ADD COLUMN attributes TEXT NOT NULL DEFAULT '{}'; SELECT nothing;"
            )
            patched.setattr("reidserve.index.storage.database._MIGRATIONS", {1: broken})
        with pytest.raises((KeyboardInterrupt, GalleryError)):
            open_store(tmp_path / "g")
    assert_is_format_1(tmp_path / "g" / DATABASE)
    with contextlib.closing(open_store(tmp_path / "g")) as store:
        assert (store.count(), store.faults()) == (5, [])
    assert_is_format_1(tmp_path / "g" / "gallery.format-1.db")
    assert sorted(path.name for path in (tmp_path / "g").glob("*.partial*")) == []


def test_the_copy_before_a_migration_is_of_what_is_migrated_not_of_long_ago(tmp_path: Path):
    old_gallery(tmp_path / "g")
    (tmp_path / "g" / "gallery.format-1.db").write_bytes(b"of long ago")
    open_store(tmp_path / "g").close()
    assert_is_format_1(tmp_path / "g" / "gallery.format-1.db")


@pytest.mark.parametrize("write", [False, True])
def test_a_newer_format_is_refused_by_name_and_left_as_it_was(tmp_path: Path, write: bool):
    create_store(tmp_path, ORIGIN).close()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        connection.execute(f"PRAGMA user_version = {NEWEST + 1}")
    with pytest.raises(GalleryError, match=f"has format {NEWEST + 1}, this reidserve reads 1 to {NEWEST}: install a"):
        open_store(tmp_path, write=write)
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (NEWEST + 1,)


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


def test_a_gallery_whose_making_was_cut_off_is_made_whole(tmp_path: Path):
    (tmp_path / DATABASE).touch()
    assert not holds_gallery(tmp_path)
    with pytest.raises(GalleryError):
        open_store(tmp_path)
    create_store(tmp_path, ORIGIN).close()
    assert holds_gallery(tmp_path)


@pytest.mark.parametrize(
    "statement", ["PRAGMA page_size", "PRAGMA journal_mode", "PRAGMA synchronous", "INSERT INTO meta"]
)
def test_a_making_that_is_killed_at_any_step_leaves_nothing_or_a_beginning(tmp_path: Path, statement):
    def make() -> None:
        connect = sqlite3.connect

        def tracing(*arguments, **options):
            connection = connect(*arguments, **options)
            connection.set_trace_callback(
                lambda text: os.kill(os.getpid(), signal.SIGKILL) if text.strip().startswith(statement) else None
            )
            return connection

        sqlite3.connect = tracing
        create_database(tmp_path / "g", ORIGIN)

    assert in_a_child(make) == -signal.SIGKILL
    assert not holds_gallery(tmp_path / "g")
    with contextlib.closing(create_store(tmp_path / "g", ORIGIN)) as store:
        assert store.upsert([record("a", 1)]).generation == 1
        assert store.faults() == []


def test_a_gallery_is_not_made_over_another(tmp_path: Path):
    with contextlib.closing(create_store(tmp_path, ORIGIN)) as store:
        store.upsert([record("a", 1)])
        with pytest.raises(GalleryError, match="no gallery can be made at .*already exists"):
            create_database(tmp_path, ORIGIN)
        assert store.ids() == {"a"}
    (tmp_path / "file").touch()
    with pytest.raises(GalleryError, match="no gallery can be made at"):
        create_database(tmp_path / "file", ORIGIN)


def test_what_a_killed_writer_left_whole_but_unseen_is_decided_by_the_next_writer(tmp_path: Path):
    store = create_store(tmp_path / "g", ORIGIN)
    store.upsert([record("a", 1)])
    # A log with one transaction more than readers have been shown: it was killed while the log was synced.
    store.upsert([record("b", 2)])
    whole = {name: (tmp_path / "g" / name).read_bytes() for name in DATABASE_FILES[:2]}
    store.close()
    (tmp_path / "h").mkdir()
    for name, data in whole.items():
        (tmp_path / "h" / name).write_bytes(data)
    log = tmp_path / "h" / f"{DATABASE}-wal"
    frame = 24 + 16384
    log.write_bytes(whole[log.name][: -2 * frame])
    with contextlib.closing(open_store(tmp_path / "h")) as reader:
        seen = reader.generation()
        with log.open("r+b") as file:
            file.write(whole[log.name])
        open_store(tmp_path / "h", write=True).close()
        assert reader.generation() == seen
    with contextlib.closing(open_store(tmp_path / "h")) as reader:
        assert (reader.generation(), reader.faults()) == (seen, [])


# Read-only disks: root may write everywhere, so another user looks.


def in_a_child(work: Callable[[], object], *, user: int | None = None) -> int:
    """The exit status of work done in a process of its own, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        # Garbage of other tests is the parent's: gRPC's, whose threads are not here, crashes when it is collected.
        gc.disable()
        try:
            if user is not None and os.geteuid() == 0:
                os.setuid(user)
            work()
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


NOBODY = 65534


@pytest.fixture
def shown(tmp_path: Path, request):
    """A gallery that another user may read and not write."""
    folder = tmp_path / "g"
    with contextlib.closing(create_store(folder, ORIGIN)) as store:
        store.upsert([record("a", 1), record("b", 2)])
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    yield folder
    folder.chmod(0o755)


def read_as_nobody(folder: Path, expect: Callable[[], None]) -> None:
    folder.chmod(0o555)
    assert in_a_child(expect, user=NOBODY) == 0
    folder.chmod(0o755)


def test_a_gallery_on_a_read_only_disk_is_served(shown: Path):
    def expect() -> None:
        assert not os.access(shown, os.W_OK)
        assert holds_gallery(shown)
        gallery = open_gallery(shown)
        assert [entry.id for entry in gallery.snapshot.entries()] == ["a", "b"]
        assert not gallery.refresh()
        with pytest.raises(GalleryError, match="cannot be written: Permission denied"):
            open_gallery(shown, write=True)

    before = sorted(path.name for path in shown.iterdir())
    read_as_nobody(shown, expect)
    assert sorted(path.name for path in shown.iterdir()) == before == [DATABASE]


def test_a_log_left_on_a_read_only_disk_is_refused_with_the_way_out(shown: Path, tmp_path: Path):
    with contextlib.closing(open_store(shown, write=True)) as store:
        store.upsert([record("c", 3)])
        kept = (shown / f"{DATABASE}-wal").read_bytes()
        data = (shown / DATABASE).read_bytes()
        index = (shown / f"{DATABASE}-shm").read_bytes()
    (shown / DATABASE).write_bytes(data)
    (shown / f"{DATABASE}-wal").write_bytes(kept)

    def expect() -> None:
        with pytest.raises(GalleryError, match="has changes in its write-ahead log, .*reid-index snapshot"):
            open_gallery(shown)

    def expect_all() -> None:
        assert len(open_gallery(shown).snapshot) == 3

    read_as_nobody(shown, expect)
    (shown / f"{DATABASE}-shm").write_bytes(index)
    read_as_nobody(shown, expect_all)
    assert len(read_snapshot(shown)) == 3  # where it can be written, the log is no trouble
    assert len(read_snapshot(shown)) == 3


def test_a_reader_who_may_not_write_follows_a_writer_who_does(shown: Path):
    (writing, says_writing), (opened, says_opened), (written, says_written) = os.pipe(), os.pipe(), os.pipe()

    def expect() -> None:
        assert not os.access(shown, os.W_OK)
        gallery = open_gallery(shown)
        assert len(gallery.snapshot) == 2
        os.write(says_opened, b"!")
        assert os.read(written, 1) == b"!"
        assert gallery.refresh()
        assert [entry.id for entry in gallery.snapshot.entries()] == ["a", "b", "c"]

    writer = os.fork()
    if writer == 0:
        try:
            with contextlib.closing(open_gallery(shown, write=True)) as gallery:
                os.write(says_writing, b"!")
                os.read(opened, 1)
                gallery.upsert([record("c", 3)])
                os.write(says_written, b"!")
                signal.pause()
        finally:
            os._exit(1)
    os.close(says_writing)
    assert os.read(writing, 1) == b"!"
    try:
        read_as_nobody(shown, expect)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        for descriptor in (writing, opened, says_opened, written, says_written):
            os.close(descriptor)


def test_a_network_disk_is_not_written_and_not_trusted_with_a_log(tmp_path: Path, monkeypatch):
    store = create_store(tmp_path / "g", ORIGIN)
    store.upsert([record("a", 1)])
    monkeypatch.setattr("reidserve.index.storage.lock.remote_file_system", lambda folder: "nfs4")
    monkeypatch.setattr("reidserve.index.storage.database.remote_file_system", lambda folder: "nfs4")
    with pytest.raises(GalleryError, match=r"lies on a network file system \(nfs4\).*on a local disk"):
        open_gallery(tmp_path / "g", write=True)
    with pytest.raises(GalleryError, match="has changes in its write-ahead log"):
        open_gallery(tmp_path / "g")
    store.close()
    assert len(read_snapshot(tmp_path / "g")) == 1


def test_the_kind_of_disk_is_read_from_the_mounts(tmp_path: Path):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 250:99 / / rw shared:1 - nfs4 other:/ rw\n"
        f"23 1 {number} /a /with\\040space rw,relatime shared:2 master:3 - {{}} host:/export rw\n"
    )
    text = mounts.read_text()
    for kind, expected in (
        ("nfs", "nfs"),
        ("cifs", "cifs"),
        ("fuse.sshfs", "fuse.sshfs"),
        ("ext4", None),
        ("zfs", None),
    ):
        mounts.write_text(text.format(kind))
        assert remote_file_system(tmp_path, mounts) == expected
    mounts.write_text("\n23 1\nnonsense - \n")
    assert remote_file_system(tmp_path, mounts) is None
    assert remote_file_system(tmp_path, tmp_path / "nothing") is None


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path):
    folder = tmp_path / "g"
    with contextlib.closing(create_store(folder, ORIGIN)) as store:
        store.upsert([record(f"e{number}", number) for number in range(50)])

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        gallery = open_gallery(folder, write=True)
        before = gallery.snapshot
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        vectors = unit_rows(np.random.default_rng(0), 20_000, 8)
        many = [Record(Entry(f"n{place}"), bytes(32), vectors[place]) for place in range(len(vectors))]
        with pytest.raises(GalleryError, match="what was committed before is safe"):
            gallery.upsert(many)
        assert gallery.snapshot is before
        # Nobody knows what reached the disk: nothing is built on it before the gallery is opened again.
        for call in (lambda: gallery.upsert(many[:1]), lambda: gallery.delete(["e1"])):
            with pytest.raises(GalleryError, match="the disk failed before .*open the gallery again to write"):
                call()
        assert not gallery.refresh()
        assert len(gallery.snapshot.search(vectors[:2], top_k=3).rows) == 2
        gallery.close()
        gallery = open_gallery(folder, write=True)
        assert gallery.upsert(many[:3]).changed == 3
        gallery.close()

    assert in_a_child(fill) == 0
    with contextlib.closing(open_store(folder)) as store:
        assert (store.count(), store.faults()) == (53, [])
        assert store.generation() == 2


def test_a_full_disk_keeps_nobody_from_holding_the_lock(tmp_path: Path):
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4))
        for _ in range(2):
            with (
                writer_lock(tmp_path / "g"),
                pytest.raises(GalleryLockedError, match="is being written to by"),
                writer_lock(tmp_path / "g"),
            ):
                pytest.fail("two hold the lock")

    assert in_a_child(fill) == 0


@pytest.mark.parametrize("fails", ["COMMIT", "VACUUM"])
def test_after_a_failed_sync_nothing_is_written_until_the_gallery_is_opened_again(tmp_path: Path, fails):
    class Failing:
        fails = ""

        def __init__(self, connection) -> None:
            self.connection = connection

        def __getattr__(self, name):
            return getattr(self.connection, name)

        def execute(self, statement, *values):
            if statement == self.fails:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR | (4 << 8)  # SQLITE_IOERR_FSYNC
                raise error
            return self.connection.execute(statement, *values)

    folder = tmp_path / fails
    store = create_store(folder, ORIGIN)
    store.upsert([record("a", 1)])
    failing = Failing(store._connection)
    failing.fails = fails
    store._connection = cast(sqlite3.Connection, failing)
    with pytest.raises(GalleryError, match="disk I/O error"):
        store.upsert([record("b", 2)]) if fails == "COMMIT" else store.compact()
    failing.fails = ""
    for call in (lambda: store.upsert([record("c", 3)]), lambda: store.write_note("x", "y"), store.compact):
        with pytest.raises(GalleryError, match="the disk failed before"):
            call()
    assert store.ids() == {"a"}
    store.close()
    with contextlib.closing(open_store(folder, write=True)) as again:
        assert again.upsert([record("c", 3)]).generation == 2


def test_a_copy_made_while_a_writer_writes_is_whole(tmp_path: Path):
    create_store(tmp_path / "g", ORIGIN).close()
    gallery = open_gallery(tmp_path / "g", write=True)
    gallery.upsert([record(f"e{number}", number) for number in range(200)])
    stop, failures = threading.Event(), []

    def write() -> None:
        rng = np.random.default_rng(0)
        try:
            while not stop.is_set():
                seed = int(rng.integers(1, 200))
                # Always 100 entries at once: a copy with some of them would be torn.
                gallery.upsert([record(f"e{number}", seed, pid=str(seed)) for number in range(100)])
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    generations = set()
    for place in range(8):
        out = tmp_path / f"copy{place}"
        copy_database(tmp_path / "g", out)
        with contextlib.closing(open_store(out)) as store:
            assert store.faults() == []
            found = entries_of(store)
            assert len(found) == store.count() == 200
            assert len({entry.pid for entry in found if entry.pid}) <= 1
            generations.add(store.generation())
        assert [path.name for path in out.iterdir()] == [DATABASE]
        with contextlib.closing(open_gallery(out, write=True)) as copy:
            assert copy.upsert([record("new", 1)]).changed == 1
    stop.set()
    thread.join()
    gallery.close()
    assert failures == []
    assert len(generations) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"copy{place}" for place in range(8)), "g"]


def test_a_copy_goes_nowhere_where_something_is_and_leaves_nothing_where_it_fails(tmp_path: Path, monkeypatch):
    create_store(tmp_path / "g", ORIGIN).close()
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError, match="is there already"):
        copy_database(tmp_path / "g", tmp_path / "there")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError, match="is there already"):
        copy_database(tmp_path / "g", tmp_path / "link")
    with pytest.raises(GalleryError, match="no gallery at"):
        copy_database(tmp_path / "nothing", tmp_path / "out")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reidserve.index.storage.database.sync", full)
    with pytest.raises(GalleryError, match="cannot be copied to .*No space left"):
        copy_database(tmp_path / "g", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "link", "there"]


def test_two_processes_that_make_one_gallery_make_one(tmp_path: Path):
    make = (
        "import sys, pathlib; from reidserve.index.storage.store import create_store, open_store\n"
        "from reidserve.index.storage.database import holds_gallery, Origin\n"
        "from reidserve.index.storage.lock import writer_lock\n"
        "from reidserve.errors import GalleryLockedError\n"
        "folder = pathlib.Path(sys.argv[1]); sys.stdin.read()\n"
        "try:\n"
        "    with writer_lock(folder):\n"
        "        origin = Origin('f' * 64, 'x', 8)\n"
        "        there = holds_gallery(folder)\n"
        "        store = open_store(folder, write=True) if there else create_store(folder, origin)\n"
        "        store.write_note('x', 'y')\n"
        "except GalleryLockedError: print('locked')\n"
    )
    makers = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", make, tmp_path / "g"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.close()
        maker.stdin = None
    said = [maker.communicate()[0] for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert said.count("") >= 1
    with contextlib.closing(open_store(tmp_path / "g")) as store:
        assert (store.note("x"), store.faults()) == ("y", [])
    assert {path.name for path in (tmp_path / "g").iterdir()} <= {LOCK, *DATABASE_FILES}
