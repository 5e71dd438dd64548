import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from reidserve.errors import (
    DatasetError,
    GalleryError,
    GalleryFullError,
    GalleryLockedError,
    GalleryModelError,
    OutputExistsError,
)
from reidserve.index import Entry, Record, open_gallery, open_writer, parse_filter, read_snapshot
from reidserve.index.exchange import EMBEDDINGS_FILE, ENTRIES_FILE, IMPORT_ROWS, export_gallery, import_gallery
from reidserve.index.search.blocks import entry_bytes
from reidserve.index.storage.database import Origin
from reidserve.index.storage.rows import Stored
from reidserve.index.storage.store import create_store, open_store
from tests.conftest import BIN, run_command, unit_rows

ORIGIN = Origin("f" * 64, "fp32/onnxruntime-cpu", 8)
ENTRIES = [
    Entry("plain"),
    Entry("full", "7", "c1", 1714550400000001, "/x/ä%FF.jpg", {"colour": 'r"ed', "speed": 7, "slow": 7.0, "ok": True}),
    Entry("línea\n2", pid="", timestamp=-(2**63) + 1, attributes={"n": -0.1, "big": 2**53}),
    Entry("late", timestamp=2**63 - 1),
]


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    vectors = unit_rows(np.random.default_rng(0), len(ENTRIES), 8)
    store = create_store(tmp_path / "a.gallery", ORIGIN)
    store.upsert([Record(entry, bytes([7]) * 32, row) for entry, row in zip(ENTRIES, vectors, strict=True)])
    store.close()
    return tmp_path / "a.gallery"


def stored(folder: Path) -> list[tuple]:
    store = open_store(folder)
    found = []
    for one in store.scan():
        assert isinstance(one, Stored)
        found.append((one.entry, one.content_sha256, one.vector.tobytes(), one.crc32))
    store.close()
    return found


