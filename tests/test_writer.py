import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Embedding
from reidserve.errors import (
    EmbeddingError,
    EngineStuckError,
    EntryError,
    EntryNotFoundError,
    GalleryFullError,
    ImageError,
    ImageTooLargeError,
    NotServingError,
    OutputExistsError,
    OverloadedError,
    QueryError,
    ReadOnlyError,
    ReceiptError,
    ReidError,
)
from reidserve.index import Entry, Filter, FolderGallery, Origin, read_snapshot
from reidserve.index.gallery import open_gallery
from reidserve.index.storage.store import create_store, open_store
from reidserve.server.call import ANYONE, Call
from reidserve.server.guard.audit import Audit
from reidserve.server.writes import pieces, writer
from reidserve.server.writes.entries import Change, NewEntry, Numbered
from reidserve.server.writes.receipts import KEPT_SECONDS, Receipts
from reidserve.server.writes.snapshots import copy_gallery
from reidserve.server.writes.writer import Writer
from tests.conftest import unit_rows

DIM = 8
VECTORS = unit_rows(np.random.default_rng(5), 2000, DIM)
CALL = Call("reid.v1.GalleryService/BatchUpsertEntries", "r1", ANYONE, float("inf"))


def vector_of(data: bytes) -> Embedding:
    row: Embedding = VECTORS[int.from_bytes(hashlib.sha256(data).digest()[:4], "little") % len(VECTORS)]
    return row


class Embedding8:
    """Embeds by hashing: of "bad" an ImageError, of "nan" an EmbeddingError; waits where `opened` is clear."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.deadlines: list[float | None] = []
        self.opened = asyncio.Event()
        self.opened.set()
        self.failures: list[ReidError] = []

    async def __call__(self, images: Sequence[bytes], *, deadline: float | None = None) -> list[Embedding | ReidError]:
        await self.opened.wait()
        if self.failures:
            raise self.failures.pop()
        self.seen += images
        self.deadlines.append(deadline)
        return [self.of(data) for data in images]

    @staticmethod
    def of(data: bytes) -> Embedding | ReidError:
        if data == b"bad":
            return ImageError("it is no JPEG")
        if data == b"huge":
            return ImageTooLargeError("it has too many pixels")
        if data == b"nan":
            return EmbeddingError("the model gave NaN")
        if data == b"stuck":
            return EngineStuckError("nothing has moved for 30 s")
        return vector_of(data)


class Lines(Audit):
    """An audit log in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict] = []
        self.threads: set[str] = set()

    def record(self, call: Call, what: str, gallery: str | None, **facts) -> None:
        self.threads.add(threading.current_thread().name)
        self.lines.append({"request_id": call.request_id, "what": what, "gallery": gallery, **facts})


@pytest.fixture
def embed() -> Embedding8:
    return Embedding8()


@pytest.fixture
def audit() -> Lines:
    return Lines()


@pytest.fixture
def gallery(tmp_path: Path):
    create_store(tmp_path / "shop.gallery", Origin("0" * 64, "fp32/onnxruntime-cpu", DIM)).close()
    with closing(open_gallery(tmp_path / "shop.gallery", write=True)) as opened:
        yield opened


@pytest.fixture
async def shop(gallery: FolderGallery, embed: Embedding8, audit: Lines, tmp_path: Path):
    running = Writer(gallery, embed, snapshots=tmp_path / "snapshots", audit=audit)
    yield running
    embed.opened.set()
    await running.close()


def new(number: int, *, content: bytes | Embedding | None = None, **fields) -> NewEntry:
    return NewEntry(Entry(f"n{number}", **fields), VECTORS[number] if content is None else content)


def ids(gallery: FolderGallery) -> list[str]:
    return [entry.id for entry in gallery.snapshot.entries()]


