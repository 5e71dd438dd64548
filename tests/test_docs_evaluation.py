"""Every example of docs/evaluation.md that is worked out by hand, with our code."""

import re
from pathlib import Path

import numpy as np
import pytest

from reidserve.datasets import Crop
from reidserve.errors import EvaluationError
from reidserve.evaluate import (
    Evaluation,
    Labelled,
    Labels,
    Rule,
    embed_crops,
    evaluate_scores,
)
from reidserve.evaluate.comparison import bootstrap
from reidserve.evaluate.metrics import average_precisions
from reidserve.evaluate.openset import pair_point, search_point
from reidserve.evaluate.tracks import evaluate_tracks
from reidserve.evaluate.trials import evaluate_single_shot
from reidserve.index.expansion import expand
from reidserve.index.rerank import Reranking, rerank
from reidserve.index.search.ranking import rank_plainly
from reidserve.index.tracks import pool
from tests.conftest import run_command, write_crops

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def labels(pids, camids):
    return Labels(list(pids), list(camids), [None] * len(pids))


def unlike(pids):
    """Labels of gallery images by another camera than the queries'."""
    return labels(pids, ["2"] * len(pids))


def score(scores, gallery, *, rule=Rule(), query=None, impostors=False) -> Evaluation:  # noqa: B008
    """Queries of one row of scores each; one query of pid "right" by camera 1 where nothing else is said."""
    rows = np.atleast_2d(np.array(scores, np.float32))
    asked = query or labels(["right"], ["1"])
    return evaluate_scores([(slice(0, len(rows)), rows)], asked, gallery, rule=rule, impostors=impostors)


FOUR = unlike(["wrong", "right", "wrong", "right"])


