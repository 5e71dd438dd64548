import numpy as np
import pytest

from reidserve.errors import EvaluationError
from reidserve.evaluate import Evaluation, Labelled, Labels
from reidserve.evaluate.metrics import average_precisions
from reidserve.evaluate.trials import evaluate_one_per_identity, evaluate_single_shot
from tests.conftest import unit_rows


def images(count: int, pids: int, *, cameras: int | None = None, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    pid = np.sort(rng.integers(0, pids, count))
    rows = unit_rows(rng, pids, 16)[pid] + 0.8 * unit_rows(rng, count, 16)
    camids = [None if cameras is None else f"c{one}" for one in rng.integers(0, cameras or 1, count)]
    labels = Labels([f"p{one}" for one in pid], camids, [f"{seed}/{place}" for place in range(count)])
    return Labelled(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels)


def trial_of(evaluation: Evaluation, trial: int) -> tuple[slice, slice]:
    """Where a trial's queries stand, and its right entries."""
    size = len(evaluation.outcomes) // evaluation.trials
    queries = slice(trial * size, (trial + 1) * size)
    return queries, slice(*evaluation.outcomes.starts[[queries.start, queries.stop]])


def test_vehicleid_draws_one_image_per_vehicle_and_searches_with_all_others():
    every = images(60, 8)
    evaluation = evaluate_one_per_identity(every, trials=10, seed=3)
    assert (evaluation.trials, evaluation.gallery_size, len(evaluation.outcomes)) == (10, 8, 10 * 52)
    galleries = []
    for trial in range(10):
        queries, right = trial_of(evaluation, trial)
        outcomes = evaluation.outcomes
        gallery = sorted(set(outcomes.rows[right].tolist()))
        assert len({every.labels.pids[row] for row in gallery}) == len(gallery)
        sources = set(evaluation.query.sources[queries])
        assert sources.isdisjoint({every.labels.sources[row] for row in gallery})
        galleries.append(tuple(gallery))
        for place in range(queries.start, queries.stop):
            # One right entry, whose rank is one more than the vehicles that score better.
            query = every.embeddings[every.labels.sources.index(evaluation.query.sources[place])]
            (row,) = outcomes.rows[outcomes.of(place)]
            assert every.labels.pids[row] == evaluation.query.pids[place]
            if len(gallery) == 8:
                scores = np.vecdot(every.embeddings[list(gallery)], query)
                assert (
                    outcomes.ranks[outcomes.of(place)] == 1 + (scores > np.vecdot(every.embeddings[row], query)).sum()
                )
                assert outcomes.wrong[place] == gallery[int(np.argmax(np.where(np.array(gallery) == row, -2, scores)))]
    assert len(set(galleries)) > 1
    assert evaluation.metrics.mAP == pytest.approx(np.mean(1 / evaluation.outcomes.ranks))


def test_trials_are_seeded():
    first, same, other = (evaluate_one_per_identity(images(60, 8), trials=3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.outcomes.rows, same.outcomes.rows)
    assert first.outcomes.rows.tolist() != other.outcomes.rows.tolist()


def test_single_shot_draws_from_other_cameras_and_drops_the_querys_own():
    query, gallery = images(20, 6, cameras=2, seed=0), images(80, 6, cameras=2, seed=1)
    evaluation = evaluate_single_shot(query, gallery, trials=100)
    assert (evaluation.trials, evaluation.gallery_size, len(evaluation.outcomes)) == (100, 6, 2000)
    outcomes = evaluation.outcomes
    assert outcomes.found.tolist() == [1] * 2000
    for place, row in enumerate(outcomes.rows.tolist()):
        assert gallery.labels.pids[row] == evaluation.query.pids[place]
        assert gallery.labels.camids[row] != evaluation.query.camids[place]
    assert {gallery.labels.camids[row] for row in outcomes.wrong[evaluation_camera(evaluation, "c0")].tolist()} == {
        "c1"
    }
    # With one right entry, average precision is 1 / rank.
    np.testing.assert_allclose(average_precisions(outcomes, "hits"), 1 / outcomes.ranks)
    # What is drawn evenly comes near the mean over all that can be drawn.
    expected = np.mean([expected_rank1(query, gallery, place) for place in range(20)])
    assert evaluation.metrics.rank1 == pytest.approx(expected, abs=0.05)


def evaluation_camera(evaluation: Evaluation, camid: str) -> list[int]:
    return [place for place, one in enumerate(evaluation.query.camids) if one == camid]


def expected_rank1(query: Labelled, gallery: Labelled, place: int) -> float:
    """The chance that a right entry, drawn evenly, is above one drawn evenly of every other identity."""
    scores = np.vecdot(gallery.embeddings, query.embeddings[place])
    other = np.array(gallery.labels.camids) != query.labels.camids[place]
    pids = np.array(gallery.labels.pids)
    right = scores[other & (pids == query.labels.pids[place])]
    chances = np.ones(len(right))
    for pid in set(pids.tolist()) - {query.labels.pids[place]}:
        wrong = scores[other & (pids == pid)]
        chances *= (wrong[np.newaxis] < right[:, np.newaxis]).mean(axis=1)
    return float(chances.mean())


def test_each_single_shot_trial_draws_anew():
    query, gallery = images(20, 6, cameras=2, seed=0), images(80, 6, cameras=2, seed=1)
    right = evaluate_single_shot(query, gallery, trials=5).outcomes.rows.reshape(5, 20)
    assert len(np.unique(right, axis=0)) == 5


def test_what_cannot_be_drawn_is_a_clear_error():
    with pytest.raises(EvaluationError, match="nothing is left to search with"):
        evaluate_one_per_identity(images(3, 3).take(np.array([0])))
    with pytest.raises(EvaluationError, match="needs the camera of every query"):
        evaluate_single_shot(images(5, 2), images(9, 2, cameras=2))


def test_where_no_other_camera_has_images_a_single_shot_finds_nothing():
    every = images(12, 3, cameras=1)
    evaluation = evaluate_single_shot(every, every, trials=2)
    assert (evaluation.metrics.queries, evaluation.metrics.unmatchable) == (0, 24)
