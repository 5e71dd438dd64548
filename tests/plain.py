"""A gallery said plainly: a dict of rows, and every search by brute force. What the real one is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from reidserve.index.entry import Entry
from reidserve.index.filters import Filter
from reidserve.index.search.ranking import Ranking, rank_plainly
from reidserve.index.storage.rows import Record


@dataclass
class Plain:
    """What a gallery should hold: id -> (row, record), rows counted up by each new or changed entry."""

    generation: int = 0
    last_row: int = 0
    held: dict[str, tuple[int, Record]] = field(default_factory=dict)

    def copy(self) -> "Plain":
        return replace(self, held=dict(self.held))

    def upsert(self, records: Sequence[Record]) -> int:
        changed = [record for record in records if not self._holds(record)]
        for record in changed:
            self.last_row += 1
            self.held.pop(record.entry.id, None)
            self.held[record.entry.id] = (self.last_row, record)
        self.generation += bool(changed)
        return len(changed)

    def update(self, entries: Sequence[Entry]) -> int:
        return self.upsert([replace(self.held[entry.id][1], entry=entry) for entry in entries])

    def delete(self, ids: Sequence[str]) -> int:
        gone = [self.held.pop(name) for name in dict.fromkeys(ids) if name in self.held]
        self.generation += bool(gone)
        return len(gone)

    def matching(self, where: Filter) -> list[str]:
        return [name for name, (_, record) in self.held.items() if where.accepts(record.entry)]

    def search(self, queries, *, top_k: int, where: Filter | None = None, left_out=None) -> Ranking:
        rows = np.array([row for row, _ in self.held.values()], np.int64)
        vectors = np.array([record.vector for _, record in self.held.values()], np.float32)
        accepted = np.array([where is None or where.accepts(record.entry) for _, record in self.held.values()], bool)
        top_k = min(top_k, int(accepted.sum()))
        return rank_plainly(
            queries,
            vectors.reshape(len(rows), queries.shape[1]),
            rows,
            top_k=top_k,
            accepted=accepted,
            left_out=left_out,
        )

    def _holds(self, record: Record) -> bool:
        if record.entry.id not in self.held:
            return False
        held = self.held[record.entry.id][1]
        return (_said(held.entry), held.content_sha256) == (_said(record.entry), record.content_sha256)


def _said(entry: Entry) -> tuple[Entry, str]:
    # True and 1 are equal in Python.
    return entry, repr(sorted(entry.attributes.items()))


def assert_equal(ranking: Ranking, expected: Ranking) -> None:
    np.testing.assert_array_equal(ranking.rows, expected.rows)
    np.testing.assert_array_equal(ranking.scores.view(np.uint32), expected.scores.view(np.uint32))


def assert_holds(snapshot, plain: Plain) -> None:
    """A snapshot is exactly this: generation, rows, entries and vectors in order."""
    assert (snapshot.generation, len(snapshot), list(snapshot.damaged)) == (plain.generation, len(plain.held), [])
    assert list(map(_said, snapshot.entries())) == [_said(record.entry) for _, record in plain.held.values()]
    for name, (row, record) in plain.held.items():
        assert snapshot.row(name) == row
        np.testing.assert_array_equal(snapshot.vector(row), record.vector)
        assert snapshot.find(name) == record.entry
