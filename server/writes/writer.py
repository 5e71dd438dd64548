"""The writer of a gallery: what calls write to it, one after the other, durable before it is acknowledged."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TypeVar

from reidserve.errors import (
    BackendUnavailableError,
    EntryNotFoundError,
    GalleryBehindError,
    GalleryLockedError,
    OverloadedError,
    ReadOnlyError,
    ReidError,
)
from reidserve.index import Entry, Filter, Gallery, Record, Written
from reidserve.server.call import Call
from reidserve.server.guard.audit import Audit, Fact
from reidserve.server.settings import gallery_name
from reidserve.server.writes.entries import Acknowledged, Change, Fault, NewEntry, Numbered, Updated
from reidserve.server.writes.pieces import pieces_of
from reidserve.server.writes.receipts import Receipts
from reidserve.server.writes.records import Embed, Records
from reidserve.server.writes.snapshots import Copy, check_name, copy_gallery

MAX_WAITING = 4096
"""How many entries may wait to be written, those of imports aside."""

MAX_IMPORTS = 4
"""How many imports may be under way: each has one piece in memory."""

EMBEDDED_TOGETHER = 64
"""How many entries of an import are embedded at once, so that imports leave room for the images of other writes."""

_Result = TypeVar("_Result")


class Writer:
    """The one writer of a gallery that was opened to write; what it returns is durable and in `gallery.snapshot`.

    Whatever blocks is done on a thread of its own, in order.

    Attributes:
        gallery: what is written to.
        name: the gallery's, on this server.
        receipts: what was answered to whom.
        turn: whose it is writes: what takes this writer's place writes beside it for a moment, and has the same.
    """

    def __init__(
        self,
        gallery: Gallery,
        embed: Embed,
        *,
        name: str | None = None,
        snapshots: Path | None = None,
        thumbnails: bool = False,
        audit: Audit | None = None,
        receipts: Receipts | None = None,
        turn: "threading.Lock | None" = None,
    ) -> None:
        self.gallery = gallery
        self.name = gallery_name(gallery.place) if name is None else name
        self.receipts = Receipts() if receipts is None else receipts
        self.turn = threading.Lock() if turn is None else turn
        self._records = Records(gallery.rows(), embed, thumbnails=thumbnails)
        self._snapshots = snapshots
        self._audit = Audit() if audit is None else audit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._copying = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._retired = asyncio.Event()
        self._waiting = self._imports = 0

    async def upsert(self, entries: Sequence[NewEntry], call: Call) -> Written:
        """Write entries by their ids, all or none; what is there with equal content and fields stays.

        Raises:
            EntryError, ImageError, EmbeddingError: an entry cannot be written; it is named, and none is.
            GalleryFullError: there is no room for them in the memory that was allowed.
            OverloadedError: too many entries wait to be written.
            GalleryError: the disk failed; nothing was written.
            ReadOnlyError: another server writes to the gallery by now.
            BackendUnavailableError: what holds the gallery is away; some of it may have been written.
        """
        with self._admitted(len(entries)):
            records = _all(await self._records.make(entries, run=self._run, deadline=call.deadline))
            return await self._write("upsert", call, lambda: self.gallery.upsert(records), entries=len(records))

    async def update(self, change: Change, call: Call) -> Updated:
        """Say something else of an entry; its embedding stays.

        Raises:
            EntryNotFoundError: it is not there.
            EntryError: a value that no entry can have.
            OverloadedError, GalleryError: as in `upsert`.
        """

        def write() -> Written:
            entry = self.gallery.snapshot.find(change.entry_id)
            if entry is None:
                raise EntryNotFoundError(f"the gallery has no entry {change.entry_id!r}")
            updated.append(change.applied(entry))
            written = self.gallery.update(updated)
            rows.append(self.gallery.snapshot.row(change.entry_id))
            return written

        updated: list[Entry] = []
        rows: list[int] = []
        with self._admitted(1):
            written = await self._write("update", call, write, entry_id=change.entry_id)
        return Updated(rows[0], updated[0], written.generation)

    async def delete(self, ids: Sequence[str] | None, call: Call, *, where: Filter | None = None) -> Written:
        """Remove the entries of these ids, or those that a filter accepts, all or none.

        Raises:
            OverloadedError, GalleryError: as in `upsert`.
        """
        with self._admitted(1):
            return await self._write("delete", call, lambda: self.gallery.delete(ids, where=where))

    async def erase(self, call: Call) -> bool:
        """Clear the gallery's files of every byte of what was removed; returns whether there was any.

        Raises:
            RemainsError: bytes of it are left, because the gallery is being read.
            GalleryError: the disk failed.
        """

        def work() -> bool:
            with self.turn:
                erased = self.gallery.erase()
            if erased:
                self._audit.record(call, "erase", self.name, erased=True)
            return erased

        return await self._run(work)

    async def import_(self, stream: AsyncIterator[Numbered], call: Call) -> AsyncGenerator[Acknowledged]:
        """Write a stream of entries, piece by piece; what cannot be written is told and left out.

        The stream is read no faster than it is written: one piece at a time, and one entry ahead of it.

        Raises:
            NotServingError: the writer was retired; what was read before is acknowledged.
            GalleryFullError, GalleryError: a piece could not be written; those acknowledged before it stay.
            OverloadedError: too many imports are under way.
        """
        if self._imports >= MAX_IMPORTS:
            raise OverloadedError(f"{self._imports} imports are under way, the most that are taken: try again later")
        self._imports += 1
        try:
            async with aclosing(pieces_of(stream, self._retired)) as pieces:
                async for piece in pieces:
                    yield await self._write_piece(piece, call)
        finally:
            self._imports -= 1

    async def snapshot(self, name: str, call: Call) -> Copy:
        """Copy the gallery, as it stands, into the folder for snapshots; searches and writes go on meanwhile.

        Raises:
            ReadOnlyError: there is no folder for snapshots, or the gallery is no folder.
            QueryError, OutputExistsError: the name may not be, or is taken.
            GalleryError: the copy could not be written; nothing is left of it.
        """
        folder, place = self._snapshots, self.gallery.place
        if folder is None:
            raise ReadOnlyError("this server was given no folder for snapshots")
        if not isinstance(place, Path):
            raise ReadOnlyError(
                f"gallery {self.name!r} is in Milvus, which has backups of its own (milvus-backup); reid-index copy "
                "writes it into a folder"
            )
        check_name(folder, name)

        def copy() -> Copy:
            made = copy_gallery(place, folder, gallery=self.name, name=name)
            self._audit.record(call, "snapshot", self.name, snapshot=made.name, generation=made.generation)
            return made

        return await asyncio.get_running_loop().run_in_executor(self._copying, copy)

    def retire(self) -> None:
        """Let imports end behind the piece that they are at; other calls go on."""
        self._retired.set()

    async def close(self) -> None:
        """Finish what is under way and stop; before the pipeline and the gallery close."""
        self.retire()
        await self.receipts.finish()
        for thread in (self._thread, self._copying):
            await asyncio.to_thread(thread.shutdown)
        self._records.close()

    async def _write_piece(self, piece: Sequence[Numbered], call: Call) -> Acknowledged:
        readable = [one.new for one in piece if isinstance(one.new, NewEntry)]
        made: list[Record | ReidError] = []
        for start in range(0, len(readable), EMBEDDED_TOGETHER):
            made += await self._made(readable[start : start + EMBEDDED_TOGETHER])
        left = iter(made)
        results = [(one, next(left) if isinstance(one.new, NewEntry) else one.new) for one in piece]
        faults = [Fault(one.sequence, one.entry_id, found) for one, found in results if isinstance(found, ReidError)]
        records = [found for _, found in results if isinstance(found, Record)]
        last = piece[-1].sequence
        written = await self._write(
            "import", call, lambda: self.gallery.upsert(records), entries=len(records), last_sequence=last
        )
        return Acknowledged(last, written.generation, written.changed, faults)

    async def _made(self, entries: Sequence[NewEntry]) -> list[Record | ReidError]:
        """The records of a piece; an import waits where another caller would be told to come again."""
        while True:
            try:
                return await self._records.make(entries, run=self._run)
            except OverloadedError as error:
                await asyncio.sleep(error.retry_after)

    async def _write(self, what: str, call: Call, write: Callable[[], Written], **facts: Fact) -> Written:
        """Write on the thread; what is durable is recorded, whether anybody still waits for it or not."""

        def work() -> Written:
            try:
                with self.turn:
                    written = write()
            except GalleryLockedError as error:
                raise ReadOnlyError(
                    f"gallery {self.name!r} is written to by another server by now: send writes there, or start this "
                    "one again"
                ) from error
            except (GalleryBehindError, BackendUnavailableError):
                # It is on the disk, or may have come to be where the gallery is.
                self._audit.record(call, what, self.name, **facts)
                raise
            self._audit.record(call, what, self.name, **facts, changed=written.changed, generation=written.generation)
            return written

        return await self._run(work)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @contextmanager
    def _admitted(self, entries: int) -> Iterator[None]:
        if self._waiting + entries > MAX_WAITING:
            raise OverloadedError(f"{self._waiting} entries wait to be written, {MAX_WAITING} may: try again soon")
        self._waiting += entries
        try:
            yield
        finally:
            self._waiting -= entries


def _all(records: Sequence[Record | ReidError]) -> list[Record]:
    """All of them; the first that is none is raised."""
    whole = []
    for record in records:
        if isinstance(record, ReidError):
            raise record
        whole.append(record)
    return whole
