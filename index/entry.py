"""What a gallery holds, and what a search finds."""

from dataclasses import dataclass, field

from reidserve.datasets import NO_ATTRIBUTES, Attributes, wrong_attributes
from reidserve.errors import EntryError

MAX_TEXT = 4096
MAX_TIMESTAMP = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One photograph in a gallery, without its embedding.

    Attributes:
        id: the caller's name for it; unique in its gallery.
        pid: the identity (a person or a vehicle); None where unknown.
        camid: the camera; None where unknown.
        timestamp: when it was taken, microseconds since 1970 UTC; None where unknown.
        source: the file it came from, as `path_to_text` writes paths; None where there is none.
        attributes: what else is known of it, by name: text, numbers, booleans.

    Raises:
        EntryError: an id that is empty, a text that is too long or not Unicode, or a value that cannot be kept.
    """

    id: str
    pid: str | None = None
    camid: str | None = None
    timestamp: int | None = None
    source: str | None = None
    attributes: Attributes = field(default_factory=lambda: NO_ATTRIBUTES, hash=False)

    def __post_init__(self) -> None:
        if not self.id:
            raise EntryError("an entry's id must not be empty")
        for name in ("id", "pid", "camid", "source"):
            text = getattr(self, name)
            if text is None:
                continue
            if not isinstance(text, str):
                raise EntryError(f"an entry's {name} must be text, got {text!r}")
            if len(text) > MAX_TEXT:
                raise EntryError(f"an entry's {name} may have {MAX_TEXT} characters, got {len(text)}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise EntryError(f"an entry's {name} must be Unicode, got {text!r}") from error
        if self.timestamp is not None and (
            type(self.timestamp) is not int or not -MAX_TIMESTAMP <= self.timestamp <= MAX_TIMESTAMP
        ):
            raise EntryError(f"an entry's timestamp must be microseconds of 64 bits, got {self.timestamp!r}")
        if self.attributes and (wrong := wrong_attributes(self.attributes)):
            raise EntryError(f"entry {self.id!r}: {wrong}")

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; an attribute of another type is another: True is not 1 to a filter."""
        if not isinstance(other, Entry):
            return NotImplemented
        mine, others = self.attributes, other.attributes
        return (
            (self.id, self.pid, self.camid, self.timestamp, self.source)
            == (other.id, other.pid, other.camid, other.timestamp, other.source)
            and mine == others
            and all(type(value) is type(others[name]) for name, value in mine.items())
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry that a search found.

    Attributes:
        entry: what was found.
        score: cosine of query and entry, -1 to 1, higher is better.
        rank: 1 for the best.
        reranked_distance: how far it is by the neighbours that it shares with the query, lower is better; None where
            hits were not re-ranked.
    """

    entry: Entry
    score: float
    rank: int
    reranked_distance: float | None = None
