"""Retention: what has grown too old goes, by a clock that is not believed alone."""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from reidserve.commands.console import read_age
from reidserve.datasets import read_crops
from reidserve.embed import Embedder
from reidserve.errors import ConfigError, UsageError
from reidserve.index import Entry, Filter, Origin, Record, build_gallery, open_gallery, open_writer, parse_place
from reidserve.index.storage.store import create_store, open_store
from reidserve.server import retention
from reidserve.server.deployment import Deployment, Served
from reidserve.server.guard.audit import Audit
from reidserve.server.retention import Retention
from reidserve.server.settings import Settings
from reidserve.server.writes.writer import Writer
from tests.conftest import start_server, stop_server, unit_rows, write_crops
from tests.test_forget import bytes_of

DIM = 8
DAY = 86_400
NOW = 1_800_000_000.0
VECTORS = unit_rows(np.random.default_rng(3), 100, DIM)


class Clocks:
    """A clock that people set, and one that only goes on."""

    def __init__(self) -> None:
        self.wall, self.monotonic = NOW, 50.0

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


class NoPipeline:
    """What a deployment closes; retention asks it nothing."""

    galleries: ClassVar[dict] = {}

    async def close(self, *, galleries: bool = True) -> None:
        pass


async def embed(images, *, deadline=None):
    raise AssertionError("nothing is embedded")


def aged(name: str, days: float | None, *, number: int = 0) -> Record:
    """An entry that was taken so many days ago."""
    timestamp = None if days is None else int((NOW - days * DAY) * 1e6)
    return Record(Entry(name, timestamp=timestamp), name.encode().ljust(32), VECTORS[number])


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def gallery(tmp_path: Path):
    create_store(tmp_path / "shop.gallery", Origin("0" * 64, "fp32/onnxruntime-cpu", DIM)).close()
    with contextlib.closing(open_gallery(tmp_path / "shop.gallery", write=True)) as opened:
        yield opened


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def shop(gallery, clocks, audit):
    """Retention of 30 days over a gallery, and its writer."""
    log = Audit(audit)
    writer = Writer(gallery, embed, audit=log)
    deployment = Deployment()
    await deployment.replace(Served(NoPipeline(), {"shop": writer}, 0))
    yield Retention(deployment, 30 * DAY, clock=lambda: clocks.wall, steady=lambda: clocks.monotonic), writer
    await deployment.close()
    log.close()


def ids(gallery) -> list[str]:
    return [entry.id for entry in gallery.snapshot.entries()]


def lines(audit: Path) -> list[dict]:
    return [json.loads(line) for line in audit.read_text().splitlines()]


async def test_what_is_older_goes_what_is_younger_or_has_no_time_stays(shop, gallery, audit, caplog):
    caplog.set_level(logging.INFO)
    days = {"a": 30.01, "b": 29.99, "c": None, "d": 4000, "e": 0, "f": -3}
    gallery.upsert([aged(name, age) for name, age in days.items()])
    await shop[0].look()
    assert ids(gallery) == ["b", "c", "e", "f"]
    assert [(line["what"], line.get("changed"), line["caller"]) for line in lines(audit)] == [
        ("delete", 2, "retention"),
        ("erase", None, "retention"),
    ]
    assert "2 entries had grown too old and were removed, 1 have no timestamp and stay" in caplog.text


async def test_not_a_byte_is_left_of_it(shop, gallery):
    with contextlib.closing(open_store(gallery.folder)):
        gallery.upsert([aged("the one to go", 31, number=1), aged("b", 1), aged("c", 1)])
        assert b"the one to go" in bytes_of(gallery.folder)
        await shop[0].look()
        assert b"the one to go" not in bytes_of(gallery.folder)
        assert VECTORS[1].tobytes() not in bytes_of(gallery.folder)


async def test_what_was_removed_before_a_restart_is_cleared_after_it(shop, gallery):
    gallery.upsert([aged("gone before", 1, number=2), aged("b", 1)])
    gallery.delete(["gone before"])
    assert b"gone before" in bytes_of(gallery.folder)
    await shop[0].look()
    assert b"gone before" not in bytes_of(gallery.folder)


async def test_entries_go_one_after_the_other_as_they_grow_old_to_the_last(shop, gallery, clocks):
    gallery.upsert([aged(f"n{number}", 20 + number / 24, number=number) for number in range(48)])
    for hour in range(400):
        await shop[0].look()
        assert ids(gallery) == [f"n{number}" for number in range(48) if 20 * 24 + number + hour <= 30 * 24]
        clocks.sleep(3600)
    assert ids(gallery) == []


@pytest.mark.parametrize("jump", [400 * DAY, 35 * DAY])
async def test_a_clock_that_jumps_ahead_empties_no_gallery(shop, gallery, clocks, caplog, jump):
    gallery.upsert([aged(f"n{number}", number, number=number) for number in range(20)])
    await shop[0].look()
    assert len(ids(gallery)) == 20
    clocks.sleep(3600)
    clocks.wall += jump
    for _ in range(3):
        await shop[0].look()
        assert len(ids(gallery)) == 20
        clocks.sleep(3600)
    assert "gallery shop keeps entries that have grown too old: 20 of 20 entries have grown too old at" in caplog.text
    clocks.wall -= jump
    caplog.clear()
    await shop[0].look()
    assert (len(ids(gallery)), caplog.text) == (20, "")


