"""One writer and four searching threads: each answer is brute force's at the generation that its snapshot names."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reidserve.index import Entry, open_gallery
from reidserve.index.search.ranking import Ranking, rank_plainly
from reidserve.index.storage.store import create_store
from tests.conftest import unit_rows
from tests.plain import Plain, assert_equal
from tests.test_gallery import FILTERS, content_of, facts_of
from tests.test_store import ORIGIN

SEARCHERS = 4
QUERIES = unit_rows(np.random.default_rng(1), 50, 8)


@dataclass
class Answer:
    generation: int
    query: int
    top_k: int
    where: int
    left_out: int
    ranking: Ranking


class Lives:
    """Every row that ever was: when it was born and when it died, as the writer knows it."""

    def __init__(self) -> None:
        self.plain = Plain()
        self.vectors: list = []
        self.entries: list[Entry] = []
        self.born: list[int] = []
        self.died: list[float] = []

    def written(self, before: Plain) -> None:
        after = self.plain
        for name, (row, _) in before.held.items():
            if name not in after.held or after.held[name][0] != row:
                self.died[row - 1] = after.generation
        for row, held in after.held.values():
            if row > before.last_row:
                assert row == len(self.born) + 1
                self.vectors.append(held.vector)
                self.entries.append(held.entry)
                self.born.append(after.generation)
                self.died.append(np.inf)

    def differences(self, answers: list[Answer]) -> int:
        born, died = np.array(self.born), np.array(self.died)
        vectors, rows = np.stack(self.vectors), np.arange(1, len(born) + 1)
        accepted = [np.array([where.accepts(entry) for entry in self.entries]) for where in FILTERS]
        wrong = 0
        for answer in answers:
            lives = (born <= answer.generation) & (died > answer.generation)
            fits = lives & accepted[answer.where]
            # Rows that do not live are left away, not masked: that much less to multiply.
            expected = rank_plainly(
                QUERIES[answer.query : answer.query + 1],
                np.ascontiguousarray(vectors[fits]),
                rows[fits],
                top_k=min(answer.top_k, int(fits.sum())),
                left_out=np.array([answer.left_out]),
            )
            try:
                assert_equal(answer.ranking, expected)
            except AssertionError:
                wrong += 1
        return wrong


class Crowd:
    """A gallery that is written, caught up with and searched at once, and what its searches answered."""

    def __init__(self, folder: Path) -> None:
        create_store(folder, ORIGIN).close()
        self.writer, self.reader = open_gallery(folder, write=True), open_gallery(folder)
        self.lives = Lives()
        self.answers: list[Answer] = []
        self.failures: list[BaseException] = []

    def run(self, seconds: float) -> None:
        stop = time.monotonic() + seconds

        def until_the_end(move: Callable, seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                while time.monotonic() < stop and not self.failures:
                    move(rng)
            except BaseException as error:  # noqa: BLE001
                self.failures.append(error)

        moves = [self.write, self.refresh, *[self.search] * SEARCHERS]
        threads = [threading.Thread(target=until_the_end, args=(move, seed)) for seed, move in enumerate(moves)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.reader.close()
        self.writer.close()
        if self.failures:
            raise self.failures[0]

    def write(self, rng) -> None:
        plain, writer = self.lives.plain, self.writer
        before = plain.copy()
        numbers = rng.choice(300, int(rng.integers(1, 40)), replace=False).tolist()
        drawn = rng.random()
        if drawn < 0.6:
            records = [content_of(number, int(rng.integers(12)), int(rng.integers(100))) for number in numbers]
            changed, written = plain.upsert(records), writer.upsert(records)
        elif drawn < 0.75:
            entries = [facts_of(number, int(rng.integers(12))) for number in numbers if f"e{number}" in before.held]
            changed, written = plain.update(entries), writer.update(entries)
        elif drawn < 0.97:
            ids = [f"e{number}" for number in numbers]
            changed, written = plain.delete(ids), writer.delete(ids)
        else:
            where = FILTERS[1 + int(rng.integers(len(FILTERS) - 1))]
            changed, written = plain.delete(plain.matching(where)), writer.delete(where=where)
        assert (written.changed, written.generation) == (changed, plain.generation)
        assert writer.snapshot.generation == plain.generation
        self.lives.written(before)

    def refresh(self, rng) -> None:
        self.reader.refresh()
        time.sleep(0.001)

    def search(self, rng) -> None:
        snapshot = (self.writer if rng.random() < 0.5 else self.reader).snapshot
        top_k, where = int(rng.choice([1, 5, 40])), int(rng.integers(len(FILTERS)))
        batch = rng.choice(len(QUERIES), int(rng.choice([1, 3, 9])), replace=False)
        left_out = rng.integers(1, max(2, len(self.lives.born)), len(batch))
        ranking = snapshot.search(QUERIES[batch], top_k=top_k, where=FILTERS[where], left_out=left_out)
        for place, query in enumerate(batch.tolist()):
            one = Ranking(ranking.scores[place : place + 1], ranking.rows[place : place + 1])
            self.answers.append(Answer(snapshot.generation, query, top_k, where, int(left_out[place]), one))
        time.sleep(0.002)  # gives the writer its turn


@pytest.fixture
def crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Small blocks, so that many are sealed and packed.
    monkeypatch.setattr("reidserve.index.search.blocks.BLOCK_ROWS", 32)
    monkeypatch.setattr("reidserve.index.storage.rows.PIECE_ROWS", 32)
    return Crowd(tmp_path / "g")


def test_searches_beside_a_writer_each_see_one_generation(crowd: Crowd):
    crowd.run(2)
    assert crowd.lives.differences(crowd.answers) == 0
    assert len(crowd.answers) > 100
    assert len({answer.generation for answer in crowd.answers}) > 5


@pytest.mark.slow
def test_a_minute_of_searches_beside_a_writer_differs_nowhere(crowd: Crowd, capsys):
    crowd.run(60)
    differences = crowd.lives.differences(crowd.answers)
    generations = len({answer.generation for answer in crowd.answers})
    with capsys.disabled():
        print(f"\n{len(crowd.answers)} answers at {generations} of {crowd.lives.plain.generation} generations", end="")
        print(f" with {len(crowd.lives.born)} rows: {differences} differences")
    assert differences == 0
