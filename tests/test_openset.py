import re

import numpy as np
import pytest

from reidserve.errors import EvaluationError
from reidserve.evaluate import Labelled, Labels, evaluate, evaluate_scores
from reidserve.evaluate.counting import bin_scores
from reidserve.evaluate.distribution import BINS, Histogram
from reidserve.evaluate.openset import accept, open_set, pair_point, roc, search_point, search_scores
from tests.conftest import unit_rows


@pytest.fixture(scope="module")
def problem() -> tuple[Labelled, Labelled]:
    rng = np.random.default_rng(0)
    centres = unit_rows(rng, 40, 24)

    def part(count: int, camera: str) -> Labelled:
        pids = rng.integers(0, 40, count)
        rows = centres[pids] + 1.2 * unit_rows(rng, count, 24)
        labels = Labels([str(pid) for pid in pids], [camera] * count, [None] * count)
        return Labelled(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels)

    return part(300, "1"), part(900, "2")


def test_points_of_pairs_are_those_of_all_pairs_written_out(problem):
    query, gallery = problem
    evaluation = evaluate(query, gallery, impostors=True)
    scores = np.vecdot(query.embeddings[:, np.newaxis], gallery.embeddings[np.newaxis])
    same = np.array(query.labels.pids)[:, np.newaxis] == np.array(gallery.labels.pids)
    found = open_set(evaluation)
    assert (found.genuine, found.impostors) == (same.sum(), (~same).sum())
    assert [point.rate for point in found.pairs] == [1e-2, 1e-3, 1e-4]
    for point in found.pairs:
        plain = accept(scores[same], scores[~same], point.rate)
        # A threshold is exact to a bin.
        assert plain.threshold - 1e-6 <= point.threshold <= plain.threshold + 2 / BINS + 1e-6
        assert np.mean(scores[~same] >= point.threshold) <= point.rate
        assert point.true == pytest.approx(np.mean(scores[same] >= point.threshold), abs=1e-12)
        assert point.false == pytest.approx(np.mean(scores[~same] >= point.threshold), abs=2e-5)


def test_identification_takes_the_best_of_each_search(problem):
    query, gallery = problem
    evaluation = evaluate(query, gallery, impostors=True)
    scores = np.vecdot(query.embeddings[:, np.newaxis], gallery.embeddings[np.newaxis])
    same = np.array(query.labels.pids)[:, np.newaxis] == np.array(gallery.labels.pids)
    best_right, best_wrong = (np.where(kind, scores, -2).max(axis=1) for kind in (same, ~same))
    (point,) = open_set(evaluation).identification
    assert point.rate == 1e-2
    alarms = np.mean(best_wrong >= point.threshold)
    assert alarms <= 0.01 < np.mean(best_wrong >= np.nextafter(np.float32(point.threshold), np.float32(-1)))
    assert point.false == pytest.approx(alarms)
    assert point.true == pytest.approx(np.mean((best_right > best_wrong) & (best_right >= point.threshold)))
    accepted, wrong = search_scores(evaluation)
    assert sorted(wrong.tolist()) == sorted(best_wrong.tolist())
    assert len(accepted) == (best_right > best_wrong).sum()