def write_exchange(
    folder: Path, vectors: np.ndarray, lines: list[dict] | None = None, metadata: dict | None = None
) -> Path:
    folder.mkdir()
    metadata = {"identity": ORIGIN.identity} if metadata is None else metadata
    save_file({"embeddings": vectors}, folder / EMBEDDINGS_FILE, metadata=metadata)
    lines = [{"id": f"e{number}"} for number in range(len(vectors))] if lines is None else lines
    (folder / ENTRIES_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_is_exported_is_imported_to_the_bit(gallery: Path, tmp_path: Path):
    exported = export_gallery(gallery, tmp_path / "out")
    assert (exported.entries, exported.generation, exported.damaged) == (4, 1, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [EMBEDDINGS_FILE, ENTRIES_FILE]
    imported = import_gallery(tmp_path / "out", tmp_path / "b.gallery")
    assert (imported.entries, imported.written, imported.kept, imported.normalised) == (4, 4, 0, 0)
    assert stored(tmp_path / "b.gallery") == stored(gallery)
    assert [one[0] for one in stored(gallery)] == ENTRIES
    assert type(stored(tmp_path / "b.gallery")[1][0].attributes["slow"]) is float
    assert open_store(tmp_path / "b.gallery").origin == ORIGIN

    again = import_gallery(tmp_path / "out", tmp_path / "b.gallery", normalise=True)
    assert (again.written, again.kept, again.generation) == (0, 4, imported.generation)
    export_gallery(tmp_path / "b.gallery", tmp_path / "twice")
    assert (tmp_path / "twice" / ENTRIES_FILE).read_bytes() == (tmp_path / "out" / ENTRIES_FILE).read_bytes()


def test_the_files_are_what_other_programs_read(gallery: Path, tmp_path: Path):
    export_gallery(gallery, tmp_path / "out")
    vectors = load_file(tmp_path / "out" / EMBEDDINGS_FILE)["embeddings"]
    np.testing.assert_array_equal(vectors, unit_rows(np.random.default_rng(0), 4, 8))
    with safe_open(tmp_path / "out" / EMBEDDINGS_FILE, framework="np") as file:
        assert file.metadata() == {
            "format": "reidserve.gallery/1",
            "identity": ORIGIN.identity,
            "engine": ORIGIN.engine,
            "dim": "8",
            "generation": "1",
        }
    lines = [json.loads(line) for line in (tmp_path / "out" / ENTRIES_FILE).read_text().splitlines()]
    assert lines[0] == {
        "id": "plain",
        **dict.fromkeys(["pid", "camid", "timestamp", "source"]),
        "attributes": {},
        "content_sha256": "07" * 32,
    }
    assert lines[1]["timestamp"] == 1714550400000001


def test_a_filter_chooses_what_is_exported(gallery: Path, tmp_path: Path):
    assert export_gallery(gallery, tmp_path / "out", where=parse_filter("speed == 7")).entries == 1
    assert export_gallery(gallery, tmp_path / "none", where=parse_filter("pid == nobody")).entries == 0
    assert import_gallery(tmp_path / "none", tmp_path / "b.gallery").entries == 0
    assert len(read_snapshot(tmp_path / "b.gallery")) == 0


def test_an_export_replaces_nothing(gallery: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="is there already"):
        export_gallery(gallery, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gallery", "out"]


@pytest.mark.parametrize(
    ("writes", "error"),
    [
        ("_write_rows", OSError(28, "No space left on device")),
        ("save_file", SafetensorError("No space left on device")),
    ],
)
def test_a_full_disk_is_one_error_and_leaves_nothing(writes, error, gallery: Path, tmp_path: Path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"reidserve.index.exchange.{writes}", full)
    with pytest.raises(GalleryError, match=r"a\.gallery cannot be exported to .*/out: .*No space left on device"):
        export_gallery(gallery, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gallery"]


def test_lines_may_be_as_short_as_an_id_and_moments_as_people_write_them(tmp_path: Path):
    vectors = unit_rows(np.random.default_rng(1), 2, 8)
    lines = [{"id": "a"}, {"id": "b", "timestamp": "2024-05-01T10:00:00+02:00"}]
    import_gallery(write_exchange(tmp_path / "in", vectors, lines), tmp_path / "b.gallery")
    (entry, content, blob, _), (moment, *_) = stored(tmp_path / "b.gallery")
    assert (entry, blob) == (Entry("a"), vectors[0].tobytes())
    assert content == hashlib.sha256(vectors[0].tobytes()).digest()
    assert moment.timestamp == 1714550400000000


def test_a_file_and_the_lines_of_its_name_will_do(tmp_path: Path):
    folder = write_exchange(tmp_path / "in", unit_rows(np.random.default_rng(1), 2, 8))
    (folder / EMBEDDINGS_FILE).rename(tmp_path / "x.safetensors")
    (folder / ENTRIES_FILE).rename(tmp_path / "x.jsonl")
    assert import_gallery(tmp_path / "x.safetensors", tmp_path / "b.gallery").entries == 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 2: Input data was truncated"),
        ("", "line 2: .*truncated"),
        ("[]", "line 2: Expected `object`"),
        ("{}", "line 2: .*missing required field `id`"),
        ('{"id": ""}', "line 2: .*must not be empty"),
        ('{"id": "e0"}', "line 2: the id 'e0' stands on line 1 already"),
        ('{"id": "a", "pid": 7}', r"line 2: Expected `str \| null`, got `int` - at `\$.pid`"),
        ('{"id": "a", "colour": "red"}', "line 2: .*unknown field `colour`"),
        ('{"id": "a", "timestamp": "2024-05-01"}', "line 2: .*no time zone"),
        ('{"id": "a", "timestamp": 9223372036854775808}', "line 2: .*microseconds"),
        ('{"id": "a", "attributes": {"pid": 1}}', "line 2: .*attribute's name"),
        ('{"id": "a", "attributes": {"a": [1]}}', "line 2: "),
        ('{"id": "a", "attributes": {"a": 1e999}}', "line 2: "),
        ('{"id": "a", "content_sha256": "77"}', "line 2: content_sha256 must be 64"),
        ('{"id": "a", "content_sha256": "zz"}', "line 2: "),
        (r'{"id": "\ud800"}', "line 2: "),
        ('{"id": "' + "a" * 5000 + '"}', "line 2: .*4096 characters"),
        ('{"id": "' + "a" * 5_000_000 + '"}', "line 2: it is longer than"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(line: str, fault: str, tmp_path: Path):
    folder = write_exchange(tmp_path / "in", unit_rows(np.random.default_rng(1), 3, 8))
    good = (folder / ENTRIES_FILE).read_text().splitlines()
    (folder / ENTRIES_FILE).write_text("\n".join([good[0], line, good[2]]) + "\n")
    with pytest.raises(DatasetError, match=fault):
        import_gallery(folder, tmp_path / "b.gallery")
    assert not (tmp_path / "b.gallery").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (-1, "line 3: the file ends, .*has 3 vectors"),
        (1, "line 4: .*has 3 vectors, this is one line more"),
    ],
)
def test_as_many_lines_as_vectors_are_needed(change: int, fault: str, tmp_path: Path):
    lines = [{"id": f"e{number}"} for number in range(3 + change)]
    folder = write_exchange(tmp_path / "in", unit_rows(np.random.default_rng(1), 3, 8), lines)
    with pytest.raises(DatasetError, match=fault):
        import_gallery(folder, tmp_path / "b.gallery")


def test_a_vector_is_normalised_only_where_that_is_asked_for(tmp_path: Path):
    vectors = unit_rows(np.random.default_rng(1), 3, 8)
    folder = write_exchange(tmp_path / "in", vectors * np.array([[1], [2e20], [1]], np.float32))
    with pytest.raises(DatasetError, match="line 2: its vector has length 2e\\+20, expected 1 .*--normalise"):
        import_gallery(folder, tmp_path / "b.gallery")
    report = import_gallery(folder, tmp_path / "b.gallery", normalise=True)
    assert (report.entries, report.normalised) == (3, 1)
    found = [np.frombuffer(one[2], "<f4") for one in stored(tmp_path / "b.gallery")]
    np.testing.assert_array_equal(found[0], vectors[0])
    np.testing.assert_allclose(found[1], vectors[1], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_has_no_direction_is_refused_even_then(value: float, tmp_path: Path):
    vectors = unit_rows(np.random.default_rng(1), 3, 8)
    vectors[1] = value
    folder = write_exchange(tmp_path / "in", vectors)
    with pytest.raises(DatasetError, match="line 2: its vector has length .*cannot be brought to 1"):
        import_gallery(folder, tmp_path / "b.gallery", normalise=True)


def test_the_model_must_be_known_and_be_the_gallerys(gallery: Path, tmp_path: Path):
    vectors = unit_rows(np.random.default_rng(1), 2, 8)
    nameless = write_exchange(tmp_path / "nameless", vectors, metadata={"x": "y"})
    with pytest.raises(DatasetError, match="does not say which model.*--model"):
        import_gallery(nameless, tmp_path / "b.gallery")
    assert import_gallery(nameless, gallery, identity=ORIGIN.identity).entries == 6
    with pytest.raises(GalleryModelError, match="eeeeeeeeeeee"):
        import_gallery(nameless, gallery, identity="e" * 64)
    other = write_exchange(tmp_path / "other", vectors, metadata={"identity": "e" * 64})
    with pytest.raises(GalleryModelError, match="holds embeddings of model ffffffffffff, this is model eeeeeeeeeeee"):
        import_gallery(other, gallery)
    with pytest.raises(GalleryModelError, match="this is model dddddddddddd"):
        import_gallery(other, gallery, identity="d" * 64)
    wider = write_exchange(tmp_path / "wider", unit_rows(np.random.default_rng(1), 2, 9))
    with pytest.raises(DatasetError, match="8 dimensions, got 9"):
        import_gallery(wider, gallery)
    later = write_exchange(tmp_path / "later", vectors, metadata={"format": "reidserve.gallery/9"})
    with pytest.raises(DatasetError, match="has the format reidserve.gallery/9"):
        import_gallery(later, gallery)


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, (2**40).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0{}"], ids=range(4)
)
def test_a_hostile_or_cut_off_file_is_one_error(data: bytes, tmp_path: Path):
    folder = write_exchange(tmp_path / "in", unit_rows(np.random.default_rng(1), 2, 8))
    (folder / EMBEDDINGS_FILE).write_bytes(data)
    with pytest.raises(DatasetError, match="no whole safetensors file with a tensor embeddings"):
        import_gallery(folder, tmp_path / "b.gallery")
    whole = write_exchange(tmp_path / "whole", unit_rows(np.random.default_rng(1), 2, 8))
    (whole / EMBEDDINGS_FILE).write_bytes((whole / EMBEDDINGS_FILE).read_bytes()[:-1])
    with pytest.raises(DatasetError, match="no whole safetensors file"):
        import_gallery(whole, tmp_path / "b.gallery")
    for missing in (tmp_path / "none", tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(DatasetError):
            import_gallery(missing, tmp_path / "b.gallery")


@pytest.mark.parametrize("vectors", [np.zeros((2, 8), np.float64), np.zeros(8, np.float32), np.zeros((2, 0), "f4")])
def test_only_rows_of_float32_are_taken(vectors: np.ndarray, tmp_path: Path):
    folder = write_exchange(tmp_path / "in", vectors, [])
    with pytest.raises(DatasetError, match="expected a float32 tensor"):
        import_gallery(folder, tmp_path / "b.gallery")


def test_somebody_elses_folder_and_too_little_memory_and_a_second_writer_are_refused(gallery: Path, tmp_path: Path):
    folder = write_exchange(tmp_path / "in", unit_rows(np.random.default_rng(1), 3, 8))
    with pytest.raises(OutputExistsError, match="is no gallery"):
        import_gallery(folder, folder)
    with pytest.raises(GalleryFullError, match="3 entries, 2 fit"):
        import_gallery(folder, tmp_path / "b.gallery", max_memory=2 * entry_bytes(8))
    assert not (tmp_path / "b.gallery").exists()
    before = stored(gallery)
    with pytest.raises(GalleryFullError, match="would hold 7 entries, 5 fit"):
        import_gallery(folder, gallery, max_memory=5 * entry_bytes(8))
    with open_writer(gallery), pytest.raises(GalleryLockedError):
        import_gallery(folder, gallery)
    assert stored(gallery) == before


def test_an_import_that_was_killed_leaves_whole_batches_and_is_made_again(tmp_path: Path):
    count = 40 * IMPORT_ROWS
    folder = write_exchange(tmp_path / "in", unit_rows(np.random.default_rng(1), count, 8))
    command = [BIN / "reid-index", "import", tmp_path / "b.gallery", folder, "--json"]
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "b.gallery/gallery.db-wal").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    while time.monotonic() < deadline:
        try:
            store = open_store(tmp_path / "b.gallery")
        except Exception:  # noqa: BLE001  # it is being made
            continue
        here = store.count()
        store.close()
        if here:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    gallery = open_gallery(tmp_path / "b.gallery")
    survivors = len(gallery.snapshot)
    gallery.close()
    assert survivors % IMPORT_ROWS == 0
    assert 0 < survivors < count, "the import was not killed half-way"
    again = run_command("reid-index", "import", tmp_path / "b.gallery", folder, "--json")
    report = json.loads(again.stdout)
    assert (report["entries"], report["written"], report["kept"]) == (count, count - survivors, survivors)
