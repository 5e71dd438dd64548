import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.evaluate import Labelled, Labels, Rule, evaluate, evaluate_rankings
from reidserve.evaluate.breakdown import CameraPair, Confusion, best_first, camera_pairs, confusions
from reidserve.index import Ranking
from tests.conftest import unit_rows


def random_part(rng: np.random.Generator, count: int, name: str) -> Labelled:
    labels = Labels(
        [[None, "-1", "1", "2", "3"][pid] for pid in rng.integers(0, 5, count)],
        [[None, "c2", "c10"][camid] for camid in rng.integers(0, 3, count)],
        [f"{name}{place}" for place in range(count)],
    )
    return Labelled(unit_rows(rng, count, 3), labels)


def plain_camera_pairs(query: Labelled, gallery: Labelled) -> list[CameraPair]:
    """For each query and gallery camera: walk down the ranking without the right entries of other cameras."""
    found: dict[tuple[str | None, str | None], list[tuple[bool, float]]] = {}
    for place in range(len(query)):
        pid, camid = query.labels.pids[place], query.labels.camids[place]
        scores = np.vecdot(gallery.embeddings, query.embeddings[place])
        for wanted in ("c2", "c10", None):
            rank, hits, precisions, first = 0, 0, [], False
            for row in sorted(range(len(gallery)), key=lambda row: (-scores[row], row)):
                its_pid, its_camid = gallery.labels.pids[row], gallery.labels.camids[row]
                same = its_pid == pid and pid not in (None, "-1")
                if its_pid == "-1" or (same and its_camid == camid is not None) or (same and its_camid != wanted):
                    continue
                rank += 1
                if same:
                    hits += 1
                    precisions.append(hits / rank)
                    first = first or rank == 1
            if precisions:
                found.setdefault((camid, wanted), []).append((first, float(np.mean(precisions))))
    return [
        CameraPair(mine, theirs, len(fared), *np.mean(fared, axis=0).tolist())
        for mine in ("c2", "c10", None)
        for theirs in ("c2", "c10", None)
        if (fared := found.get((mine, theirs)))
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), queries=st.integers(1, 12), count=st.integers(1, 40))
def test_camera_pairs_are_those_of_rankings_without_other_cameras_right_entries(seed, queries, count):
    rng = np.random.default_rng(seed)
    query, gallery = random_part(rng, queries, "q"), random_part(rng, count, "g")
    found, plain = camera_pairs(evaluate(query, gallery)), plain_camera_pairs(query, gallery)
    names = [(pair.query_camid, pair.gallery_camid, pair.queries) for pair in plain]
    assert [(pair.query_camid, pair.gallery_camid, pair.queries) for pair in found] == names
    np.testing.assert_allclose(
        [(pair.rank1, pair.mAP) for pair in found], [(pair.rank1, pair.mAP) for pair in plain], atol=1e-12
    )


def turned(*degrees: float) -> np.ndarray:
    """Unit vectors (n, 2) at some angles from the first axis: the nearer the angle, the better the score."""
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def astray() -> tuple[Labelled, Labelled]:
    """Queries a1, a2 (of a), b, c and x, which is nowhere; a1 finds b first, a2 finds b first, b and c are right."""
    query = Labelled(
        turned(0, 1, 40, 70, 80), Labels(["a", "a", "b", "c", "x"], ["1"] * 5, ["a1", "a2", "b1", "c1", "x1"])
    )
    gallery = Labelled(turned(10, 25, 45, 70), Labels(["b", "a", "b", "c"], ["2"] * 4, ["g0", "g1", "g2", "g3"]))
    return query, gallery


def test_an_identity_is_confused_with_that_of_its_wrong_best_entry(astray):
    assert confusions(evaluate(*astray)) == [Confusion("a", "b", queries=2, of=2)]


def test_a_wrong_best_entry_of_unknown_identity_is_a_confusion_with_nobody(astray):
    query, gallery = astray
    labels = Labels([None, *gallery.labels.pids[1:]], gallery.labels.camids, gallery.labels.sources)
    assert confusions(evaluate(query, Labelled(gallery.embeddings, labels))) == [Confusion("a", None, 2, 2)]


def test_queries_stand_from_the_best_average_precision_to_the_worst_without_those_that_match_nothing(astray):
    # b finds g2 first and g0 third (angles 45, 25, 10 or 70): 5/6; c is right at once; a's only one is second.
    assert best_first(evaluate(*astray)) == [3, 2, 0, 1]


def test_rankings_cut_short_are_ordered_by_first_rank_and_have_no_cameras(astray):
    query, gallery = astray
    rows = np.array([[0, 1], [0, 1], [2, 1], [3, 2], [3, 2]])
    scores = np.array(
        [np.vecdot(gallery.embeddings[some], vector) for some, vector in zip(rows, query.embeddings, strict=True)]
    )
    cut = evaluate_rankings([(slice(0, 5), Ranking(scores, rows))], query.labels, gallery.labels)
    assert best_first(cut) == [2, 3, 0, 1]
    assert camera_pairs(cut) == []
    assert confusions(cut) == [Confusion("a", "b", 2, 2)]


def test_nothing_is_broken_down_where_nothing_matches(astray):
    query, gallery = astray
    evaluation = evaluate(query.take(np.array([4])), gallery, rule=Rule(queries="all"))
    assert (camera_pairs(evaluation), confusions(evaluation), best_first(evaluation)) == ([], [], [])