async def test_a_clock_that_was_wrong_at_the_start_empties_none_either(shop, gallery, clocks):
    gallery.upsert([aged("a", 1), aged("b", 1), aged("c", None)])
    clocks.wall += 400 * DAY
    await shop[0].look()
    assert ids(gallery) == ["a", "b", "c"]


async def test_after_somebody_has_removed_the_most_it_goes_on_by_itself(shop, gallery, clocks):
    gallery.upsert([aged("a", 50), aged("b", 50), aged("c", 29.9), aged("d", 1)])
    gallery.upsert([aged("e", 50)])
    await shop[0].look()
    assert ids(gallery) == ["a", "b", "c", "d", "e"]
    gallery.delete(where=Filter(until=int((NOW - 30 * DAY) * 1e6)))
    await shop[0].look()
    clocks.sleep(DAY)
    await shop[0].look()
    assert ids(gallery) == ["d"]


async def test_other_writes_come_between_the_pieces(shop, gallery, audit, monkeypatch):
    monkeypatch.setattr(retention, "PIECE_ENTRIES", 3)
    gallery.upsert([aged(f"n{number}", 31 if number < 10 else 1, number=number) for number in range(30)])
    delete, again = shop[1].delete, []

    async def delete_and_let_write(ids, call, *, where=None):
        if not again:
            # An old entry's id is given to a new photograph, while it waits for its turn to go.
            again.append(gallery.upsert([aged("n9", 0, number=50)]))
        return await delete(ids, call, where=where)

    monkeypatch.setattr(shop[1], "delete", delete_and_let_write)
    await shop[0].look()
    assert ids(gallery) == [*(f"n{number}" for number in range(10, 30)), "n9"]
    assert [line.get("changed") for line in lines(audit)] == [3, 3, 3, 0, None]


async def test_a_gallery_that_fails_is_told_of_and_tried_again(shop, gallery, monkeypatch, caplog):
    gallery.upsert([aged("a", 31), aged("b", 1), aged("c", 1)])
    with monkeypatch.context() as patched:
        patched.setattr(shop[1], "delete", None)
        await shop[0].look()
    assert "gallery shop keeps entries that have grown too old" in caplog.text
    assert ids(gallery) == ["a", "b", "c"]
    await shop[0].look()
    assert ids(gallery) == ["b", "c"]


def test_a_server_removes_what_is_too_old_when_it_starts(tmp_path: Path, model: Path, embedder: Embedder):
    folder = tmp_path / "shop.gallery"
    write_crops(tmp_path / "crops", pids=3)
    build_gallery(read_crops(tmp_path / "crops"), tmp_path / "crops", folder, embedder, thumbnails=True)
    with open_writer(folder) as store:
        old, *young = sorted(store.ids())
        stored, thumbnail = store.get(old), store.thumbnail(old)
        assert stored is not None
        assert thumbnail is not None
        store.update([Entry(old, timestamp=int((time.time() - 40 * DAY) * 1e6))])
        store.update([Entry(name, timestamp=int(time.time() * 1e6)) for name in young])
    server = start_server("--model", model, "--gallery", folder, "--retain", "30d")
    try:
        deadline = time.monotonic() + 60
        while old.encode() in (data := bytes_of(folder)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert old.encode() not in data
        assert stored.vector.tobytes() not in data
        assert thumbnail not in data
        with contextlib.closing(open_store(folder)) as store:
            assert sorted(store.ids()) == young
    finally:
        assert stop_server(server) == 0


@pytest.mark.parametrize(("text", "seconds"), [("30d", 30 * DAY), ("12h", 12 * 3600), (" 8 W ", 56 * DAY)])
def test_ages_are_read_as_people_write_them(text: str, seconds: int):
    assert read_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "30 days", "1y", "9999999d"])
def test_what_is_no_age_is_refused(text: str):
    with pytest.raises(UsageError, match="expected an age such as 30d, 12h or 8w"):
        read_age(text)


def test_a_retention_is_an_hour_to_a_hundred_years():
    for seconds in (3600, 36_525 * DAY):
        Settings(Path("model"), [Path("g")], retain=seconds)
    for seconds in (0, 3599, 36_526 * DAY):
        with pytest.raises(ConfigError, match="--retain must be 3,600 to 3,155,760,000"):
            Settings(Path("model"), [Path("g")], retain=seconds)


@pytest.mark.parametrize("said", [{"retain": 86_400}, {"thumbnails": True}])
def test_what_only_folders_do_is_refused_of_milvus(said: dict):
    with pytest.raises(ConfigError, match="--thumbnails and --retain are of folders, and milvus://127.0.0.1:1/mall is"):
        Settings(Path("model"), [parse_place("milvus://127.0.0.1:1/mall")], **said)
