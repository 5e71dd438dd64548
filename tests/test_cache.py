"""Cached codes: what was saved comes back, and nothing else ever does."""

import json
import logging
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from reidserve.index.storage.cache import CachedCodes, load_codes, save_codes

WANTED = {"kind": "rabitq", "version": "faiss 1.15.1", "dim": 16, "code_size": 10}


def some_codes(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return CachedCodes(
        rows=np.cumsum(rng.integers(1, 5, count)),
        checksums=rng.integers(0, 2**32, count, dtype=np.uint32),
        codes=rng.integers(0, 256, (count, 10), dtype=np.uint8),
        centre=rng.standard_normal(16).astype(np.float32),
        seed=7,
    )


def save(folder, cached):
    return save_codes(folder, cached, kind="rabitq", version="faiss 1.15.1")


@pytest.fixture
def saved(tmp_path):
    assert save(tmp_path, some_codes())
    return tmp_path / "cache" / "rabitq.codes"


def assert_same(one, other):
    for name in ("rows", "checksums", "codes", "centre"):
        mine, his = getattr(one, name), getattr(other, name)
        assert mine.dtype == his.dtype
        np.testing.assert_array_equal(mine, his)
    assert one.seed == other.seed


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_what_was_saved_comes_back(tmp_path, count):
    assert save(tmp_path, some_codes(count))
    assert_same(load_codes(tmp_path, **WANTED), some_codes(count))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["rabitq.codes"]


def test_a_newer_save_replaces_an_older_one(tmp_path):
    assert save(tmp_path, some_codes(seed=1))
    assert save(tmp_path, some_codes(seed=2))
    assert_same(load_codes(tmp_path, **WANTED), some_codes(seed=2))


def test_nothing_there_is_no_news(tmp_path, caplog):
    assert load_codes(tmp_path, **WANTED) is None
    assert load_codes(tmp_path / "nowhere", **WANTED) is None
    assert caplog.records == []


@pytest.mark.parametrize("changed", [{"version": "faiss 1.16.0"}, {"dim": 17}, {"code_size": 11}])
def test_codes_of_another_faiss_or_another_size_are_not_used(saved, caplog, changed):
    assert load_codes(saved.parents[1], **WANTED | changed) is None
    assert "is made anew: expected format 1" in caplog.text


def test_a_file_under_another_kind_s_name_is_not_used(saved):
    saved.rename(saved.with_name("other.codes"))
    assert load_codes(saved.parents[1], **WANTED | {"kind": "other"}) is None


def test_every_flipped_bit_is_noticed(saved):
    whole = saved.read_bytes()
    for place in range(len(whole)):
        torn = bytearray(whole)
        torn[place] ^= 1 << place % 8
        saved.write_bytes(torn)
        assert load_codes(saved.parents[1], **WANTED) is None, place
    saved.write_bytes(whole)
    assert load_codes(saved.parents[1], **WANTED) is not None


def test_every_other_length_is_noticed(saved):
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        assert load_codes(saved.parents[1], **WANTED) is None, length
    saved.write_bytes(whole + b"\0")
    assert load_codes(saved.parents[1], **WANTED) is None


@pytest.mark.parametrize(
    "lie",
    [
        {"count": 2**60},
        {"count": 10**30},
        {"count": -1},
        {"count": 1.0},
        {"count": "40"},
        {"count": None},
        {"format": 2},
        {"seed": 8},
        {"seed": 2**80},
        {"more": 1},
        {"kind": ["rabitq"]},
        {"sha256": "0" * 64},
    ],
)
def test_a_header_that_lies_is_not_believed(saved, lie):
    header, body = saved.read_bytes().split(b"\n", 1)
    lying = json.dumps(json.loads(header) | lie, separators=(",", ":")).encode()
    saved.write_bytes(lying + b"\n" + body)
    assert load_codes(saved.parents[1], **WANTED) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"[" * 100_000, b"\xff" * 5000, b"{" + b" " * 10**6])
def test_a_file_of_something_else_is_not_used(saved, content):
    saved.write_bytes(content)
    assert load_codes(saved.parents[1], **WANTED) is None


def test_rows_out_of_order_are_not_used_even_with_a_right_sha256(tmp_path):
    right = some_codes()
    assert save(tmp_path, CachedCodes(right.rows[::-1], right.checksums, right.codes, right.centre, 7))
    assert load_codes(tmp_path, **WANTED) is None


def test_what_is_no_file_is_neither_read_nor_waited_for(saved):
    saved.unlink()
    os.mkfifo(saved)
    assert load_codes(saved.parents[1], **WANTED) is None
    saved.unlink()
    saved.mkdir()
    assert load_codes(saved.parents[1], **WANTED) is None


def test_a_file_without_permission_or_behind_a_loop_is_not_used(saved):
    saved.unlink()
    saved.symlink_to(saved)
    assert load_codes(saved.parents[1], **WANTED) is None


def test_codes_are_picked_by_row_and_checksum():
    cached = some_codes(5)
    rows = np.array([cached.rows[3], cached.rows[0] - 1, cached.rows[1], cached.rows[4] + 9, cached.rows[2]])
    checksums = np.array([*cached.checksums[[3, 0, 1, 4]], cached.checksums[2] ^ 1], np.uint32)
    held, codes = cached.pick(rows, checksums)
    assert held.tolist() == [True, False, True, False, False]
    np.testing.assert_array_equal(codes, cached.codes[[3, 1]])
    held, codes = some_codes(0).pick(rows, checksums)
    assert not held.any()
    assert codes.shape == (0, 10)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert not save(tmp_path, some_codes())
        assert not save(tmp_path / "nowhere", some_codes())
    assert caplog.text.count("cannot be saved, and is made anew at the next start") == 2
    assert load_codes(tmp_path, **WANTED) is None


FULL_DISK = """
import resource, sys
from pathlib import Path
from tests.test_cache import save, some_codes
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
print(save(Path(sys.argv[1]), some_codes(10_000)))
"""


def test_a_full_disk_leaves_the_older_codes(saved):
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, saved.parents[1]], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "False\n"
    assert "File too large" in ran.stderr
    assert_same(load_codes(saved.parents[1], **WANTED), some_codes())
    assert [path.name for path in saved.parent.iterdir()] == ["rabitq.codes"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(saved):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = saved.with_name(f"rabitq.codes.{gone.pid}.0.tmp")
    live = saved.with_name(f"rabitq.codes.{os.getppid()}.0.tmp")
    for path in (left, live):
        path.write_bytes(b"half")
    assert save(saved.parents[1], some_codes(seed=3))
    assert not left.exists()
    assert live.exists()
