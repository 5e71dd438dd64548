import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.datasets import read_crops
from reidserve.embed import Embedder, open_embedder
from reidserve.errors import GalleryError, GalleryLockedError, GalleryModelError
from reidserve.index import build_gallery, open_gallery, open_writer, read_snapshot
from reidserve.index.storage.cache import CachedCodes, save_codes
from reidserve.index.storage.database import DATABASE
from reidserve.index.storage.rows import Damage
from reidserve.index.storage.store import open_store
from reidserve.index.verify import repair_gallery, verify_gallery
from tests.conftest import draw_crop, write_crops

FIRST = "0001_c1s1_000000_00.png"


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    write_crops(tmp_path / "crops", pids=3)
    return tmp_path / "crops"


@pytest.fixture
def gallery(tmp_path: Path, crops: Path, embedder: Embedder) -> Path:
    build_gallery(read_crops(crops), crops, tmp_path / "g.gallery", embedder)
    return tmp_path / "g.gallery"


def change(folder: Path, *statements: str) -> None:
    """Change a database behind the store's back."""
    connection = sqlite3.connect(folder / DATABASE)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def vectors(folder: Path) -> dict[str, list[float]]:
    snapshot = read_snapshot(folder)
    return {entry.id: snapshot.vector(snapshot.row(entry.id)).tolist() for entry in snapshot.entries()}


FLIP = "UPDATE vector SET blob = zeroblob(length(blob)) WHERE row = 1"


def test_a_whole_gallery_is_clean_and_reading_it_changes_nothing(gallery: Path):
    before = (gallery / DATABASE).read_bytes()
    found = verify_gallery(gallery)
    assert found.clean
    assert (found.entries, found.generation, found.faults, found.damaged) == (6, 1, [], [])
    assert (gallery / DATABASE).read_bytes() == before


def test_it_reads_beside_a_writer(gallery: Path):
    writer = open_gallery(gallery, write=True)
    writer.delete([FIRST])
    assert verify_gallery(gallery).entries == 5
    writer.close()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (FLIP, "it fails its checksum"),
        ("UPDATE vector SET blob = x'00' WHERE row = 1", "it fails its checksum"),
        ("UPDATE vector SET crc32 = 7 WHERE row = 1", "it fails its checksum"),
        ("UPDATE entry SET pid = 'nobody' WHERE row = 1", "it fails its checksum"),
        ("UPDATE entry SET attributes = '{' WHERE row = 1", "truncated"),
        ("UPDATE entry SET pid = CAST(x'ff41' AS TEXT) WHERE row = 1", "it fails its checksum"),
        ("DELETE FROM vector WHERE row = 1", "its vector is missing"),
        ("UPDATE entry SET content_sha256 = x'00' WHERE row = 1", "the hash of its image is none"),
    ],
)
def test_a_row_that_was_changed_is_named_and_the_rest_is_served(gallery: Path, statement: str, fault: str):
    change(gallery, statement)
    found = verify_gallery(gallery)
    assert not found.clean
    assert (found.entries, found.faults) == (5, [])
    (damage,) = found.damaged
    assert (damage.row, damage.id) == (1, FIRST)
    assert fault in damage.fault
    assert len(read_snapshot(gallery)) >= 5


def test_a_vector_that_is_stored_well_and_wrong_is_named(gallery: Path, monkeypatch):
    monkeypatch.setattr("reidserve.index.storage.store.check_vector", lambda record, dim: None)
    with open_writer(gallery) as store:
        stored = store.get(FIRST)
        store.upsert([type_record(stored, np.full(24, np.nan, np.float32))])
    (damage,) = verify_gallery(gallery).damaged
    assert damage.fault == "its vector has length nan"


def type_record(stored, vector):
    from reidserve.index import Record

    return Record(stored.entry, bytes([1]) * 32, vector)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE meta SET value = 7 WHERE key = 'entries'", "the counter says 7 entries"),
        ("INSERT INTO vector VALUES (99, x'00', 0)", "1 vectors belong to no entry"),
        ("INSERT INTO deleted VALUES (1, 1)", "1 rows are live and deleted at once"),
        ("UPDATE entry SET generation = 9 WHERE row = 1", "1 rows are of a later generation than the gallery"),
    ],
)
def test_numbers_that_contradict_each_other_are_named_and_made_anew(gallery: Path, statement: str, fault: str):
    before = vectors(gallery)
    change(gallery, statement)
    found = verify_gallery(gallery)
    assert fault in "; ".join(found.faults)
    repair_gallery(gallery, found)
    assert verify_gallery(gallery).clean
    assert vectors(gallery) == before


def test_search_trees_that_lost_a_row_are_made_anew(gallery: Path):
    change(
        gallery,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX entry_content ON entry (content_sha256) WHERE row > 3' "
        "WHERE name = 'entry_content'",
    )
    change(gallery, "REINDEX entry_content")
    change(
        gallery,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX entry_content ON entry (content_sha256)' "
        "WHERE name = 'entry_content'",
    )
    found = verify_gallery(gallery)
    assert "missing from index entry_content" in "; ".join(found.faults)
    repair_gallery(gallery, found)
    assert verify_gallery(gallery).clean


