"""The rows of a gallery in Milvus, read and written.

A write reads what is there, says in the gallery's own entity that it has begun and which rows it takes, writes its
entities, and says that it is done, with the next generation. What was acknowledged is all there. Entities are whole or
absent, and never half one; of a write that was cut off (a crash, Milvus gone), nobody was told, and some entries may
have been written and others not: the next write or writer counts that as a generation, and the same write made again
completes it, as what is there already with equal content stays. Row numbers are never used again.

Milvus lets anybody write. A lease in the gallery's entity keeps a second writer of ours out: it is taken when a gallery
is opened to write, renewed by writes and refreshes, and left behind by a killed process for LEASE_SECONDS at most; a
writer whose lease is over looks first whether another has it. It goes by the machines' clocks, which must agree within
seconds, and Milvus itself enforces nothing.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Generator, Iterable, Iterator, Sequence

import msgspec

from reidserve.embed import Embedding
from reidserve.errors import (
    BackendUnavailableError,
    EntryNotFoundError,
    GalleryError,
    GalleryFullError,
    GalleryLockedError,
)
from reidserve.index.entry import Entry
from reidserve.index.milvus.collection import IDS_AT_ONCE, Collection
from reidserve.index.milvus.conditions import among
from reidserve.index.milvus.layout import (
    ENTRY_FIELDS,
    STORED_FIELDS,
    About,
    about_entity,
    check_fits,
    entity_of,
    read_entry_of,
    read_stored,
    read_vector,
)
from reidserve.index.place import GalleryUrl
from reidserve.index.storage.rows import Damage, Record, Stored, Written, check_once, check_vector

LEASE_SECONDS = 15.0

_MESSAGE_BYTES = 16 * 2**20  # of vectors in one message; Milvus takes 64 MiB in all
_ENTITY_BYTES = 4000


class MilvusRows:
    """The rows of one gallery; calls come from one thread at a time.

    Any call raises BackendUnavailableError where Milvus is away, and GalleryError where it cannot do it.

    Attributes:
        collection: where they are.
        origin: what the embeddings were computed by.
        most_entries: a write that would leave more is refused; None for no limit.
    """

    def __init__(self, collection: Collection, *, write: bool = False) -> None:
        self.collection = collection
        self.origin = collection.origin
        self.most_entries: int | None = None
        self._writer = f"{socket.gethostname()} process {os.getpid()} {secrets.token_hex(4)}" if write else ""
        self._about: About | None = None
        if write:
            self._take_lease()

    @property
    def place(self) -> GalleryUrl:
        """Where the gallery is."""
        return self.collection.url

    def close(self) -> None:
        """Give the lease back; where Milvus is away it runs out by itself."""
        if self._writer:
            with contextlib.suppress(BackendUnavailableError, GalleryLockedError):
                self._say(self.held(), writer="", until=0.0)
            self._writer = ""

    def another(self) -> "MilvusRows":
        """The same rows to be read, beside a thread that writes."""
        return MilvusRows(self.collection)

    def generation(self) -> int:
        """How many writes have changed something."""
        return self.collection.about().generation

    def count(self) -> int:
        """How many entries there are."""
        return self.collection.count()

    def note(self, key: str) -> str | None:
        """What was last noted under a key, None if nothing."""
        return self.collection.about().notes.get(key)

    def write_note(self, key: str, text: str) -> None:
        """Note a text under a key, durably."""
        about = self.held()
        self._say(about, notes=about.notes | {key: text})

    def renewed(self) -> About:
        """What is said of the gallery, the lease held for longer where half of it is over.

        Raises:
            GalleryLockedError: another process has it.
        """
        about = self.held()
        return self._say(about) if about.until - time.time() < LEASE_SECONDS / 2 else about

    def held(self) -> About:
        """What is said of the gallery by who holds its lease; a write that was cut off before is counted.

        Raises:
            GalleryError: the gallery was opened for reading.
            GalleryLockedError: another process has the lease.
        """
        if not self._writer:
            raise GalleryError(f"{self.place} was opened for reading: open it to write")
        if self._about is not None and time.time() < self._about.until:
            return self._about
        about = self.collection.about(newest=True)
        if about.writer != self._writer:
            raise GalleryLockedError(
                f"{self.place} is being written to by {about.writer or 'nobody'}, and not by this process any more: "
                "open it again to write"
            )
        return self._say(about, writing=False, generation=about.generation + about.writing)

    def upsert(self, records: Sequence[Record]) -> Written:
        """Write records by entry id; what is there already with equal content and fields stays.

        Raises:
            EntryError: a vector is not of unit length and the gallery's dimensions, an id comes twice, or Milvus
                cannot keep so long attributes; nothing was written.
            GalleryFullError: there would be more than `most_entries`; nothing was written.
            GalleryLockedError: another process writes to the gallery; nothing was written.
        """
        check_once(record.entry.id for record in records)
        for record in records:
            check_vector(record, self.origin.dim)
            check_fits(record)
        about = self.held()
        known = self.known([record.entry.id for record in records])
        changed = [one for one in records if known.get(one.entry.id) != (one.entry, one.content_sha256)]
        self._check_room(sum(record.entry.id not in known for record in changed))
        return self._put(about, changed)

    def update(self, entries: Sequence[Entry]) -> Written:
        """Say something else of entries that are there, by id; their embeddings stay.

        Raises:
            EntryNotFoundError: one of them is not there; nothing was written.
            EntryError: an id comes twice, or Milvus cannot keep so long attributes; nothing was written.
            GalleryError: the embedding of one is damaged; nothing was written.
            GalleryLockedError: another process writes to the gallery; nothing was written.
        """
        check_once(entry.id for entry in entries)
        about = self.held()
        found = {one.entry.id: one for one in self._stored([entry.id for entry in entries])}
        records = []
        for entry in entries:
            if entry.id not in found:
                raise EntryNotFoundError(f"the gallery has no entry {entry.id!r}")
            stored = found[entry.id]
            if stored.entry != entry:
                records.append(Record(entry, stored.content_sha256, stored.vector))
                check_fits(records[-1])
        return self._put(about, records)

    def delete(self, ids: Iterable[str]) -> Written:
        """Remove entries; ids that are not there are no error.

        Raises:
            GalleryLockedError: another process writes to the gallery; nothing was removed.
        """
        about = self.held()
        there = [str(entity["id"]) for entity in self.collection.of_ids(dict.fromkeys(ids), ["row"])]
        if not there:
            return Written(about.generation, 0)
        about = self._say(about, writing=True)
        for start in range(0, len(there), IDS_AT_ONCE):
            self.collection.server.delete(self.collection.name, among("id", there[start : start + IDS_AT_ONCE]))
        return Written(self._done(about), len(there))

    def get(self, name: str) -> Stored | None:
        """An entry, None if it is not there.

        Raises:
            GalleryError: it is damaged.
        """
        return next(self._stored([name]), None)

    def thumbnail(self, name: str) -> bytes | None:
        """None: Milvus keeps none."""
        return None

    def with_thumbnail(self) -> set[str]:
        """None of them."""
        return set()

    def contents(self) -> dict[str, tuple[Entry, bytes]]:
        """Every entry by its id, with its content_sha256, in row order."""
        pages = self.collection.scan([*ENTRY_FIELDS, "content"])
        return dict(_content(entity) for page in pages for entity in page)

    def known(self, ids: Iterable[str]) -> dict[str, tuple[Entry, bytes]]:
        """The entries among these ids, with their content_sha256."""
        return dict(map(_content, self.collection.of_ids(ids, [*ENTRY_FIELDS, "content"])))

    def ids(self) -> set[str]:
        """The ids of all entries."""
        return {entity["id"][1:] for page in self.collection.scan(["id"]) for entity in page}

    def find_vector(self, content_sha256: bytes) -> Embedding | None:
        """The embedding of any entry with that content, None if there is none."""
        where = among("content", [content_sha256.hex()])
        found = self.collection.server.query(self.collection.name, where, fields=["vector"], limit=1)
        return read_vector(found[0]) if found else None

    def scan(self) -> Generator[Stored | Damage, None, None]:
        """Every row, in row order; each page of them as it is when it is read."""
        yield from self.collection.scan_stored()

    def _stored(self, ids: Sequence[str]) -> Iterator[Stored]:
        for entity in self.collection.of_ids(ids, STORED_FIELDS):
            found = read_stored(entity)
            if isinstance(found, Damage):
                raise GalleryError(f"{self.place} is damaged: entry {found.id!r}: {found.fault}; write it again")
            yield found

    def _put(self, about: About, records: Sequence[Record]) -> Written:
        if not records:
            return Written(about.generation, 0)
        first = about.next_row
        about = self._say(about, writing=True, next_row=first + len(records))
        entities = [entity_of(record, row) for row, record in enumerate(records, start=first)]
        step = max(1, _MESSAGE_BYTES // (4 * self.origin.dim + _ENTITY_BYTES))
        for start in range(0, len(entities), step):
            self.collection.server.upsert(self.collection.name, entities[start : start + step])
        return Written(self._done(about), len(records))

    def _check_room(self, fresh: int) -> None:
        if self.most_entries is not None and fresh and (count := self.count() + fresh) > self.most_entries:
            raise GalleryFullError(
                f"{self.place} would hold {count} entries, {self.most_entries} fit in the memory that was allowed: "
                "raise --max-memory, or remove entries"
            )

    def _take_lease(self) -> None:
        """Be the only writer; whoever holds the lease and does not renew it has died, and is waited for."""
        deadline = time.monotonic() + LEASE_SECONDS + 1.0
        while True:
            about = self.collection.about(newest=True)
            if not about.writer or about.until < time.time():
                break
            if time.monotonic() > deadline or about.until > time.time() + 2 * LEASE_SECONDS:
                raise GalleryLockedError(f"{self.place} is being written to by {about.writer.rpartition(' ')[0]}")
            time.sleep(0.2)
        self._say(about, writer=self._writer)
        # Two may have taken it at once: both see the later one's name.
        self._about = None
        self.held()

    def _say(self, about: About, **changed: object) -> About:
        """Say something else of the gallery, and hold the lease for its whole length again."""
        said = msgspec.structs.replace(about, **({"until": time.time() + LEASE_SECONDS} | changed))
        # What becomes of a call that fails nobody knows before it is read again.
        self._about = None
        self.collection.server.upsert(self.collection.name, [about_entity(said)])
        self._about = said
        return said

    def _done(self, about: About) -> int:
        return self._say(about, writing=False, generation=about.generation + 1).generation


def _content(entity: dict[str, object]) -> tuple[str, tuple[Entry, bytes]]:
    entry = read_entry_of(entity)
    return entry.id, (entry, bytes.fromhex(str(entity["content"])))