async def test_what_is_acknowledged_is_on_the_disk_and_found_at_once(shop: Writer, gallery: FolderGallery):
    entries = [new(1, pid="7", attributes={"colour": "red"}), new(2, content=b"an image", camid="c1", timestamp=-5)]
    written = await shop.upsert(entries, CALL)
    assert (written.generation, written.changed) == (1, 2)
    assert gallery.snapshot.generation == 1
    with closing(open_store(gallery.place)) as store:
        one, two = store.get("n1"), store.get("n2")
    assert one is not None
    assert two is not None
    assert (one.entry, two.entry) == (entries[0].entry, entries[1].entry)
    assert one.vector.tobytes() == VECTORS[1].tobytes()
    assert one.content_sha256 == hashlib.sha256(VECTORS[1].tobytes()).digest()
    assert two.vector.tobytes() == vector_of(b"an image").tobytes()
    assert two.content_sha256 == hashlib.sha256(b"an image").digest()


async def test_an_entry_that_is_there_as_it_is_stays_and_nothing_is_embedded_again(
    shop: Writer, gallery: FolderGallery, embed: Embedding8
):
    await shop.upsert([new(1, content=b"a"), new(2)], CALL)
    again = await shop.upsert([new(1, content=b"a"), new(2)], CALL)
    assert (again.generation, again.changed) == (1, 0)
    # Another entry of the same image, and the same entry with other facts.
    more = await shop.upsert([new(3, content=b"a"), new(1, content=b"a", pid="9"), new(4, content=b"b")], CALL)
    assert (more.generation, more.changed) == (2, 3)
    assert embed.seen == [b"a", b"b"]
    snapshot = gallery.snapshot
    assert snapshot.vector(snapshot.row("n3")).tobytes() == vector_of(b"a").tobytes()


async def test_an_image_that_comes_twice_in_one_write_is_embedded_once(shop: Writer, embed: Embedding8):
    assert (await shop.upsert([new(1, content=b"a"), new(2, content=b"a")], CALL)).changed == 2
    assert embed.seen == [b"a"]


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (new(3, content=b"bad"), ImageError, "entry 'n3': it is no JPEG"),
        (new(3, content=b"huge"), ImageTooLargeError, "entry 'n3': it has too many pixels"),
        (new(3, content=b"nan"), EmbeddingError, "entry 'n3': the model gave NaN"),
        (new(3, content=VECTORS[3] * 2), EntryError, "entry 'n3': expected an embedding of unit length"),
        (new(3, content=VECTORS[3] * np.float32("nan")), EntryError, "entry 'n3': .* got nan"),
        (new(3, content=VECTORS[3, :4]), EntryError, "entry 'n3': expected an embedding of 8 dimensions, got 4"),
        (new(1), EntryError, "entry 'n1' comes twice"),
    ],
)
async def test_one_wrong_entry_refuses_the_whole_write_and_is_named(shop, gallery, audit, wrong, kind, message):
    with pytest.raises(kind, match=message) as refused:
        await shop.upsert([new(1), new(2, content=b"fine"), wrong], CALL)
    assert type(refused.value) is kind
    assert (gallery.snapshot.generation, ids(gallery), audit.lines) == (0, [], [])


async def test_what_is_no_entrys_own_fault_is_not_told_of_an_entry(shop: Writer):
    with pytest.raises(EngineStuckError, match="^nothing has moved"):
        await shop.upsert([new(1, content=b"stuck")], CALL)


async def test_the_deadline_of_a_call_goes_with_its_images(shop: Writer, embed: Embedding8):
    await shop.upsert([new(1, content=b"a")], Call("m", "r", ANYONE, 123.0))
    assert embed.deadlines == [123.0]


async def test_what_does_not_fit_in_memory_is_refused_as_a_whole(tmp_path: Path, embed: Embedding8):
    create_store(tmp_path / "small.gallery", Origin("0" * 64, "fp32/onnxruntime-cpu", DIM)).close()
    with closing(open_gallery(tmp_path / "small.gallery", write=True, max_memory=5000)) as gallery:
        small = Writer(gallery, embed)
        with pytest.raises(GalleryFullError):
            await small.upsert([new(number) for number in range(100)], CALL)
        assert ids(gallery) == []
        assert (await small.upsert([new(1)], CALL)).changed == 1
        await small.close()