def test_one_query_has_the_figures_worked_out_by_hand():
    found = score([0.9, 0.8, 0.7, 0.6], FOUR)
    assert [found.metrics.rank(k) for k in (1, 2, 5)] == [0, 1, 1]
    assert found.metrics.mAP == pytest.approx((1 / 2 + 2 / 4) / 2) == 0.5
    assert found.metrics.mAP_trapezoid == pytest.approx(0.3333, abs=5e-5)
    assert found.metrics.mAP_trapezoid == pytest.approx(((0 / 1 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert found.metrics.mAP_step == 0.5
    assert found.metrics.mINP == 0.5


def test_a_query_without_a_right_image_is_left_out_or_counts_as_nothing_found():
    query, rows = labels(["right", "absent"], ["1", "1"]), [[0.9, 0.8, 0.7, 0.6]] * 2
    assert score(rows, FOUR, query=query).metrics.mAP == 0.5
    assert score(rows, FOUR, query=query, rule=Rule(queries="all")).metrics.mAP == 0.25


def test_a_tie_is_decided_by_the_gallerys_order_and_not_at_all_by_the_step_formula():
    first = score([0.9, 0.8, 0.8, 0.6], FOUR).metrics
    second = score([0.9, 0.8, 0.8, 0.6], unlike(["wrong", "wrong", "right", "right"])).metrics
    assert first.mAP == 0.5
    assert second.mAP == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert second.mAP == pytest.approx(0.4167, abs=5e-5)
    assert first.mAP_step == second.mAP_step == pytest.approx((1 / 3 + 2 / 4) / 2)


@pytest.mark.parametrize(
    ("rule", "precision"),
    [
        (Rule(), 1 / 2),
        (Rule(junk=True), 1 / 3),
        (Rule(distractors=False), 1),
        (Rule(cameras="any"), (1 / 1 + 2 / 3) / 2),
        (Rule(cameras="cross"), 1 / 2),
    ],
)
def test_the_rule_drops_what_its_example_says(rule, precision):
    gallery = labels(["2", "-1", "0000", "2"], ["1", "2", "2", "2"])
    found = score([0.9, 0.8, 0.7, 0.6], gallery, rule=rule, query=labels(["2"], ["1"]))
    assert found.metrics.mAP == pytest.approx(precision)


def test_one_image_per_identity_is_worth_what_it_is_by_the_image_that_is_drawn():
    # Scores .9, .3 and .5 with the query (1, 0).
    angles = np.arccos([0.9, 0.3, 0.5])
    gallery = Labelled(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), unlike(["A", "A", "B"]))
    query = Labelled(np.array([[1, 0]], np.float32), labels(["A"], ["1"]))
    found = evaluate_single_shot(query, gallery, trials=400)
    drawn = found.outcomes.rows
    np.testing.assert_array_equal(average_precisions(found.outcomes, "hits"), np.where(drawn == 0, 1, 0.5))
    assert found.metrics.rank1 == pytest.approx(0.5, abs=0.08)
    assert found.metrics.mAP == pytest.approx(0.75, abs=0.04)


def test_a_track_wins_by_its_nearest_image_and_loses_by_its_mean():
    images = np.array([[0.96, 0.28], [0.28, 0.96], [0.8, 0.6], [0.8, 0.6]], np.float32)
    tracks = ["a", "a", "b", "b"]
    query, gallery = Labelled(np.array([[1, 0]], np.float32), labels(["A"], ["1"])), unlike(["A", "A", "B", "B"])
    nearest, mean = (
        evaluate_tracks(query, Labelled(images, gallery), tracks, similarity=similarity)
        for similarity in ("nearest", "mean")
    )
    assert (nearest.outcomes.ranks.tolist(), mean.outcomes.ranks.tolist()) == ([1], [2])
    np.testing.assert_allclose([nearest.outcomes.scores[0], nearest.outcomes.wrong_scores[0]], [0.96, 0.8], atol=1e-6)
    np.testing.assert_allclose([mean.outcomes.scores[0], mean.outcomes.wrong_scores[0]], [0.7071, 0.8], atol=5e-5)
    np.testing.assert_allclose(pool(images, tracks)[0], [[0.7071, 0.7071], [0.8, 0.6]], atol=5e-5)


class Sided:
    """Embeds an image to (1, 0), its mirror image, which is darker on the left, to (.6, .8)."""

    def prepare(self, data):
        return np.array([[[0] * 3, [255] * 3]], np.uint8)

    def embed_each(self, batch):
        return [np.array([1, 0] if image[0, 0, 0] < 128 else [0.6, 0.8], np.float32) for image in batch]


def test_flip_is_the_mean_of_two_embeddings_and_not_of_raw_features(tmp_path: Path):
    (path,) = write_crops(tmp_path / "crops", pids=1, camids=1)
    flipped, _, _ = embed_crops([Crop(path)], [Crop(path)], Sided(), flip=True)
    np.testing.assert_allclose(flipped.embeddings, [[0.8944, 0.4472]], atol=5e-5)
    raw = 3 * np.array([1, 0]) + np.array([0.6, 0.8])
    np.testing.assert_allclose(raw / np.linalg.norm(raw), [0.9762, 0.2169], atol=5e-5)


@pytest.mark.parametrize(("alpha", "expected"), [(0, [0.9487, 0.3162]), (3, [0.9771, 0.2129])])
def test_an_expanded_query_is_the_one_worked_out_by_hand(alpha, expected):
    query, gallery = np.array([[1, 0]], np.float32), np.array([[0.8, 0.6]], np.float32)
    ranking = rank_plainly(query, gallery, np.arange(1), top_k=1)
    np.testing.assert_allclose(expand(query, ranking, gallery.__getitem__, alpha=alpha), [expected], atol=5e-5)


def test_re_ranking_gives_the_distances_worked_out_by_hand():
    query = np.array([[1, 0]], np.float32)
    gallery = np.array([[0.8, 0.6], [0.6, -0.8], [8 / 17, 15 / 17], [5 / 13, 12 / 13]], np.float32)
    np.testing.assert_array_equal(np.argsort(-(gallery @ query[0])), [0, 1, 2, 3])
    (distances,) = rerank(query, gallery, Reranking(k1=2, k2=1))
    np.testing.assert_allclose(distances, [0.7317, 0.2786, 0.9220, 1], atol=5e-5)
    jaccard = rerank(query, gallery, Reranking(k1=2, k2=1, weight=0))
    plain = rerank(query, gallery, Reranking(weight=1))
    np.testing.assert_allclose(jaccard, [[1, 0.2169, 1, 1]], atol=6e-5)
    np.testing.assert_allclose(plain, [[0.1056, 0.4225, 0.7401, 1]], atol=5e-5)
    # Its steps: plain distances, weights, what is shared.
    square = np.square(2 - 2 * gallery @ query[0])
    np.testing.assert_allclose(square, [0.16, 0.64, 1.1211, 1.5148], atol=6e-5)
    from_r = rerank(gallery[1:2], np.concatenate([query, gallery]), Reranking(weight=1))[0]
    assert np.square(2 - 2 * gallery[1] @ gallery[3]) == pytest.approx(9.0925, abs=6e-5)
    assert (from_r[0], from_r.argmax()) == (pytest.approx(0.0704, abs=5e-5), 4)
    q, r = ([1, weight] / np.sum([1, weight]) for weight in np.exp([-plain[0, 1], -from_r[0]]))
    np.testing.assert_allclose([*q, *r], [0.6041, 0.3959, 0.5176, 0.4824], atol=5e-5)
    shared = min(q[0], r[1]) + min(q[1], r[0])
    assert shared == pytest.approx(0.8783, abs=5e-5)
    assert 1 - shared / (2 - shared) == pytest.approx(jaccard[0, 1], abs=1e-6)


SEARCHES = [[0.9, 0.3, 0.2, 0.1], [0.4, 0.8, 0.2, 0.1], [0.7, 0.2, 0.5, 0.1], [0.6, 0.2, 0.1, 0.65]]


def test_thresholds_of_pairs_and_of_searches_are_those_worked_out_by_hand():
    found = score(SEARCHES, unlike("ABCD"), query=labels("ABCD", "1111"), impostors=True)
    pairs, searches = pair_point(found, 1 / 4), search_point(found, 1 / 4)
    assert 0.3 <= pairs.threshold <= 0.3001
    assert (pairs.false, pairs.true) == (3 / 12, 1)
    assert 0.6 < searches.threshold <= 0.6001
    assert (searches.false, searches.true) == (1 / 4, 3 / 4)
    with pytest.raises(EvaluationError, match="4 searches cannot show a false alarm rate of 0.2"):
        search_point(found, 0.2)


def test_an_interval_over_identities_is_wider_than_one_over_queries():
    gains = np.array([1.0, 1, 1, 0])
    assert gains.mean() == 0.75
    assert bootstrap(gains, np.array([0, 0, 0, 1]), samples=10_000, seed=0) == (0, 1)
    assert bootstrap(gains, np.arange(4), samples=10_000, seed=0) == (0.25, 1)


def test_every_option_named_is_one_of_a_command():
    known = "".join(run_command(name, "--help").stdout for name in ("reid-eval", "reid-export", "reid-search"))
    known += run_command("reid-serve", "--help").stdout + "--quick"
    for option in set(re.findall(r"(?<![\w|-])--[a-z][a-z0-9-]+", TEXT)):
        assert re.search(rf"{option}(?![a-z0-9-])", known), option
