from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from reidserve.embed import Embeddings
from reidserve.errors import EvaluationError
from reidserve.evaluate import Labelled, Labels, evaluate, tune
from reidserve.index import Entry, FolderSnapshot, Origin, Record, read_snapshot
from reidserve.index.search.nominated import cover
from reidserve.index.search.ranking import Rows
from reidserve.index.storage.store import create_store
from tests.conftest import unit_rows

DIM, PIDS, CAMIDS, FRAMES = 32, 12, 3, 2


def labelled_gallery(folder: Path, *, pids: int = PIDS, camids: int = CAMIDS) -> FolderSnapshot:
    rng = np.random.default_rng(5)
    centres = unit_rows(rng, pids, DIM)
    records = []
    for pid in range(pids):
        for camid in range(camids):
            for frame in range(FRAMES):
                vector = centres[pid] + 1.2 * unit_rows(rng, 1, DIM)[0]
                name = f"{pid}_{camid}_{frame}"
                entry = Entry(name, pid=str(pid) if pid else "-1", camid=str(camid), source=name)
                records.append(Record(entry, name.encode().ljust(32), vector / np.linalg.norm(vector)))
    with closing(create_store(folder, Origin("0" * 64, "fp32/test", DIM))) as store:
        store.upsert(records)
    return read_snapshot(folder, kind="flat")


@pytest.fixture
def snapshot(tmp_path: Path) -> FolderSnapshot:
    return labelled_gallery(tmp_path / "labelled.gallery")


@dataclass
class Forgetful:
    """Proposes rows by exact products, but never an odd one."""

    rows: Rows
    vectors: Embeddings
    kind: str = "forgetful"
    window: float | None = None
    most: int = 10_000

    def nominate(self, queries: Embeddings, count: int) -> tuple[np.ndarray, Rows]:
        products = queries @ self.vectors.T
        products[:, self.rows % 2 == 1] = -np.inf
        order = np.argsort(-products, axis=1)[:, :count]
        scores = np.take_along_axis(products, order, axis=1)
        return scores, np.where(np.isfinite(scores), self.rows[order], -1)


def test_exact_search_to_the_last_entry_scores_what_the_harness_scores(snapshot: FolderSnapshot):
    (report,) = tune({"flat": snapshot}, queries=1000, top_k=len(snapshot))
    entries = [entry for entry in snapshot.entries() if entry.pid != "-1"]
    everything = list(snapshot.entries())
    labels = [
        Labelled(
            np.stack([snapshot.vector(snapshot.row(entry.id)) for entry in some]),
            Labels(*([getattr(entry, name) for entry in some] for name in ("pid", "camid", "source"))),
        )
        for some in (entries, everything)
    ]
    expected = evaluate(*labels).metrics
    assert (report.recall1, report.recall10, report.recall) == (1, 1, 1)
    assert report.rank1 == pytest.approx(expected.rank1, abs=1e-12)
    assert report.rank5 == pytest.approx(expected.rank(5), abs=1e-12)
    assert report.rank10 == pytest.approx(expected.rank(10), abs=1e-12)
    assert 0.2 < expected.rank1 < 1
    assert report.query_ms > 0


def test_an_index_that_misses_entries_shows_what_that_costs(snapshot: FolderSnapshot, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reidserve.index.search.nominated._candidates", lambda dim, top_k: 4)
    monkeypatch.setattr("reidserve.index.search.nominated.MOST_CANDIDATES", 1)
    vectors = np.concatenate([block.vectors for block in snapshot.blocks])
    forgetful = replace(snapshot, covered=cover(Forgetful(snapshot.rows(), vectors), snapshot.blocks))
    exact, lossy = tune({"forgetful": forgetful, "flat": snapshot}, top_k=4)
    assert [exact.kind, lossy.kind] == ["flat", "forgetful"]
    assert lossy.recall < 0.8 < exact.recall == 1
    # By hand: what the exact search finds at an even row.
    judged = [entry for entry in snapshot.entries() if entry.pid != "-1"]
    kept = []
    for entry in judged:
        rows = snapshot.search_entry(entry.id, top_k=4).rows[0]
        kept.append(np.mean(rows % 2 == 0))
    assert lossy.recall == pytest.approx(np.mean(kept), abs=1e-12)
    assert exact.rank1 is not None
    assert lossy.rank1 is not None
    assert lossy.rank1 < exact.rank1


def test_a_sample_is_the_same_for_a_seed(snapshot: FolderSnapshot):
    first, again = (tune({"flat": snapshot}, queries=10, top_k=5, seed=3)[0] for _ in range(2))
    other = tune({"flat": snapshot}, queries=10, top_k=5, seed=4)[0]
    assert replace(first, query_ms=0) == replace(again, query_ms=0) != replace(other, query_ms=0)


def test_rank_k_is_not_said_of_queries_with_too_few_hits_that_count(snapshot: FolderSnapshot):
    (report,) = tune({"flat": snapshot}, top_k=4)
    # Of the 4 best some are of the query's own camera and pid.
    assert report.rank1 is not None
    assert (report.rank5, report.rank10) == (None, None)


def test_strangers_are_no_identity_to_search_for(tmp_path: Path):
    strangers = [Entry(f"s{camid}", pid="0000", camid=str(camid)) for camid in range(3)]
    vectors = unit_rows(np.random.default_rng(1), 3, DIM)
    with closing(create_store(tmp_path / "g", Origin("0" * 64, "fp32/test", DIM))) as store:
        store.upsert([Record(entry, bytes(32), row) for entry, row in zip(strangers, vectors, strict=True)])
    with pytest.raises(EvaluationError, match="labels are needed"):
        tune({"flat": read_snapshot(tmp_path / "g", kind="flat")})


def test_a_gallery_without_labels_cannot_be_tuned(tmp_path: Path):
    with pytest.raises(EvaluationError, match="labels are needed"):
        tune({"flat": labelled_gallery(tmp_path / "g", camids=1)})