def test_rates_that_no_pair_can_show_are_left_out():
    rows = unit_rows(np.random.default_rng(0), 30, 8)
    labels = Labels([str(place % 10) for place in range(30)], [str(place // 10) for place in range(30)], [None] * 30)
    found = open_set(evaluate(Labelled(rows, labels), Labelled(rows, labels), impostors=True))
    assert (found.genuine, found.impostors, found.searches) == (60, 810, 30)
    assert [point.rate for point in found.pairs] == [1e-2]
    assert found.identification == []


def test_a_roc_rises_from_nothing_to_everything(problem):
    false, true, thresholds = roc(evaluate(*problem, impostors=True))
    assert (false[0], false[-1], true[-1]) == (0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    place = int(np.searchsorted(-thresholds, -0.5))
    query, gallery = problem
    scores = np.vecdot(query.embeddings[:, np.newaxis], gallery.embeddings[np.newaxis])
    same = np.array(query.labels.pids)[:, np.newaxis] == np.array(gallery.labels.pids)
    assert thresholds[place] == 0.5
    assert true[place] == pytest.approx(np.mean(scores[same] >= 0.5), abs=1e-9)
    assert false[place] == pytest.approx(np.mean(scores[~same] >= 0.5), abs=1e-5)


def test_equal_scores_are_all_let_in_or_none():
    right, wrong = np.array([0.9, 0.5], np.float32), np.array([0.5] * 9 + [0.1], np.float32)
    point = accept(right, wrong, 0.5)
    assert (point.false, point.true) == (0, 0.5)
    assert accept(right, wrong, 0.9).threshold == pytest.approx(0.1, abs=1e-6)
    assert accept(right, wrong, 1.0).false == 1


def rows_of(scores: list[float]) -> np.ndarray:
    """Unit vectors that have these scores with the first axis."""
    rows = np.zeros((len(scores), 2), np.float32)
    rows[:, 0] = scores
    rows[:, 1] = np.sqrt(1 - np.square(rows[:, 0]))
    return rows


def test_doubles_of_other_identities_leave_no_threshold():
    query = Labelled(rows_of([1.0]), Labels(["a"], ["1"], [None]))
    gallery = Labelled(rows_of([1.0, 0.9, 1.0, 1.0, 0.2]), Labels(["a", "a", "b", "c", "d"], ["2"] * 5, [None] * 5))
    evaluation = evaluate(query, gallery, impostors=True)
    with pytest.raises(EvaluationError, match=r"no score keeps false alarms to 0.5: .* score 1, as doubles do"):
        pair_point(evaluation, 0.5)
    assert pair_point(evaluation, 0.7).false == pytest.approx(2 / 3)
    many = Labelled(np.repeat(query.embeddings, 200, axis=0), Labels(["a"] * 200, ["1"] * 200, [None] * 200))
    with pytest.raises(EvaluationError, match="no score keeps false alarms to"):
        search_point(evaluate(many, gallery, impostors=True), 0.1)
    found = open_set(evaluate(many, gallery, impostors=True))
    assert (found.pairs, found.identification) == ([], [])


@pytest.mark.parametrize("seed", range(20))
def test_no_more_pairs_than_said_are_accepted_where_scores_are_equal_or_on_the_edge_of_a_bin(seed: int):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, size=(40, 4)).astype(np.float64)
    rows[~rows.any(axis=1)] = 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = Labels([str(pid) for pid in rng.integers(0, 4, 40)], ["1"] * 20 + ["2"] * 20, [None] * 40)
    images = Labelled(rows.astype(np.float32), labels)
    query, gallery = images.take(np.arange(20)), images.take(np.arange(20, 40))
    evaluation = evaluate(query, gallery, impostors=True)
    scores = np.vecdot(query.embeddings[:, np.newaxis], gallery.embeddings[np.newaxis])
    same = np.array(query.labels.pids)[:, np.newaxis] == np.array(gallery.labels.pids)
    for rate in (0.5, 0.29, 0.1):
        if np.mean(scores[~same] > 1 - 1e-4) <= rate:
            point = pair_point(evaluation, rate)
            assert np.mean(scores[~same] >= point.threshold) <= point.false <= rate
            assert point.true == np.mean(scores[same] >= point.threshold)


@pytest.mark.parametrize("queries", [30, 70, 99])
def test_the_rate_that_is_advised_is_one_that_can_be_shown(queries: int):
    rows = unit_rows(np.random.default_rng(0), queries, 8)
    pids, camids = ([str(part) for part in parts] for parts in divmod(np.arange(queries), 10)[::-1])
    images = Labelled(rows, Labels(pids, camids, [None] * queries))
    evaluation = evaluate(images, images, impostors=True)
    with pytest.raises(EvaluationError, match="ask for") as raised:
        search_point(evaluation, 0.01)
    advised = re.search(r"ask for (\S+) or more", str(raised.value))
    assert advised is not None
    assert search_point(evaluation, float(advised[1])).rate == float(advised[1])


def test_a_rate_finer_than_one_impostor_pair_is_refused(problem):
    query, gallery = problem
    evaluation = evaluate(query, gallery, impostors=True)
    pairs = open_set(evaluation).impostors
    assert pair_point(evaluation, 1.5 / pairs).false == pytest.approx(1 / pairs)
    with pytest.raises(EvaluationError, match=r"cannot show a false alarm rate"):
        pair_point(evaluation, 0.75 / pairs)


def test_a_rate_that_impostors_meet_exactly_is_allowed():
    scores = np.array([[0.9, 0.5, 0.25, -0.5, -0.75]], np.float32)
    labels = Labels(["1", "2", "3", "4", "5"], ["2"] * 5, [None] * 5)
    evaluation = evaluate_scores([(slice(0, 1), scores)], Labels(["1"], ["1"], [None]), labels, impostors=True)
    point = pair_point(evaluation, 0.25)
    assert (point.false, point.true) == (0.25, 1)
    assert 0.25 < point.threshold <= 0.5


def test_scores_and_products_are_counted_in_the_same_bins():
    scores = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    histogram = Histogram()
    histogram.add_scores(scores)
    edges = np.linspace(-1, 1, BINS + 1)
    assert histogram.counts.tolist() == np.histogram(scores.astype(np.float64), edges)[0].tolist()
    assert histogram.counts.tolist() == bin_scores(scores.reshape(50, 100), BINS).tolist()