async def test_more_entries_than_may_wait_are_refused_at_once(shop: Writer, embed: Embedding8, monkeypatch):
    monkeypatch.setattr(writer, "MAX_WAITING", 3)
    embed.opened.clear()
    waiting = asyncio.create_task(shop.upsert([new(1, content=b"a"), new(2, content=b"b")], CALL))
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError, match="2 entries wait"):
        await shop.upsert([new(3), new(4)], CALL)
    assert (await shop.upsert([new(3)], CALL)).changed == 1
    embed.opened.set()
    assert (await waiting).changed == 2
    assert (await shop.upsert([new(5), new(6), new(7)], CALL)).changed == 3


async def test_an_update_says_what_it_names_and_leaves_the_rest(shop: Writer, gallery: FolderGallery):
    await shop.upsert([new(1, pid="7", camid="c1", attributes={"colour": "red", "speed": 3})], CALL)
    updated = await shop.update(Change("n1", {"pid": None, "source": "there"}, {"speed": None, "seen": True}), CALL)
    expected = Entry("n1", camid="c1", source="there", attributes={"colour": "red", "seen": True})
    assert (updated.row, updated.entry, updated.generation) == (2, expected, 2)
    assert gallery.snapshot.find("n1") == expected
    assert gallery.snapshot.vector(2).tobytes() == VECTORS[1].tobytes()
    again = await shop.update(Change("n1", {"source": "there"}), CALL)
    assert (again.row, again.generation) == (2, 2)
    with pytest.raises(EntryNotFoundError, match="no entry 'n2'"):
        await shop.update(Change("n2", {"pid": "1"}), CALL)
    with pytest.raises(EntryError, match="attribute speed"):
        await shop.update(Change("n1", {}, {"speed": float("inf")}), CALL)


async def test_entries_go_by_id_or_by_filter(shop: Writer, gallery: FolderGallery):
    await shop.upsert([new(number, camid=f"c{number % 2}") for number in range(6)], CALL)
    gone = await shop.delete(["n0", "n0", "n9"], CALL)
    assert (gone.generation, gone.changed) == (2, 1)
    gone = await shop.delete(None, CALL, where=Filter(camids=frozenset(["c1"])))
    assert (gone.generation, gone.changed) == (3, 3)
    assert ids(gallery) == ["n2", "n4"]
    assert (await shop.delete(["n0"], CALL)).changed == 0


async def test_each_write_is_recorded_once_it_is_durable_and_by_the_writers_own_thread(shop: Writer, audit: Lines):
    await shop.upsert([new(1), new(2)], CALL)
    await shop.update(Change("n1", {"pid": "3"}), CALL)
    await shop.delete(["n2"], CALL)
    copy = await shop.snapshot("", CALL)
    common = {"request_id": "r1", "gallery": "shop"}
    assert audit.lines == [
        {**common, "what": "upsert", "entries": 2, "changed": 2, "generation": 1},
        {**common, "what": "update", "entry_id": "n1", "changed": 1, "generation": 2},
        {**common, "what": "delete", "changed": 1, "generation": 3},
        {**common, "what": "snapshot", "snapshot": copy.name, "generation": 3},
    ]
    assert audit.threads == {"writer_0", "snapshot_0"}


