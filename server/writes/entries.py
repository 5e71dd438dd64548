"""What is written: values that a call hands to a writer, and what it gets back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reidserve.embed import Embedding
from reidserve.errors import ReidError
from reidserve.index import Entry


@dataclass(frozen=True, slots=True, eq=False)
class NewEntry:
    """An entry to be written.

    Attributes:
        entry: what it is.
        content: the encoded image that it is of, or its embedding (dim,).
    """

    entry: Entry
    content: bytes | Embedding


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be said of an entry from now on.

    Attributes:
        entry_id: whose.
        fields: values by the names of an Entry's fields.
        attributes: values of single attributes by name; None forgets one.
    """

    entry_id: str
    fields: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def applied(self, entry: Entry) -> Entry:
        """The entry after it.

        Raises:
            EntryError: a value that no entry can have.
        """
        changed = replace(entry, **self.fields)
        attributes = {**changed.attributes, **self.attributes}
        return replace(changed, attributes={name: value for name, value in attributes.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Updated:
    """An entry after a change.

    Attributes:
        row: its row.
        entry: what it is now.
        generation: the state from which on it is so.
    """

    row: int
    entry: Entry
    generation: int


@dataclass(frozen=True, slots=True, eq=False)
class Numbered:
    """An entry of an import.

    Attributes:
        sequence: its number, which rises.
        entry_id: as it was sent.
        new: what to write, or why it cannot be read.
        size: bytes of its message.
    """

    sequence: int
    entry_id: str
    new: NewEntry | ReidError
    size: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An entry that was left out of an import.

    Attributes:
        sequence: its number.
        entry_id: as it was sent.
        error: why.
    """

    sequence: int
    entry_id: str
    error: ReidError


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A piece of an import that is durable.

    Attributes:
        sequence: the number of its last entry.
        generation: the state from which on it can be found.
        written: how many of it were new or different.
        faults: what of it was left out.
    """

    sequence: int
    generation: int
    written: int
    faults: Sequence[Fault]
