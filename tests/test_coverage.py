"""Coverage: an index follows its gallery through growth, packing and reading anew, and answers stay brute force's."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from reidserve.errors import GalleryBehindError
from reidserve.index import FolderGallery, open_writer
from reidserve.index.gallery import open_gallery
from reidserve.index.search.faiss_cpu import VERSION, Frame, RaBitQ, encode
from reidserve.index.storage.cache import CachedCodes, load_codes
from reidserve.index.storage.store import create_store
from tests.conftest import unit_rows
from tests.plain import Plain, assert_equal
from tests.test_gallery import FILTERS, content_of
from tests.test_store import ORIGIN

QUERIES = unit_rows(np.random.default_rng(1), 9, 8)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    """Small blocks and shards, and a proposer that is asked for so many that rabitq misses none."""
    for name, value in {
        "search.blocks.BLOCK_ROWS": 32,
        "storage.rows.PIECE_ROWS": 32,
        "search.faiss_cpu.SHARD_ROWS": 64,
        "search.coverage.AUTO_BYTES": 100 * 4 * 8,
        "search.nominated.CANDIDATES": 300,
        "search.nominated.CANDIDATES_DIM": 8,
        "search.nominated.MOST_CANDIDATES": 1.0,
        "search.nominated.NARROW": 0.02,
        "search.nominated._SPARE": 1,
    }.items():
        monkeypatch.setattr(f"reidserve.index.{name}", value)


def assert_answers(gallery, plain: Plain, *, where=None, left_out=None) -> None:
    snapshot = gallery.snapshot
    if snapshot.covered is not None:
        assert (np.diff(snapshot.covered.nominator.rows) > 0).all()
    for top_k in (1, 7):
        found = snapshot.search(QUERIES, top_k=top_k, where=where, left_out=left_out)
        assert_equal(found, plain.search(QUERIES, top_k=top_k, where=where, left_out=left_out))


def some(numbers, seed=0):
    return [content_of(number, (number + seed) % 12, (number + seed) % 256) for number in numbers]


@pytest.mark.parametrize("kind", ["flat-fp16", "rabitq"])
def test_a_reader_that_reads_all_again_has_every_row_once(tmp_path: Path, kind):
    create_store(tmp_path / "g", ORIGIN).close()
    plain = Plain()
    with contextlib.closing(open_gallery(tmp_path / "g", kind=kind)) as reader:
        with contextlib.closing(open_gallery(tmp_path / "g", write=True, kind=kind)) as writer:
            records = some(range(500))
            plain.upsert(records)
            writer.upsert(records)
            reader.refresh()
            assert reader.snapshot.kind == kind
            # The reader has not seen that they went when it is forgotten: it reads blocks that are cut elsewhere.
            gone = [f"e{number}" for number in range(0, 35, 7)]
            plain.delete(gone)
            writer.delete(gone)
        with open_writer(tmp_path / "g") as store:
            store.compact()
        assert reader.refresh()
        assert reader.snapshot.kind == kind
        assert_answers(reader, plain)


@pytest.mark.parametrize(("kind", "seed"), [("flat-fp16", 0), ("rabitq", 2), ("auto", 9)])
def test_a_long_walk_with_an_index_is_answered_like_a_dict(tmp_path: Path, kind, seed):
    rng = np.random.default_rng(seed)
    create_store(tmp_path / "g", ORIGIN).close()
    plain, covered = Plain(), 0
    with contextlib.ExitStack() as opened:
        writer, reader = (
            opened.enter_context(contextlib.closing(open_gallery(tmp_path / "g", write=write, kind=kind)))
            for write in (True, False)
        )
        for step in range(120):
            numbers = rng.choice(400, int(rng.integers(1, 150)), replace=False).tolist()
            match rng.choice(["write", "delete", "compact"], p=[0.58, 0.34, 0.08]):
                case "write":
                    records = some(numbers, int(rng.integers(100)))
                    assert writer.upsert(records).changed == plain.upsert(records)
                case "delete":
                    ids = [f"e{number}" for number in numbers]
                    assert writer.delete(ids).changed == plain.delete(ids)
                case _:
                    writer._store.compact()
            if rng.random() < 0.6:
                reader.refresh()
                where = FILTERS[int(rng.integers(len(FILTERS)))] if step % 2 else None
                left_out = rng.integers(1, max(2, plain.last_row), len(QUERIES))
                for gallery in (writer, reader):
                    assert_answers(gallery, plain, where=where, left_out=left_out)
                    covered += gallery.snapshot.covered is not None
    assert covered > 60


def nominator_of(gallery: FolderGallery) -> RaBitQ:
    covered = gallery.snapshot.covered
    assert covered is not None
    assert isinstance(covered.nominator, RaBitQ)
    return covered.nominator


def kept_in(folder: Path, frame: Frame) -> CachedCodes:
    kept = load_codes(folder, kind="rabitq", version=VERSION, dim=8, code_size=frame.code_size)
    assert kept is not None
    return kept


def test_the_cache_of_another_gallery_says_nothing_of_this_one(tmp_path: Path):
    frames = []
    for name, seed in (("this", 0), ("other", 7)):
        create_store(tmp_path / name, ORIGIN).close()
        with contextlib.closing(open_gallery(tmp_path / name, write=True, kind="rabitq")) as writer:
            writer.upsert(some(range(100), seed))
            frames.append(nominator_of(writer).frame)
    own, _ = frames
    assert (kept_in(tmp_path / "other", own).centre != own.centre).any()
    (tmp_path / "other" / "cache" / "rabitq.codes").rename(tmp_path / "this" / "cache" / "rabitq.codes")
    with contextlib.closing(open_gallery(tmp_path / "this", kind="rabitq")) as gallery:
        np.testing.assert_array_equal(nominator_of(gallery).frame.centre, own.centre)
    assert kept_in(tmp_path / "this", own).centre.tolist() == own.centre.tolist()


def test_codes_that_memory_failed_for_are_made_by_the_next_write_and_saved(tmp_path: Path, monkeypatch):
    create_store(tmp_path / "g", ORIGIN).close()
    plain, records = Plain(), some(range(200))
    with contextlib.closing(open_gallery(tmp_path / "g", write=True, kind="rabitq")) as writer:
        failing = iter([False, True])

        def encode_or_fail(frame, vectors):
            if next(failing, False):
                raise MemoryError
            return encode(frame, vectors)

        monkeypatch.setattr("reidserve.index.search.faiss_cpu.encode", encode_or_fail)
        plain.upsert(records[:100])
        with pytest.raises(GalleryBehindError):
            writer.upsert(records[:100])
        assert_answers(writer, plain)
        plain.upsert(records)
        writer.upsert(records)
        assert_answers(writer, plain)
        nominator = nominator_of(writer)
    np.testing.assert_array_equal(kept_in(tmp_path / "g", nominator.frame).rows, nominator.rows)
