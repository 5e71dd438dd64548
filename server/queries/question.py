"""Questions and answers: what is asked of a pipeline, and what it says."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from reidserve.embed import Embedding
from reidserve.errors import QueryError
from reidserve.index import Entry, Filter, Hit
from reidserve.server.queries.ranker import Shortlist

Track = tuple[bytes, ...]
"""Encoded images of one person or vehicle."""

Sought = bytes | Track | Embedding | str
"""What to look for: an encoded image, several of one target, an embedding (dim,), or the id of an entry, which is left
out of its own hits."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a gallery, besides what to look for.

    Attributes:
        gallery: its name; may be empty where there is only one.
        top_k: how many hits.
        where: which entries may be found; None for every one.
        generation: the state to search; None for the newest.
        shortlist: how the best hits are ordered again; None where they are not.
        min_score: hits of a lower score are left out; None for none.
        only_matches: hits below the calibrated threshold are left out too.
        group_by_pid: of each identity only its best hit is found; entries of unknown identity are each their own.
        min_generation: the least state to search, which is waited for; None for any.

    Raises:
        QueryError: more hits than the shortlist has, a score that no cosine can be, or a state that is older than the
            least.
    """

    gallery: str = ""
    top_k: int = 10
    where: Filter | None = None
    generation: int | None = None
    shortlist: Shortlist | None = None
    min_score: float | None = None
    only_matches: bool = False
    group_by_pid: bool = False
    min_generation: int | None = None

    def __post_init__(self) -> None:
        if self.shortlist is not None and self.top_k > self.shortlist.length:
            raise QueryError(
                f"re-ranking: top_k must be 1 to the shortlist's {self.shortlist.length} hits, got {self.top_k}: "
                "ask for fewer hits or a longer shortlist"
            )
        # Written so that NaN fails.
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise QueryError(f"min_score must be -1 to 1, got {self.min_score}")
        exact, least = self.generation, self.min_generation
        if exact is not None and least is not None and exact < least:
            raise QueryError(f"generation {exact} was asked for, and min_generation {least}: ask for one")


@dataclass(slots=True)
class Stages:
    """Wall-clock seconds of each stage a call went through, in order; `total` from its birth.

    Attributes:
        seconds: by stage: decode, embed, search.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _born: float = field(default_factory=time.perf_counter)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds since the call came in."""
        return time.perf_counter() - self._born


@dataclass(frozen=True, slots=True)
class Answer:
    """A ranking and what it was computed from.

    Attributes:
        hits: best first.
        generation: of the gallery.
        stages: where the time of the call went.
        best: the highest score of all that may be found; None where nothing may be.
        batch_size: how many images the engine computed together with the query's, the most of a track's; 0 where it
            computed none.
    """

    hits: Sequence[Hit]
    generation: int
    stages: Stages
    best: float | None
    batch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An entry as a gallery keeps it.

    Attributes:
        row: its row.
        entry: what it is.
        embedding: float32 (dim,).
    """

    row: int
    entry: Entry
    embedding: Embedding


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries of one state of a gallery, in row order.

    Attributes:
        entries: each with its row.
        generation: of the gallery.
        more: whether there are entries behind these.
    """

    entries: Sequence[tuple[int, Entry]]
    generation: int
    more: bool
