"""reid-index copy between folders: what is copied, read back and refused, and how it goes on after a break."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reidserve.errors import GalleryError, GalleryModelError, OutputExistsError
from reidserve.index import Entry, Origin, Record, open_gallery, open_writer
from reidserve.index import copying as module
from reidserve.index.copying import copy_rows
from reidserve.index.storage.rows import Stored
from reidserve.index.storage.store import ROOT, Store, create_store, open_store
from tests.conftest import DIM, run_command, unit_rows

ORIGIN = Origin("a" * 64, "fp32/test", DIM)


class CutOffError(Exception):
    """Ends a copy where a test wants it to end."""


def stored_in(folder: Path) -> list[Stored]:
    with closing(open_store(folder)) as store:
        return [one for one in store.scan() if isinstance(one, Stored)]


def told(folder: Path) -> list[tuple[Entry, bytes, bytes]]:
    """What a gallery says of each entry, in row order."""
    return [(one.entry, one.content_sha256, one.vector.tobytes()) for one in stored_in(folder)]


def records(count: int, *, seed: int = 0, start: int = 0) -> list[Record]:
    vectors = unit_rows(np.random.default_rng(seed), count, DIM)
    return [
        Record(
            Entry(f"entry {number}", pid=f"{number % 7}", camid="c1", attributes={"seed": seed, "night": True}),
            number.to_bytes(32, "big"),
            vector,
        )
        for number, vector in enumerate(vectors, start=start)
    ]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A gallery of 1,500 entries less three, of which one was changed."""
    folder = tmp_path / "many.gallery"
    with closing(create_store(folder, ORIGIN)) as store:
        store.upsert(records(1500))
        store.update([Entry("entry 7", pid="changed")])
        store.delete(["entry 0", "entry 600", "entry 1499"])
        store.write_note(ROOT, "/srv/crops")
    return folder


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the second page of the next copy fail before it is written."""
    whole, pages = Store.upsert, iter(range(100))

    def upsert(self: Store, page):
        if next(pages) == 1:
            raise CutOffError
        return whole(self, page)

    monkeypatch.setattr(Store, "upsert", upsert)
    yield
    monkeypatch.undo()


def test_a_copy_says_the_same_of_every_entry_in_the_same_order(many: Path, tmp_path: Path):
    out = tmp_path / "copy.gallery"
    copied = copy_rows(many, out)
    assert told(out) == told(many)
    assert (copied.entries, copied.written, copied.kept, copied.removed) == (1497, 1497, 0, 0)
    assert (copied.of, copied.damaged) == (open_gallery(many).snapshot.generation, [])
    with closing(open_store(out)) as store:
        assert (store.note(ROOT), store.origin) == ("/srv/crops", ORIGIN)
    queries = unit_rows(np.random.default_rng(9), 5, DIM)
    snapshots = [open_gallery(folder).snapshot for folder in (many, out)]
    names = [
        [[hit.entry.id for hit in hits] for hits in snapshot.hits(snapshot.search(queries, top_k=20))]
        for snapshot in snapshots
    ]
    assert names[0] == names[1]


def test_a_copy_that_was_cut_off_does_not_open_and_goes_on(many: Path, tmp_path: Path, cut_off, monkeypatch):
    out = tmp_path / "copy.gallery"
    with pytest.raises(CutOffError):
        copy_rows(many, out)
    with pytest.raises(GalleryError, match="is an unfinished copy: run the same reid-index copy again to finish it"):
        open_gallery(out)
    with pytest.raises(GalleryError, match="is an unfinished copy"), open_writer(out):
        pass
    monkeypatch.undo()
    copied = copy_rows(many, out)
    assert (copied.written, copied.kept) == (1497 - module.PAGE_ROWS, module.PAGE_ROWS)
    assert told(out) == told(many)


def test_a_copy_made_again_does_what_was_written_since(many: Path, tmp_path: Path):
    out = tmp_path / "copy.gallery"
    copy_rows(many, out)
    with open_writer(many) as store:
        store.delete(["entry 3"])
        store.upsert(records(2, seed=1, start=2000))
        store.update([Entry("entry 9", pid="new")])
    copied = copy_rows(many, out)
    assert (copied.written, copied.kept, copied.removed) == (3, 1495, 1)
    assert told(out) == told(many)


def test_nothing_but_a_copy_of_the_same_gallery_is_written_to(many: Path, gallery: Path, tmp_path: Path):
    out, other = tmp_path / "copy.gallery", tmp_path / "other.gallery"
    copy_rows(many, out)
    with open_writer(out) as store:
        store.delete(["entry 3"])
    with pytest.raises(OutputExistsError, match="is no copy of .*many.gallery, or was written to after it"):
        copy_rows(many, out)
    with pytest.raises(OutputExistsError, match="cannot be copied to itself"):
        copy_rows(many, many)
    with pytest.raises(GalleryModelError):
        copy_rows(gallery, out)
    with closing(create_store(other, ORIGIN)) as store:
        store.upsert(records(1))
    before = told(other)
    with pytest.raises(OutputExistsError):
        copy_rows(many, other)
    assert told(other) == before


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda record: replace(record, content_sha256=bytes(32)), "entry 'entry 5' is of another image"),
        (lambda record: replace(record, vector=-record.vector), "entry 'entry 5' has another embedding"),
        (lambda record: replace(record, entry=Entry("entry 5")), "entry 'entry 5' says something else"),
    ],
)
def test_what_is_read_back_otherwise_than_it_was_is_told_and_the_copy_does_not_open(
    many: Path, tmp_path: Path, monkeypatch, spoil, fault
):
    whole, out = Store.upsert, tmp_path / "copy.gallery"

    def upsert(self: Store, page):
        return whole(self, [spoil(record) if record.entry.id == "entry 5" else record for record in page])

    monkeypatch.setattr(Store, "upsert", upsert)
    with pytest.raises(GalleryError, match=fault):
        copy_rows(many, out)
    with pytest.raises(GalleryError, match="unfinished copy"):
        open_gallery(out)


def test_the_command_says_what_it_copied(many: Path, tmp_path: Path):
    out = tmp_path / "copy.gallery"
    result = run_command("reid-index", "copy", many, out, "--json")
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["wrote"], said["copied"]) == (str(out), str(many))
    assert (said["entries"], said["written"], said["damaged"]) == (1497, 1497, [])
    again = run_command("reid-index", "copy", many, out)
    assert again.returncode == 0
    assert "verified    1497 entries, as in generation" in again.stdout


def test_a_command_that_needs_a_folder_refuses_a_url(tmp_path: Path):
    url = "milvus://127.0.0.1:1/mall"
    two = [["export", url, "out"], ["snapshot", url, "out"], ["restore", "x", url]]
    for arguments in [["compact", url], ["tune", url], *two]:
        result = run_command("reid-index", *arguments, cwd=tmp_path)
        assert (result.returncode, list(tmp_path.iterdir())) == (2, [])
        assert "this needs a gallery's" in result.stderr