async def test_the_servers_own_audit_log_takes_what_is_recorded(
    gallery: FolderGallery, embed: Embedding8, tmp_path: Path
):
    log = Audit(tmp_path / "audit.jsonl")
    shop = Writer(gallery, embed, snapshots=tmp_path / "snapshots", audit=log)
    await shop.upsert([new(1), new(2, content=b"an image")], CALL)
    await shop.update(Change("n1", {"pid": "3"}), CALL)
    await imported(shop, stream_of([new(4)]))
    await shop.delete(["n2"], CALL)
    await shop.snapshot("today", CALL)
    await shop.close()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["what"], line["gallery"], line["generation"], line["caller"]) for line in lines] == [
        (what, "shop", generation, "anyone")
        for what, generation in (("upsert", 1), ("update", 2), ("import", 3), ("delete", 4), ("snapshot", 4))
    ]


# Imports


async def stream_of(entries: Sequence[NewEntry | ReidError], *, start: int = 1, size: int = 100):
    for sequence, one in enumerate(entries, start=start):
        name = one.entry.id if isinstance(one, NewEntry) else "unreadable"
        yield Numbered(sequence, name, one, size)


async def imported(shop: Writer, stream: AsyncIterator[Numbered]) -> list:
    return [piece async for piece in shop.import_(stream, CALL)]


async def test_an_import_is_acknowledged_in_pieces_and_tells_what_it_leaves_out(shop, gallery, audit):
    entries = [new(number) for number in range(600)]
    entries[3] = new(3, content=b"bad")
    entries[300] = EntryError("an entry's id must not be empty")
    entries[599] = new(599, content=VECTORS[0, :4])
    found = await imported(shop, stream_of(entries))
    assert [(piece.sequence, piece.written, piece.generation) for piece in found] == [
        (256, 255, 1),
        (512, 255, 2),
        (600, 87, 3),
    ]
    faults = [fault for piece in found for fault in piece.faults]
    assert [(fault.sequence, fault.entry_id, type(fault.error)) for fault in faults] == [
        (4, "n3", ImageError),
        (301, "unreadable", EntryError),
        (600, "n599", EntryError),
    ]
    left_out = {"n3", "n300", "n599"}
    assert ids(gallery) == [f"n{number}" for number in range(600) if f"n{number}" not in left_out]
    assert [(line["entries"], line["last_sequence"]) for line in audit.lines] == [(255, 256), (255, 512), (87, 600)]


async def test_an_import_that_brings_nothing_new_writes_nothing(shop: Writer, gallery: FolderGallery):
    entries = [new(number) for number in range(10)]
    await imported(shop, stream_of(entries))
    (piece,) = await imported(shop, stream_of(entries, start=5))
    assert (piece.sequence, piece.written, piece.generation) == (14, 0, 1)


async def test_an_id_that_comes_twice_in_an_import_is_written_twice_in_order(shop: Writer, gallery: FolderGallery):
    entries = [new(1, pid="a"), new(2), new(1, pid="b"), new(1, pid="c", content=b"bad")]
    found = await imported(shop, stream_of(entries))
    assert [(piece.sequence, piece.written, len(piece.faults)) for piece in found] == [(2, 2, 0), (3, 1, 0), (4, 0, 1)]
    assert gallery.snapshot.find("n1") == Entry("n1", pid="b")


