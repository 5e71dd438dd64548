"""The seam between what asks a gallery and what holds one: a folder on this machine's disk, or a server elsewhere."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from reidserve.embed import Embedding, Embeddings
from reidserve.index.entry import Entry, Hit
from reidserve.index.filters import Filter
from reidserve.index.place import Place
from reidserve.index.search.ranking import NO_ROW, Ranking
from reidserve.index.search.ranking import Rows as RowNumbers
from reidserve.index.storage.database import Origin
from reidserve.index.storage.rows import Damage, Record, Stored, Written


class Snapshot(Protocol):
    """A gallery as it stood at one generation, to be searched from any thread; `FolderSnapshot` says what each does.

    Every call answers by the contract of search/ranking.py. One that asks another server raises
    BackendUnavailableError where that is away, and may be of a later generation than the snapshot's.
    """

    @property
    def in_memory(self) -> bool:
        """Whether its calls answer at once; where not, only what the properties say asks nobody."""

    @property
    def generation(self) -> int:
        """How many writes had changed something."""

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""

    @property
    def kind(self) -> str:
        """How rows are searched, such as "flat"."""

    @property
    def damaged(self) -> Sequence[Damage]:
        """Rows that are left out because they cannot be believed."""

    @property
    def ranks_all(self) -> bool:
        """Whether a search finds every row, so that a whole ranking is what it would say."""

    def __len__(self) -> int:
        """How many entries there are."""

    def search(
        self, queries: Embeddings, *, top_k: int, where: Filter | None = None, left_out: RowNumbers | None = None
    ) -> Ranking:
        """The `top_k` best entries that `where` accepts for each of (Q, dim) queries; (Q,) rows may be left out."""

    def rank_all(
        self, queries: Embeddings, *, where: Filter | None = None, left_out: RowNumbers | None = None
    ) -> Ranking:
        """Every entry that `where` accepts, ranked for each of (Q, dim) queries."""

    def search_entry(self, name: str, *, top_k: int, where: Filter | None = None) -> Ranking:
        """The ranking (1, k) of the entries most like one that the gallery holds, itself left out."""

    def find(self, name: str) -> Entry | None:
        """The entry of that id, None if there is none."""

    def row(self, name: str) -> int:
        """The row of an entry."""

    def rows(self) -> RowNumbers:
        """All live row numbers, ascending."""

    def entries(self) -> Iterator[Entry]:
        """All entries, in row order."""

    def matching(self, where: Filter) -> Iterator[Entry]:
        """The entries that a filter accepts, in row order."""

    def listed(self, *, after: int = NO_ROW) -> Iterator[tuple[int, Entry]]:
        """The entries behind a row, each with its own row, in row order."""

    def vector(self, row: int) -> Embedding:
        """The embedding (dim,) of a live row."""

    def vectors(self, rows: Sequence[int]) -> Embeddings:
        """The embeddings (n, dim) of live rows."""

    def hits(self, ranking: Ranking) -> list[list[Hit]]:
        """The entries that a ranking of this snapshot names, per query, best first."""

    def check_ranks_all(self) -> None:
        """See that the whole gallery can be ranked, before anything is spent on it."""

    def check_top_k(self, top_k: int, /) -> None:
        """See that so many hits may be asked for, before anything is spent on them."""

    def check_queries(self, queries: Embeddings) -> None:
        """See that queries (Q, dim) may be searched with."""


class Rows(Protocol):
    """The rows of a gallery, read and written one call at a time; storage/store.py says what each call does.

    Attributes:
        place: where it is.
        origin: what its embeddings were computed by.
        most_entries: a write that would leave more is refused; None for no limit.
    """

    origin: Origin
    most_entries: int | None

    @property
    def place(self) -> Place:
        """Where it is."""

    def close(self) -> None:
        """Let go of it; it is whole at any moment, closed or not."""

    def another(self) -> "Rows":
        """A second connection to the same rows, to read beside a thread that writes."""

    def generation(self) -> int:
        """How many writes have changed something."""

    def count(self) -> int:
        """How many entries there are."""

    def note(self, key: str) -> str | None:
        """What was last noted under a key, None if nothing."""

    def write_note(self, key: str, text: str) -> None:
        """Note a text under a key, durably."""

    def upsert(self, records: Sequence[Record]) -> Written:
        """Write records by entry id; what is there already with equal content and fields stays."""

    def update(self, entries: Sequence[Entry]) -> Written:
        """Say something else of entries that are there, by id; their embeddings stay."""

    def delete(self, ids: Iterable[str]) -> Written:
        """Remove entries; ids that are not there are no error."""

    def get(self, name: str) -> Stored | None:
        """An entry, None if it is not there."""

    def thumbnail(self, name: str) -> bytes | None:
        """The thumbnail of an entry as it is encoded, None if none is kept."""

    def with_thumbnail(self) -> set[str]:
        """The ids of the entries of which a thumbnail is kept."""

    def contents(self) -> dict[str, tuple[Entry, bytes]]:
        """Every undamaged entry by its id, with its content_sha256, in row order."""

    def known(self, ids: Iterable[str]) -> dict[str, tuple[Entry, bytes]]:
        """The undamaged entries among these ids, with their content_sha256."""

    def ids(self) -> set[str]:
        """The ids of all entries, damaged or not."""

    def find_vector(self, content_sha256: bytes) -> Embedding | None:
        """The embedding of any undamaged entry with that content, None if there is none."""

    def scan(self) -> Generator[Stored | Damage, None, None]:
        """Every row, in row order."""


class Gallery(Protocol):
    """A gallery opened for searching, and for writing where that was asked for; `FolderGallery` says what each does."""

    @property
    def place(self) -> Place:
        """Where it is."""

    @property
    def origin(self) -> Origin:
        """What its embeddings were computed by."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest state that was read."""

    def refresh(self) -> bool:
        """Catch up with what anybody has written; returns whether there was anything."""

    def wait(self, generation: int, *, timeout: float) -> Snapshot:
        """The first snapshot at a generation or later; `timeout` in seconds."""

    def upsert(self, records: Sequence[Record]) -> Written:
        """Write records by entry id; what is there already with equal content and fields stays."""

    def update(self, entries: Sequence[Entry]) -> Written:
        """Say something else of entries that are there, by id; their embeddings stay."""

    def delete(self, ids: Iterable[str] | None = None, *, where: Filter | None = None) -> Written:
        """Remove the entries of these ids, or those that a filter accepts; ids not there are no error."""

    def thumbnail(self, entry_id: str, *, sources: Path | None = None) -> bytes | None:
        """The thumbnail of an entry as it is encoded, or one made of its source where that lies below `sources`."""

    def erase(self) -> bool:
        """Clear its files of every byte of what was removed; returns whether there was any."""

    def rows(self) -> Rows:
        """A connection to its rows, to be read beside searches and closed by who asked for it."""

    def close(self) -> None:
        """Let go of it."""