@pytest.mark.parametrize("statement", [FLIP, "DELETE FROM vector WHERE row = 1"])
def test_a_damaged_row_is_embedded_again_and_is_what_it_was(gallery: Path, statement: str, embedder: Embedder):
    before = vectors(gallery)
    reader = open_gallery(gallery)
    change(gallery, statement)
    repair = repair_gallery(gallery, verify_gallery(gallery), embedder)
    assert (repair.repaired, repair.left) == ([FIRST], [])
    assert verify_gallery(gallery).clean
    assert vectors(gallery) == before
    reader.refresh()
    assert reader.snapshot.find(FIRST) is not None
    assert len(reader.snapshot) == 6
    reader.close()


@pytest.mark.parametrize(
    ("statement", "spoil", "reason"),
    [
        (FLIP, lambda path: path.unlink(), "No such file"),
        (FLIP, lambda path: Image.fromarray(draw_crop(99, 1)).save(path), "is no longer the image"),
        ("UPDATE entry SET pid = 'nobody' WHERE row = 1", lambda path: None, "embedded again it has another checksum"),
        ("UPDATE entry SET source = NULL WHERE row = 1", lambda path: None, "it has no source"),
        ("UPDATE entry SET pid = CAST(x'ff41' AS TEXT) WHERE row = 1", lambda path: None, "another checksum"),
    ],
)
def test_what_cannot_be_repaired_is_left_with_the_reason(
    gallery: Path, crops: Path, statement: str, spoil, reason: str, embedder: Embedder
):
    change(gallery, statement)
    spoil(crops / FIRST)
    repair = repair_gallery(gallery, verify_gallery(gallery), embedder)
    assert repair.repaired == []
    ((name, why),) = repair.left
    assert name == FIRST
    assert reason in why
    assert [damage.id for damage in verify_gallery(gallery).damaged] == [FIRST]
    # The ways out: build again, or remove it.
    if (crops / FIRST).exists():
        shutil.copytree(gallery, gallery.with_name("copy.gallery"))
        build_gallery(read_crops(crops), crops, gallery.with_name("copy.gallery"), embedder)
        assert verify_gallery(gallery.with_name("copy.gallery")).clean
    with open_writer(gallery) as store:
        store.delete([FIRST])
    assert verify_gallery(gallery).clean


def test_a_repair_needs_the_model_of_the_gallery_and_its_lock(gallery: Path, other_model: Path, embedder: Embedder):
    change(gallery, FLIP)
    found = verify_gallery(gallery)
    with pytest.raises(GalleryModelError):
        repair_gallery(gallery, found, open_embedder(other_model))
    with open_writer(gallery), pytest.raises(GalleryLockedError):
        repair_gallery(gallery, found, embedder)
    repair = repair_gallery(gallery, found)
    assert repair.left == [(FIRST, "it fails its checksum; its image can be embedded again with --model")]


def test_a_page_that_was_overwritten_is_a_fault_and_no_crash(gallery: Path):
    store = open_store(gallery, write=True)
    store.compact()
    store.close()
    whole = (gallery / DATABASE).read_bytes()
    for place in range(16384, len(whole), 16384):
        spoilt = bytearray(whole)
        spoilt[place : place + 16384] = np.random.default_rng(place).bytes(16384)
        (gallery / DATABASE).write_bytes(spoilt)
        try:
            found = verify_gallery(gallery)
        except GalleryError:
            continue
        assert not found.clean, f"the page at {place} was overwritten and nobody noticed"


def test_a_cache_that_is_not_whole_is_named_removed_and_no_loss(gallery: Path):
    (gallery / "cache").mkdir()
    (gallery / "cache" / "rabitq.codes").write_bytes(b"torn")
    found = verify_gallery(gallery)
    assert found.clean
    assert "rabitq.codes: its header cannot be read" in found.cache_faults[0]
    repair_gallery(gallery, found)
    assert verify_gallery(gallery).cache_faults == []
    cached = CachedCodes(np.array([1, 2]), np.zeros(2, np.uint32), np.zeros((2, 3), np.uint8), np.zeros(4, "f4"), 0)
    save_codes(gallery, cached, kind="rabitq", version="any")
    assert verify_gallery(gallery).cache_faults == []
    path = gallery / "cache" / "rabitq.codes"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "it fails its sha256" in verify_gallery(gallery).cache_faults[0]


def test_a_damage_has_a_name_that_can_be_printed(gallery: Path):
    change(gallery, "UPDATE entry SET id = CAST(x'ff41' AS TEXT) WHERE row = 1")
    assert verify_gallery(gallery).damaged[0].id == "\\xffA"
    assert isinstance(verify_gallery(gallery).damaged[0], Damage)