async def test_large_entries_make_small_pieces(shop: Writer):
    found = await imported(shop, stream_of([new(number) for number in range(5)], size=pieces.PIECE_BYTES // 2))
    assert [piece.sequence for piece in found] == [2, 4, 5]


async def test_a_slow_import_is_acknowledged_without_waiting_for_a_whole_piece(shop: Writer, gallery: FolderGallery):
    sent: asyncio.Queue[Numbered | None] = asyncio.Queue()

    async def stream():
        while (one := await sent.get()) is not None:
            yield one

    answers = shop.import_(stream(), CALL)
    for sequence in (7, 9):
        await sent.put(Numbered(sequence, f"n{sequence}", new(sequence), 1))
        piece = await asyncio.wait_for(anext(answers), 10)
        assert (piece.sequence, piece.written) == (sequence, 1)
        assert ids(gallery)[-1] == f"n{sequence}"
    await sent.put(None)
    assert await anext(answers, None) is None


async def test_an_import_reads_no_further_than_a_piece_that_is_not_written(shop: Writer, embed: Embedding8):
    taken = 0

    async def stream():
        nonlocal taken
        for taken in range(1, 3000):
            yield Numbered(taken, f"n{taken}", new(taken % 2000, content=b"%d" % taken), 1)

    embed.opened.clear()
    answers = shop.import_(stream(), CALL)
    first = asyncio.create_task(anext(answers))
    await asyncio.sleep(0.3)
    assert taken == pieces.PIECE_ENTRIES + 1
    embed.opened.set()
    assert (await first).sequence == pieces.PIECE_ENTRIES
    await asyncio.sleep(0.1)
    # Whoever does not read acknowledgements is not read either.
    assert taken == pieces.PIECE_ENTRIES + 1
    await answers.aclose()


async def test_what_came_before_a_stream_failed_is_acknowledged(shop: Writer, gallery: FolderGallery):
    async def stream():
        yield Numbered(1, "n1", new(1), 1)
        raise QueryError("an import's sequence must rise")

    answers = shop.import_(stream(), CALL)
    assert (await anext(answers)).sequence == 1
    with pytest.raises(QueryError, match="must rise"):
        await anext(answers)
    assert ids(gallery) == ["n1"]


async def test_a_retired_writer_ends_imports_behind_a_piece_and_takes_other_writes(
    shop: Writer, gallery: FolderGallery
):
    async def stream():
        yield Numbered(1, "n1", new(1), 1)
        await asyncio.Event().wait()

    answers = shop.import_(stream(), CALL)
    first = asyncio.create_task(anext(answers))
    await asyncio.sleep(0.05)
    shop.retire()
    assert (await first).sequence == 1
    with pytest.raises(NotServingError, match="go on behind the last acknowledged"):
        await anext(answers)
    assert (await shop.upsert([new(2)], CALL)).changed == 1


async def test_an_import_that_never_pauses_ends_too_where_its_writer_is_retired(shop: Writer, gallery: FolderGallery):
    async def stream():
        for sequence in range(1, 100_000):
            yield Numbered(sequence, f"n{sequence}", new(sequence % 2000), 1)

    answers = shop.import_(stream(), CALL)
    assert (await anext(answers)).sequence == 256
    shop.retire()
    with pytest.raises(NotServingError):
        await anext(answers)
    assert len(ids(gallery)) == 256


async def test_an_import_waits_where_others_would_be_told_to_come_again(shop: Writer, embed: Embedding8):
    embed.failures = [OverloadedError("full", retry_after=0.01), OverloadedError("full", retry_after=0.01)]
    (piece,) = await imported(shop, stream_of([new(1, content=b"a")]))
    assert (piece.written, piece.faults, embed.seen) == (1, [], [b"a"])


async def test_an_import_leaves_room_for_the_images_of_others(shop: Writer, embed: Embedding8):
    (piece,) = await imported(shop, stream_of([new(number, content=b"%d" % number) for number in range(200)]))
    assert (piece.written, embed.seen) == (200, [b"%d" % number for number in range(200)])
    assert len(embed.deadlines) == 4


async def test_an_import_ends_with_what_is_the_servers_fault_and_keeps_what_was_acknowledged(shop, gallery):
    entries = [*(new(number) for number in range(256)), new(256, content=b"stuck")]
    answers = shop.import_(stream_of(entries), CALL)
    assert (await anext(answers)).sequence == 256
    with pytest.raises(EngineStuckError):
        await anext(answers)
    assert len(ids(gallery)) == 256


async def test_more_imports_than_there_are_places_are_refused(shop: Writer, embed: Embedding8, monkeypatch):
    monkeypatch.setattr(writer, "MAX_IMPORTS", 1)
    embed.opened.clear()
    first = asyncio.create_task(imported(shop, stream_of([new(1, content=b"a")])))
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError, match="1 imports are under way"):
        await imported(shop, stream_of([new(2)]))
    embed.opened.set()
    await first
    assert (await imported(shop, stream_of([new(2)])))[0].written == 1


async def test_an_import_that_was_cut_off_anywhere_and_goes_on_brings_exactly_the_whole(shop, gallery):
    """Cut off, as by a caller that is gone, after some messages, while a piece is on its way or not."""
    rng = np.random.default_rng(9)
    entries = [new(number % 700, pid=str(number)) for number in range(1000)]
    acknowledged = 0
    for _ in range(12):
        answers = shop.import_(stream_of(entries[acknowledged:], start=acknowledged + 1), CALL)
        for _ in range(int(rng.integers(3))):
            piece = await anext(answers, None)
            acknowledged = acknowledged if piece is None else piece.sequence
        cut = asyncio.create_task(anext(answers, None))
        await asyncio.sleep(float(rng.random()) * 0.02)
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
        await answers.aclose()
    for piece in await imported(shop, stream_of(entries[acknowledged:], start=acknowledged + 1)):
        acknowledged = piece.sequence
    expected = {f"n{number % 700}": str(number) for number in range(1000)}
    assert {entry.id: entry.pid for entry in gallery.snapshot.entries()} == expected
    assert acknowledged == 1000


# Snapshots


async def test_a_snapshot_is_a_whole_gallery_under_its_own_name(shop: Writer, gallery: FolderGallery, tmp_path: Path):
    await shop.upsert([new(1), new(2)], CALL)
    copy = await shop.snapshot("of-today.1", CALL)
    assert (copy.name, copy.generation, copy.entries) == ("of-today.1", 1, 2)
    await shop.upsert([new(3)], CALL)
    later = await shop.snapshot("", CALL)
    assert later.name.startswith("shop-2-")
    assert later.entries == 3
    there = tmp_path / "snapshots"
    assert {path.name for path in there.iterdir()} == {"of-today.1", later.name}
    assert [path.name for path in (there / "of-today.1").iterdir()] == ["gallery.db"]
    assert copy.size == (there / "of-today.1" / "gallery.db").stat().st_size
    first = read_snapshot(there / "of-today.1")
    assert [entry.id for entry in first.entries()] == ["n1", "n2"]
    assert first.vector(2).tobytes() == VECTORS[2].tobytes()


@pytest.mark.parametrize("name", [".", "..", "../there", "a/b", ".hidden", "a b", "naïve", "a\n", "a" * 129, "/tmp/a"])
async def test_a_snapshots_name_stays_in_its_folder(shop: Writer, tmp_path: Path, name: str):
    with pytest.raises(QueryError, match="a snapshot's name"):
        await shop.snapshot(name, CALL)
    assert not (tmp_path / "snapshots").exists()


async def test_a_snapshot_takes_no_place_that_is_taken_and_needs_a_folder(shop, gallery, embed, tmp_path: Path):
    await shop.snapshot("one", CALL)
    (tmp_path / "snapshots" / "link").symlink_to(tmp_path / "nowhere")
    for name in ("one", "link"):
        with pytest.raises(OutputExistsError, match="already"):
            await shop.snapshot(name, CALL)
    without = Writer(gallery, embed)
    with pytest.raises(ReadOnlyError, match="no folder for snapshots"):
        await without.snapshot("two", CALL)
    await without.close()


async def test_writes_go_on_while_a_snapshot_is_made(shop: Writer, gallery: FolderGallery, monkeypatch):
    began, go_on = threading.Event(), threading.Event()

    def slow(*given, **named):
        began.set()
        assert go_on.wait(20)
        return copy(*given, **named)

    copy = copy_gallery
    monkeypatch.setattr(writer, "copy_gallery", slow)
    copying = asyncio.create_task(shop.snapshot("one", CALL))
    assert await asyncio.to_thread(began.wait, 20)
    assert (await shop.upsert([new(1)], CALL)).changed == 1
    go_on.set()
    assert (await copying).entries == 1


# Receipts


class Work:
    """Counts how often it is done; waits where `opened` is clear."""

    def __init__(self) -> None:
        self.done = 0
        self.fail: ReidError | None = None
        self.opened = asyncio.Event()
        self.opened.set()

    async def __call__(self) -> bytes:
        await self.opened.wait()
        self.done += 1
        if self.fail is not None:
            raise self.fail
        return b"answer %d" % self.done


KEY = ("anyone", "id-1")


async def test_a_request_that_is_sent_again_gets_the_first_answer_for_ten_minutes():
    now = [0.0]
    receipts, work = Receipts(clock=lambda: now[0]), Work()
    assert await receipts.once(KEY, b"d", work) == b"answer 1"
    now[0] = KEPT_SECONDS - 1
    assert await receipts.once(KEY, b"d", work) == b"answer 1"
    with pytest.raises(ReceiptError, match="'id-1' was used for another request"):
        await receipts.once(KEY, b"other", work)
    # Another caller's id is another id.
    assert await receipts.once(("other", "id-1"), b"other", work) == b"answer 2"
    now[0] = KEPT_SECONDS
    assert await receipts.once(KEY, b"other", work) == b"answer 3"


async def test_a_request_that_is_sent_again_while_it_is_under_way_waits_for_it():
    receipts, work = Receipts(), Work()
    work.opened.clear()
    asking = [asyncio.create_task(receipts.once(KEY, b"d", work)) for _ in range(5)]
    await asyncio.sleep(0.01)
    with pytest.raises(ReceiptError):
        await receipts.once(KEY, b"other", work)
    work.opened.set()
    assert await asyncio.gather(*asking) == [b"answer 1"] * 5


async def test_work_goes_on_where_its_caller_is_gone():
    receipts, work = Receipts(), Work()
    work.opened.clear()
    first = asyncio.create_task(receipts.once(KEY, b"d", work))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    again = asyncio.create_task(receipts.once(KEY, b"d", work))
    await asyncio.sleep(0.01)
    work.opened.set()
    assert await again == b"answer 1"
    assert await receipts.once(KEY, b"d", work) == b"answer 1"


async def test_a_failure_is_its_own_callers_and_may_be_tried_again():
    receipts, work = Receipts(), Work()
    work.opened.clear()
    work.fail = ImageError("no")
    asking = [asyncio.create_task(receipts.once(KEY, b"d", work)) for _ in range(3)]
    await asyncio.sleep(0.01)
    work.opened.set()
    assert all(isinstance(one, ImageError) for one in await asyncio.gather(*asking, return_exceptions=True))
    assert work.done == 3
    work.fail = None
    assert await receipts.once(KEY, b"other", work) == b"answer 4"


async def test_receipts_take_no_more_than_their_room():
    work = Work()
    few = Receipts(most=3)
    for number in range(5):
        await few.once(("anyone", str(number)), b"d", work)
    assert await few.once(("anyone", "2"), b"d", work) == b"answer 3"
    assert await few.once(("anyone", "1"), b"d", work) == b"answer 6"
    small = Receipts(most_bytes=17)
    for number in range(3):
        await small.once(("anyone", str(number)), b"d", work)
    assert await small.once(("anyone", "1"), b"d", work) == b"answer 8"
    assert await small.once(("anyone", "0"), b"d", work) == b"answer 10"


async def test_closing_waits_for_what_is_under_way(shop: Writer, embed: Embedding8, gallery: FolderGallery):
    async def work() -> bytes:
        return b"%d" % (await shop.upsert([new(1, content=b"a")], CALL)).changed

    embed.opened.clear()
    asking = asyncio.create_task(shop.receipts.once(KEY, b"d", work))
    await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    closing_ = asyncio.create_task(shop.close())
    await asyncio.sleep(0.02)
    assert not closing_.done()
    embed.opened.set()
    await closing_
    assert ids(gallery) == ["n1"]
