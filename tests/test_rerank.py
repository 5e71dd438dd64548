import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.errors import QueryError
from reidserve.index.rerank import Reranking, rerank, rerank_among, rerank_in_chunks
from reidserve.index.rerank.neighbours import find_neighbours
from tests.conftest import unit_rows

GOLDEN = {
    "reranked": Reranking(),
    "reranked_k2_1": Reranking(k2=1),
    "reranked_k6_k2_l05": Reranking(k1=6, k2=2, weight=0.5),
}


def by_hand(queries, gallery, how):
    """The paper's steps one image at a time, in sets and dictionaries."""
    vectors = [*queries, *gallery]
    images = range(len(vectors))
    scores = [[float(np.vecdot(one, other)) for other in vectors] for one in vectors]
    order = [
        sorted(images, key=lambda other, row=row, one=one: (other != one, -row[other], other))
        for one, row in enumerate(scores)
    ]
    apart = []
    for row in scores:
        squares = [(2 - 2 * score) ** 2 for score in row]
        apart.append([0 if min(row) >= 1 - 1e-5 else square / max(squares) for square in squares])

    def mutual(one, k):
        return {other for other in order[one][: k + 1] if one in order[other][: k + 1]}

    encoded = []
    for one in images:
        members = set(mutual(one, how.k1))
        for other in mutual(one, how.k1):
            closer = mutual(other, round(how.k1 / 2))
            if 3 * len(closer & mutual(one, how.k1)) > 2 * len(closer):
                members |= closer
        weights = {other: np.exp(-apart[one][other]) for other in members}
        total = sum(weights.values())
        encoded.append({other: weight / total for other, weight in weights.items()})
    averaged = []
    for one in images:
        nearest = order[one][: how.k2]
        averaged.append(
            {place: sum(encoded[near].get(place, 0) for near in nearest) / len(nearest) for place in images}
        )
    final = np.empty((len(queries), len(gallery)), np.float32)
    for query in range(len(queries)):
        for row in range(len(gallery)):
            other = len(queries) + row
            shared = sum(min(averaged[query][place], averaged[other][place]) for place in images)
            final[query, row] = (1 - how.weight) * (1 - shared / (2 - shared)) + how.weight * apart[query][other]
    return final


