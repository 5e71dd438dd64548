from contextlib import closing

import numpy as np
import pytest

from reidserve.index import Entry, Filter, Origin, Record, Snapshot, read_snapshot
from reidserve.index.storage.store import create_store
from reidserve.server.queries.ranker import Query, Shortlist
from tests.conftest import found_together, unit_rows

DIM = 16


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """400 entries of 12 identities, the first of which has most, and some of none; its entries lie together."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("grouped") / "grouped.gallery"
    pids = [None if place % 40 == 39 else str(int(rng.integers(12)) * (place > 200)) for place in range(400)]
    centres = unit_rows(rng, 13, DIM)
    vectors = np.stack([centres[-1 if pid is None else int(pid)] for pid in pids]) + 0.4 * unit_rows(rng, 400, DIM)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with closing(create_store(folder, Origin("0" * 64, "fp32/onnxruntime-cpu", DIM))) as store:
        store.upsert(
            [
                Record(Entry(f"n{place}", pid=pid, camid=str(place % 3)), bytes(32), vector)
                for place, (pid, vector) in enumerate(zip(pids, vectors.astype(np.float32), strict=True))
            ]
        )
    return read_snapshot(folder)


def plain(query: Query) -> list[tuple[str, float, int]]:
    """Groups by brute force: every entry scored, sorted, the first of each identity."""
    scored = []
    for row in query.snapshot.rows().tolist():
        ((entry,),) = [[entry for at, entry in query.snapshot.listed(after=row - 1) if at == row]]
        camids = None if query.where is None else query.where.camids
        if row != query.left_out and (camids is None or entry.camid in camids):
            scored.append((-float(np.vecdot(query.snapshot.vector(row), query.embedding)), row, entry))
    hits: list[tuple[str, float, int]] = []
    seen = set()
    for score, _, entry in sorted(scored, key=lambda one: one[:2]):
        if -score >= query.min_score and (entry.pid is None or entry.pid not in seen):
            hits.append((entry.id, -score, len(hits) + 1))
            seen.add(entry.pid)
    return hits[: query.top_k]


def grouped(snapshot: Snapshot, seed: int, top_k: int, **asked) -> Query:
    vector = snapshot.vector(int(np.random.default_rng(seed).choice(snapshot.rows()[:200])))
    return Query(snapshot, vector, top_k, group_by_pid=True, **asked)


@pytest.mark.parametrize("most", [16, 10_000])
@pytest.mark.parametrize("top_k", [1, 5, 12, 15, 30, 400])
def test_of_each_identity_the_best_is_found_as_by_brute_force(
    snapshot: Snapshot, top_k: int, most: int, monkeypatch: pytest.MonkeyPatch
):
    # Beyond so many hits the whole gallery is ranked.
    monkeypatch.setattr("reidserve.server.queries.ranker.MAX_TOP_K", max(most, top_k))
    queries = [
        grouped(snapshot, 1, top_k),
        grouped(snapshot, 2, top_k, left_out=int(snapshot.rows()[0])),
        grouped(snapshot, 3, top_k, where=Filter(camids=frozenset({"1"}))),
        grouped(snapshot, 4, top_k, min_score=0.3),
    ]
    for query, found in zip(queries, found_together(queries), strict=True):
        expected = plain(query)
        assert [(hit.entry.id, hit.score, hit.rank) for hit in found.hits] == expected
        assert found.best == expected[0][1]


def test_the_gallery_is_looked_through_to_its_end_for_enough_identities(snapshot: Snapshot):
    query = grouped(snapshot, 1, 400)
    (found,) = found_together([query])
    pids = [hit.entry.pid for hit in found.hits]
    assert pids.count(None) == 10
    assert sorted(pid for pid in pids if pid is not None) == sorted(map(str, range(12)))


def test_groups_of_a_shortlist_are_of_the_shortlist_alone(snapshot: Snapshot):
    vector = unit_rows(np.random.default_rng(5), 1, DIM)[0]
    query = Query(snapshot, vector, 20, group_by_pid=True, shortlist=Shortlist(50))
    (found,) = found_together([query])
    (every,) = found_together([Query(snapshot, query.embedding, 50, shortlist=Shortlist(50))])
    firsts: dict = {}
    for hit in every.hits:
        firsts.setdefault(hit.entry.pid or hit.entry.id, hit)
    expected = list(firsts.values())[:20]
    assert [(hit.entry.id, hit.reranked_distance) for hit in found.hits] == [
        (hit.entry.id, hit.reranked_distance) for hit in expected
    ]
    assert [hit.rank for hit in found.hits] == list(range(1, len(expected) + 1))
    assert 1 < len(expected) < 20
