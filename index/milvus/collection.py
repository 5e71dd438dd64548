"""A gallery's collection, read: entities by id, by row and in row order, and what is said of all of them."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from reidserve.errors import GalleryError
from reidserve.index.entry import Entry
from reidserve.index.filters import Filter
from reidserve.index.milvus.conditions import among, expression
from reidserve.index.milvus.layout import (
    ABOUT,
    FORMAT,
    STORED_FIELDS,
    About,
    code_text,
    read_about,
    read_entry_of,
    read_stored,
)
from reidserve.index.milvus.server import MOST_HITS, Server
from reidserve.index.place import GalleryUrl
from reidserve.index.storage.database import Origin
from reidserve.index.storage.rows import Damage, Stored

PAGE_BYTES = 8 * 2**20
"""About as much is asked for at once where a gallery is read through."""

IDS_AT_ONCE = 1000

_ENTITY_BYTES = 1000
_REMEMBERED = 65_536


class Collection:
    """A gallery's collection on a server, for any thread.

    Attributes:
        url: the gallery's.
        name: the collection's.
        server: where it is.
        kind: how its vectors are searched, such as "flat".
        origin: what its vectors were computed by, which never changes.
        dim: dimensions of a vector.
    """

    def __init__(self, server: Server, url: GalleryUrl, name: str) -> None:
        self.server, self.url, self.name = server, url, name
        self.kind = server.load(name).lower()
        about = self.about(newest=True)
        self.origin = Origin(about.identity, about.engine, about.dim)
        self.dim = about.dim
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._remembering = threading.Lock()

    def about(self, *, newest: bool = False) -> About:
        """What is said of the gallery; `newest` waits for all that anybody has written.

        Raises:
            GalleryError: the collection is no gallery, or one of a newer reidserve.
        """
        found = self.server.query(self.name, among("id", [ABOUT]), fields=["attributes"], newest=newest)
        try:
            if len(found) != 1:
                raise GalleryError(f"{self.url} is a collection of Milvus ({self.name}), but no whole gallery")
            about = read_about(found[0])
        except msgspec.ValidationError as error:
            raise GalleryError(
                f"{self.url} is a collection of Milvus ({self.name}), but no gallery: {error}"
            ) from error
        if about.format != FORMAT:
            raise GalleryError(
                f"{self.url} has format {about.format}, this reidserve reads {FORMAT}: install a newer reidserve"
            )
        return about

    def count(self) -> int:
        """How many entries there are."""
        return self.server.count(self.name, expression())

    def of_ids(self, ids: Iterable[str], fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The entities of entries, of those that are there."""
        coded = [code_text(name) for name in ids]
        for start in range(0, len(coded), IDS_AT_ONCE):
            yield from self.server.query(
                self.name, among("id", coded[start : start + IDS_AT_ONCE]), fields=[*fields, "id"]
            )

    def of_rows(self, rows: Sequence[int], fields: Sequence[str]) -> dict[int, dict[str, Any]]:
        """The entities of rows, by row, of those that are there."""
        found: dict[int, dict[str, Any]] = {}
        step = self._page(fields)
        for start in range(0, len(rows), step):
            some = self.server.query(self.name, among("row", rows[start : start + step]), fields=[*fields, "row"])
            found |= {entity["row"]: entity for entity in some}
        return found

    def scan(
        self, fields: Sequence[str], *, after: int = 0, where: Filter | None = None
    ) -> Iterator[Sequence[dict[str, Any]]]:
        """The entities behind a row that Milvus finds for a filter, page by page, in row order."""
        end = self.about().next_row
        page = self._page(fields)
        first, width = max(after + 1, 0), page
        while first < end:
            found = self.server.query(
                self.name, expression(where, rows=(first, first + width)), fields=[*fields, "row"]
            )
            yield sorted(found, key=lambda entity: int(entity["row"]))
            first += width
            # Where few are left of many rows, more rows make a page.
            width = min(2 * width, MOST_HITS, 4 * page) if 4 * len(found) < page else page

    def scan_stored(self) -> Iterator[Stored | Damage]:
        """Every row, in row order."""
        for page in self.scan(STORED_FIELDS):
            yield from map(read_stored, page)

    def entry(self, entity: Mapping[str, Any]) -> Entry:
        """The entry that an entity of ENTRY_FIELDS is of; remembered, because a row says the same for ever."""
        row = int(entity["row"])
        with self._remembering:
            known = self._entries.get(row)
        if known is not None:
            return known
        entry = read_entry_of(entity)
        with self._remembering:
            self._entries[row] = entry
            if len(self._entries) > _REMEMBERED:
                self._entries.popitem(last=False)
        return entry

    def remembered(self, row: int) -> Entry | None:
        """The entry of a row that was read not long ago."""
        with self._remembering:
            return self._entries.get(row)

    def entity_bytes(self, fields: Sequence[str]) -> int:
        """About what these fields of an entity take in an answer, bytes."""
        return _ENTITY_BYTES + (4 * self.dim if "vector" in fields else 0)

    def _page(self, fields: Sequence[str]) -> int:
        return min(MOST_HITS, max(1, PAGE_BYTES // self.entity_bytes(fields)))