def crowd(rng, count, dim, copies):
    """Unit rows (count, dim) in clusters, of which some are copies and some a rounding away from one."""
    rows = (
        unit_rows(rng, count, dim)
        + 2 * unit_rows(rng, max(1, count // 5), dim)[rng.integers(0, max(1, count // 5), count)]
    )
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rows[rng.integers(0, count, copies)] = rows[0]
    nudged = rng.integers(0, count, copies // 2)
    rows[nudged] = np.nextafter(rows[nudged], np.float32(1))
    return rows


def figures(distances, cases):
    """Rank-1, mAP and mINP by the rule of Market-1501, said plainly."""
    first, precision, last = [], [], []
    for row, pid, cam in zip(distances, cases["q_pid"], cases["q_cam"], strict=True):
        pids, cams = (cases[name][np.argsort(row, kind="stable")] for name in ("g_pid", "g_cam"))
        counted = (pids != -1) & ~((pids == pid) & (cams == cam))
        ranks = np.flatnonzero(pids[counted] == pid) + 1
        if len(ranks):
            hits = np.arange(1, len(ranks) + 1)
            first.append(ranks[0] == 1)
            precision.append(np.mean(hits / ranks))
            last.append(len(ranks) / ranks[-1])
    return {"R1": np.mean(first), "mAP": np.mean(precision), "mINP": np.mean(last)}


def rerank_whole(queries, gallery, how=Reranking(), panel_bytes=2**20):  # noqa: B008
    """All chunks in one, with panels of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("neighbours", "sparse"):
            patch.setattr(f"reidserve.index.rerank.{module}.PANEL_BYTES", panel_bytes)
        chunks = list(rerank_in_chunks(queries, gallery, how))
    cuts = [part.start for part, _ in chunks] + [chunks[-1][0].stop]
    assert cuts == sorted(set(cuts)) or not len(queries)
    assert [part.stop for part, _ in chunks] == cuts[1:]
    assert (cuts[0], cuts[-1]) == (0, len(queries))
    return np.concatenate([distances for _, distances in chunks])


@pytest.fixture(scope="module")
def cases(shared):
    with np.load(shared / "data/goldens/rerank_cases.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_distances_are_those_of_torchreid(cases, name):
    found = rerank(cases["qf"], cases["gf"], GOLDEN[name])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cases[name], atol=1e-5, rtol=0)


def test_another_formula_would_be_seen(cases):
    found = rerank(cases["qf"], cases["gf"])
    assert np.abs(found - cases["reranked_strong_baseline"]).max() > 0.05


@pytest.mark.parametrize(
    ("name", "after"),
    [("reranked", "after"), ("reranked_k2_1", "after_k2_1"), ("reranked_k6_k2_l05", "after_k6_k2_l05")],
)
def test_what_is_scored_after_it_is_what_torchreid_scores(cases, shared, name, after):
    golden = json.loads((shared / "data/goldens/metric_cases.json").read_text())["rerank"]["evaluation"]
    plain = figures(1 - cases["qf"] @ cases["gf"].T, cases)
    found = figures(rerank(cases["qf"], cases["gf"], GOLDEN[name]), cases)
    for figure in ("R1", "mAP", "mINP"):
        assert plain[figure] == pytest.approx(golden["before"][figure], abs=1e-6)
        assert found[figure] == pytest.approx(golden[after][figure], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 5),
    count=st.integers(2, 40),
    dim=st.integers(1, 20),
    copies=st.integers(0, 40),
    k1=st.integers(1, 45),
    k2=st.integers(1, 45),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_distances_are_those_of_the_paper_step_by_step(seed, queries, count, dim, copies, k1, k2, weight):
    rows = crowd(np.random.default_rng(seed), count + queries, dim, copies)
    how = Reranking(k1, k2, weight)
    found = rerank(rows[:queries], rows[queries:], how)
    np.testing.assert_allclose(found, by_hand(rows[:queries], rows[queries:], how), atol=2e-6, rtol=0)


def test_a_query_and_its_double_alone_are_at_no_distance():
    row = unit_rows(np.random.default_rng(0), 1, 8)
    np.testing.assert_allclose(rerank(row, row), [[0]], atol=1e-6)


def test_one_gallery_row_is_a_neighbour_whatever_it_is():
    # Both are each other's only neighbour, with weights 1 and exp(-1): shared 2 exp(-1) / (1 + exp(-1)).
    query = np.array([[1, 0]], np.float32)
    shared = 2 * np.exp(-1) / (1 + np.exp(-1))
    expected = 0.7 * (1 - shared / (2 - shared)) + 0.3
    np.testing.assert_allclose(rerank(query, -query, Reranking(k2=1)), [[expected]], atol=1e-6)


def test_images_that_are_all_alike_are_at_no_plain_distance():
    rows = np.repeat(unit_rows(np.random.default_rng(0), 1, 2048), 50, axis=0)
    assert not rerank(rows[:2], rows[2:], Reranking(weight=1)).any()


def test_more_copies_than_neighbours_keep_every_image_near_itself():
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.repeat(unit_rows(rng, 1, 64), 60, axis=0), unit_rows(rng, 60, 64)])
    found = rerank(rows[:1], rows[1:])
    assert np.isfinite(found).all()
    assert found[0, :59].max() < found[0, 59:].min()


@pytest.mark.parametrize(("queries", "rows"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_has_no_distances(queries, rows):
    assert rerank(np.empty((queries, 4), np.float32), np.empty((rows, 4), np.float32)).shape == (queries, rows)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"k1": 0}, "k1 must be at least 1, got 0"),
        ({"k2": 0}, "k2 must be at least 1, got 0"),
        ({"weight": -0.1}, "weight must be 0 to 1, got -0.1"),
        ({"weight": 1.1}, "weight must be 0 to 1, got 1.1"),
        ({"weight": float("nan")}, "weight must be 0 to 1, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, said):
    with pytest.raises(QueryError, match=said):
        Reranking(**wrong)


@pytest.mark.parametrize(("k1", "half"), [(1, 0), (3, 2), (5, 2), (7, 4), (20, 10)])
def test_half_of_an_odd_neighbourhood_is_the_even_number_as_in_torchreid(k1: int, half: int):
    assert Reranking(k1=k1).half == half


def test_embeddings_of_other_dimensions_are_refused():
    with pytest.raises(QueryError, match=r"got \(2, 3\) and \(4, 5\)"):
        rerank(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 9),
    count=st.integers(1, 90),
    dim=st.integers(1, 70),
    copies=st.integers(0, 90),
    spread=st.sampled_from([1, 0.1, 1e-3, 1e-6]),
    k1=st.integers(1, 30),
    k2=st.integers(1, 30),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
    panel_bytes=st.integers(1, 40_000),
)
def test_the_sparse_way_gives_what_the_dense_one_gives(
    seed, queries, count, dim, copies, spread, k1, k2, weight, panel_bytes
):
    rng = np.random.default_rng(seed)
    rows = unit_rows(rng, 1, dim) * (1 - spread) + spread * crowd(rng, count + queries, dim, copies)
    # A narrow cone is what an untrained network gives: all products within a rounding of one another.
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + np.float32(1e-12)
    how = Reranking(k1, k2, weight)
    found = rerank_whole(rows[:queries], rows[queries:], how, panel_bytes)
    np.testing.assert_allclose(found, rerank(rows[:queries], rows[queries:], how), atol=1e-5, rtol=0)


@pytest.mark.parametrize("values", [(-1, 1), (-1, 0, 1)])
def test_the_sparse_way_orders_ties_as_the_dense_one_does(values):
    # Few coordinates of few values: whole groups of images at one score, and copies among them.
    rng = np.random.default_rng(0)
    rows = rng.choice(values, (400, 6)).astype(np.float32)
    rows[:, 0] = 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        rerank_whole(rows[:100], rows[100:], panel_bytes=50_000), rerank(rows[:100], rows[100:]), atol=1e-5, rtol=0
    )


def test_neighbours_are_the_same_whatever_the_panels():
    rows = crowd(np.random.default_rng(0), 700, 256, 200)
    found = []
    for panel_bytes in (1, 100_000, 2**30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("reidserve.index.rerank.neighbours.PANEL_BYTES", panel_bytes)
            found.append(find_neighbours(rows, 21, lambda done, total: None))
    scores = np.stack([np.vecdot(rows, row) for row in rows])
    keys = -scores
    np.fill_diagonal(keys, -np.inf)
    for one in found:
        np.testing.assert_array_equal(one.rows, np.argsort(keys, axis=1, kind="stable")[:, :21])
        np.testing.assert_allclose(one.scores, np.take_along_axis(scores, one.rows, axis=1), atol=1e-6, rtol=0)
        np.testing.assert_allclose(one.lowest, scores.min(axis=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_sparse_distances_are_those_of_torchreid(cases, name):
    found = rerank_whole(cases["qf"], cases["gf"], GOLDEN[name], panel_bytes=10_000)
    np.testing.assert_allclose(found, cases[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("queries", "rows"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_has_no_distances_in_chunks_either(queries, rows):
    whole = rerank_whole(np.empty((queries, 4), np.float32), np.empty((rows, 4), np.float32))
    assert whole.shape == (queries, rows)


@pytest.mark.parametrize("how", [Reranking(), Reranking(k1=5, k2=1, weight=0), Reranking(k1=60, k2=70, weight=1)])
def test_distances_among_images_are_those_of_any_division_that_parts_them(how, monkeypatch):
    monkeypatch.setattr("reidserve.index.rerank.sparse.PANEL_BYTES", 4 * 40 * 7)
    rows = unit_rows(np.random.default_rng(3), 40, 8)
    among = np.concatenate([distances for _, distances in rerank_among(rows, how)])
    assert among.shape == (40, 40)
    for cut in (1, 17, 39):
        np.testing.assert_allclose(among[:cut, cut:], rerank(rows[:cut], rows[cut:], how), atol=1e-5, rtol=0)
        others = np.concatenate([rows[cut:], rows[:cut]])
        np.testing.assert_allclose(
            among[cut:, :cut], rerank(others[: 40 - cut], others[40 - cut :], how), atol=1e-5, rtol=0
        )
    np.testing.assert_allclose(np.diag(among), 0, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_images_have_no_distances_but_their_own(rows):
    (block,) = rerank_among(np.eye(rows, 4, dtype=np.float32))
    np.testing.assert_array_equal(block[1], np.zeros((rows, rows)))


def test_progress_counts_up_to_all_images_and_the_queries_again():
    rows = unit_rows(np.random.default_rng(0), 30, 8)
    heard = []
    list(rerank_in_chunks(rows[:10], rows[10:], progress=lambda done, total: heard.append((done, total))))
    assert heard[-1] == (40, 40)
    assert heard == sorted(heard)
    assert {total for _, total in heard} == {40}


def test_other_dimensions_are_refused_before_the_first_chunk_is_asked_for():
    with pytest.raises(QueryError, match=r"got \(2, 3\) and \(4, 5\)"):
        rerank_in_chunks(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32))


def test_a_shortlist_is_reranked_without_a_compiler_or_sparse_matrices():
    script = (
        "import sys, numpy as np\n"
        "from reidserve.index.rerank import rerank\n"
        "rerank(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))\n"
        "print(sorted({'numba', 'scipy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_what_is_compiled_works_where_nothing_can_be_written(tmp_path):
    # No place for numba's cache: each file is to be made below a path that is a file.
    (tmp_path / "file").touch()
    room = tmp_path / "reidserve/index/rerank"
    room.mkdir(parents=True)
    (room / "loops.py").write_bytes((Path(__file__).parents[1] / "index/rerank/loops.py").read_bytes())
    (room / "__pycache__").touch()
    script = (
        "import sys, runpy, numpy as np\n"
        "share = runpy.run_path(sys.argv[1])['share']\n"
        "one, shared = np.ones(1, np.float32), np.empty((1, 1), np.float32)\n"
        "starts, places = np.array([0, 1], np.int32), np.zeros(1, np.int32)\n"
        "share(starts, places, one, starts, places, one / 4, shared, 0, 1)\n"
        "print(shared)"
    )
    nowhere = {"HOME": str(tmp_path / "file"), "XDG_CACHE_HOME": str(tmp_path / "file")}
    ran = subprocess.run(
        [sys.executable, "-P", "-B", "-c", script, room / "loops.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **nowhere},
    )
    assert ran.stdout.strip() == "[[0.25]]", ran.stderr
