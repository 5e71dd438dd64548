import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.datasets import Crop
from reidserve.embed import Embedder
from reidserve.errors import EvaluationError
from reidserve.evaluate import (
    Evaluation,
    Labelled,
    Labels,
    Rule,
    embed_crops,
    evaluate,
    evaluate_rankings,
    evaluate_scores,
)
from reidserve.evaluate.distribution import Histogram
from reidserve.index import Ranking
from reidserve.index.search.ranking import rank_plainly
from tests.conftest import unit_rows, write_crops


def plain_outcomes(query: Labelled, gallery: Labelled, rule: Rule) -> list[dict[str, Any]]:
    """The rule word for word: sort everything by (-score, row), walk down, count."""
    outcomes = []
    for place in range(len(query)):
        ranked = []
        for row in range(len(gallery)):
            pids, camids, sources = (
                (getattr(query.labels, name)[place], getattr(gallery.labels, name)[row])
                for name in ("pids", "camids", "sources")
            )
            same_pid, same_camid, same_source = (
                asked is not None and asked == held for asked, held in (pids, camids, sources)
            )
            same_pid = same_pid and pids[0] != "-1"  # junk is nobody
            dropped = (
                same_source
                or (pids[1] == "-1" and not rule.junk)
                or (pids[1] == "0000" and "0000" not in query.labels.pids and not rule.distractors)
                or (rule.cameras == "market" and same_pid and same_camid)
                or (rule.cameras == "cross" and same_camid)
            )
            if not dropped:
                score = np.vecdot(query.embeddings[place], gallery.embeddings[row])
                ranked.append((-score, row, same_pid))
        ranked.sort()
        right = [(rank, row, -score) for rank, (score, row, hit) in enumerate(ranked, start=1) if hit]
        wrong = [(row, -score) for score, row, hit in ranked if not hit]
        outcomes.append(
            {
                "ranks": [rank for rank, _, _ in right],
                "rows": [row for _, row, _ in right],
                "scores": [score for _, _, score in right],
                "reach": [sum(-other >= score for other, _, _ in ranked) for _, _, score in right],
                "counted": len(ranked),
                "wrong": wrong[0] if wrong else (-1, -np.inf),
                "wrongs": [score for _, score in wrong],
            }
        )
    return outcomes


def assert_outcomes(evaluation: Evaluation, expected: list[dict[str, Any]]) -> None:
    """Every number of every query, scores bit by bit."""
    outcomes = evaluation.outcomes
    assert len(outcomes) == len(expected)
    for place, plain in enumerate(expected):
        its = outcomes.of(place)
        for name in ("ranks", "rows", "scores", "reach"):
            assert getattr(outcomes, name)[its].tolist() == plain[name], (name, place)
        assert outcomes.counted[place] == plain["counted"]
        assert (outcomes.wrong[place], outcomes.wrong_scores[place]) == plain["wrong"]
    assert not outcomes.missing.any()


def plain_figures(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """The means over queries with a right entry, from their ranks."""
    scored = [one["ranks"] for one in outcomes if one["ranks"]]
    precisions = [[hits / rank for hits, rank in enumerate(ranks, start=1)] for ranks in scored]
    return {
        "rank1": np.mean([ranks[0] <= 1 for ranks in scored]),
        "rank5": np.mean([ranks[0] <= 5 for ranks in scored]),
        "mAP": np.mean([np.mean(some) for some in precisions]),
        "mINP": np.mean([len(ranks) / ranks[-1] for ranks in scored]),
        "queries": len(scored),
        "unmatchable": len(outcomes) - len(scored),
        "positives": sum(map(len, scored)),
    }


def random_part(rng, count, pids, camids, dim, start) -> Labelled:
    labels = Labels(
        ["-1" if pid == pids else "0000" if pid == 1 else str(pid) for pid in rng.integers(0, pids + 1, count)],
        [str(camid) if camid < camids else None for camid in rng.integers(0, camids + 1, count)],
        [str(source) for source in range(start, start + count)],
    )
    return Labelled(unit_rows(rng, count, dim), labels)


rules = st.builds(
    Rule,
    cameras=st.sampled_from(["market", "cross", "any"]),
    junk=st.booleans(),
    distractors=st.booleans(),
    queries=st.just("matchable"),
)


@settings(max_examples=150, deadline=None)
@given(
    rule=rules,
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 12),
    count=st.integers(1, 60),
    pids=st.integers(1, 8),
    camids=st.integers(1, 4),
    dim=st.integers(1, 40),
    copies=st.integers(0, 60),
    overlap=st.booleans(),
)
def test_three_ways_equal_the_plain_rule_with_ties_junk_and_missing_positives(
    rule, seed, queries, count, pids, camids, dim, copies, overlap
):
    rng = np.random.default_rng(seed)
    gallery = random_part(rng, count, pids, camids, dim, start=5 if overlap else 1000)
    query = random_part(rng, queries, pids, camids, dim, start=0)
    # Copies and near copies: what a matrix product gets in the wrong order.
    gallery.embeddings[rng.integers(0, count, copies)] = query.embeddings[0]
    nudged = rng.integers(0, count, copies // 2)
    gallery.embeddings[nudged] = np.nextafter(gallery.embeddings[nudged], np.float32(1))
    expected = plain_outcomes(query, gallery, rule)

    by_features = evaluate(query, gallery, rule=rule, impostors=True)
    assert_outcomes(by_features, expected)
    scores = np.vecdot(query.embeddings[:, np.newaxis], gallery.embeddings[np.newaxis])
    halves = [slice(0, queries // 2), slice(queries // 2, queries)]
    by_scores = evaluate_scores(
        ((half, scores[half]) for half in halves), query.labels, gallery.labels, rule=rule, impostors=True
    )
    assert_outcomes(by_scores, expected)
    ranking = rank_plainly(query.embeddings, gallery.embeddings, np.arange(count), top_k=count)
    by_ranking = evaluate_rankings([(slice(0, queries), ranking)], query.labels, gallery.labels, rule=rule)
    assert_outcomes(by_ranking, expected)
    assert by_ranking.whole

    wrongs = np.array([score for one in expected for score in one["wrongs"]], np.float32)
    plain = Histogram()
    plain.add_scores(wrongs)
    assert by_scores.impostors.counts.tolist() == plain.counts.tolist()
    # A product may lie in the bin beside that of its settled score.
    apart = np.cumsum(by_features.impostors.counts) - np.cumsum(plain.counts)
    assert by_features.impostors.counts.sum() == len(wrongs)
    assert np.abs(apart).sum() <= len(wrongs)

    metrics = by_features.metrics
    if not any(one["ranks"] for one in expected):
        assert (metrics.queries, metrics.unmatchable, metrics.cmc) == (0, queries, [])
        assert np.isnan(metrics.mAP)
        return
    figures = {name: getattr(metrics, name) for name in ("mAP", "mINP", "queries", "unmatchable", "positives")}
    assert {**figures, "rank1": metrics.rank1, "rank5": metrics.rank(5)} == pytest.approx(
        plain_figures(expected), abs=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top_k=st.integers(1, 40))
def test_rankings_cut_short_give_rank_k_as_far_as_it_is_known_and_no_map(seed, top_k):
    rng = np.random.default_rng(seed)
    gallery, query = random_part(rng, 40, 5, 3, 6, start=1000), random_part(rng, 8, 5, 3, 6, start=0)
    ranking = rank_plainly(query.embeddings, gallery.embeddings, np.arange(40), top_k=top_k)
    short = evaluate_rankings([(slice(0, 8), ranking)], query.labels, gallery.labels)
    full = evaluate(query, gallery)
    assert short.whole == (top_k == 40)
    known = len(short.metrics.cmc)
    matchable = full.outcomes.found > 0
    if matchable.any():
        # A query that was answered is known at every k.
        unanswered = matchable & (short.outcomes.found == 0)
        assert known == short.outcomes.counted[unanswered].min(initial=50)
        assert short.metrics.cmc == full.metrics.cmc[:known]
        assert np.isnan(short.metrics.rank(known + 1))
        assert np.isnan(short.metrics.mAP) or short.whole
    assert (short.metrics.positives, short.metrics.unmatchable) == (full.metrics.positives, full.metrics.unmatchable)


def part(pids, camids, scores) -> Labelled:
    """Two-dimensional embeddings whose cosine with (1, 0) is the score."""
    embeddings = np.array([[score, np.sqrt(1 - score**2)] for score in scores], np.float32)
    return Labelled(embeddings, Labels(pids, camids, [None] * len(pids)))


def test_a_worked_example_by_hand():
    query = part(["7"], ["1"], [1.0])
    # Dropped: the own camera's 7 at the top, and junk. Left: wrong, right, wrong, right.
    gallery = part(["7", "-1", "3", "7", "0", "7"], ["1", "2", "2", "2", "3", "3"], [0.99, 0.95, 0.9, 0.8, 0.7, 0.6])
    report = evaluate(query, gallery).metrics
    assert (report.rank1, report.rank(5), report.rank(10)) == (0, 1, 1)
    assert report.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert report.mINP == pytest.approx(2 / 4)
    assert (report.queries, report.unmatchable, report.positives) == (1, 0, 2)


def test_a_tie_goes_to_the_earlier_gallery_row():
    query = part(["7"], ["1"], [1.0])
    assert evaluate(query, part(["7", "3"], ["2", "2"], [0.5, 0.5])).metrics.rank1 == 1
    assert evaluate(query, part(["3", "7"], ["2", "2"], [0.5, 0.5])).metrics.rank1 == 0


def test_unknown_cameras_are_not_the_same_camera():
    report = evaluate(part(["7"], [None], [1.0]), part(["7", "3"], [None, None], [0.9, 0.5])).metrics
    assert (report.rank1, report.positives) == (1, 1)


def test_a_querys_own_image_is_no_answer_where_cameras_are_unknown():
    embeddings = part(["7", "7"], [None, None], [1.0, 0.2]).embeddings
    both = Labelled(embeddings, Labels(["7", "7"], [None, None], ["a.jpg", "b.jpg"]))
    report = evaluate(both, both).metrics
    assert (report.positives, report.rank1) == (2, 1)


def test_queries_that_can_never_match_are_left_out_and_counted():
    query = part(["7", "8"], ["1", "1"], [1.0, 1.0])
    report = evaluate(query, part(["7", "8"], ["2", "1"], [0.9, 0.5])).metrics
    assert (report.queries, report.unmatchable, report.mAP) == (1, 1, 1.0)


def test_nothing_to_score_is_a_clear_answer_and_no_exception():
    for query in (part(["7"], ["1"], [1.0]), part([None], ["1"], [1.0]), part(["-1"], ["1"], [1.0])):
        metrics = evaluate(query, part(["8", "-1"], ["2", "2"], [1.0, 0.5])).metrics
        assert (metrics.queries, metrics.unmatchable, metrics.positives, metrics.cmc) == (0, 1, 0, [])
        assert np.isnan([metrics.mAP, metrics.mINP, metrics.rank1]).all()


def test_parts_of_different_length_and_vectors_of_another_length_are_refused():
    with pytest.raises(EvaluationError, match=r"must be of one length, got \[2, 1, 1\]"):
        Labels(["1", "2"], ["1"], [None])
    with pytest.raises(EvaluationError, match="2 embeddings have labels for 1"):
        Labelled(np.eye(2, dtype=np.float32), Labels(["1"], ["1"], [None]))
    with pytest.raises(EvaluationError, match="1 of 2 embeddings are not of unit length, row 1 is the first"):
        Labelled(np.array([[1, 0], [np.nan, 0]], np.float32), Labels(["1"] * 2, ["1"] * 2, [None] * 2))


def test_a_ranking_with_gaps_is_not_whole_however_wide_it_is():
    query, gallery = part(["7"], ["1"], [1.0]), part(["7", "3", "7"], ["2", "2", "3"], [0.9, 0.8, 0.7])
    ranking = Ranking(np.array([[0.9, 0.8, -np.inf]], np.float32), np.array([[0, 1, -1]]))
    evaluation = evaluate_rankings([(slice(0, 1), ranking)], query.labels, gallery.labels)
    assert not evaluation.whole
    assert np.isnan(evaluation.metrics.mAP)


def test_queries_that_were_not_ranked_take_their_labels_with_them():
    query = part(["1", "2", "3"], ["1", "1", "2"], [1.0, 1.0, 1.0])
    gallery = part(["3", "2", "1"], ["3", "3", "3"], [0.9, 0.8, 0.7])
    rows = np.array([[0, 1, 2]])
    rankings = [(slice(place, place + 1), Ranking(np.array([[0.9, 0.8, 0.7]], np.float32), rows)) for place in (0, 2)]
    evaluation = evaluate_rankings(rankings, query.labels, gallery.labels)
    assert (evaluation.query.pids, evaluation.query.camids) == (["1", "3"], ["1", "2"])
    assert evaluation.outcomes.ranks.tolist() == [3, 1]


def test_means_may_be_over_all_queries():
    query, gallery = part(["7", "8"], ["1", "1"], [1.0, 1.0]), part(["7", "8"], ["2", "1"], [0.9, 0.5])
    metrics = evaluate(query, gallery, rule=Rule(queries="all")).metrics
    assert (metrics.queries, metrics.unmatchable, metrics.mAP, metrics.rank1) == (2, 1, 0.5, 0.5)


def test_cmc_goes_to_any_rank():
    query, gallery = part(["7"], ["1"], [1.0]), part([*["8"] * 99, "7"], ["2"] * 100, [0.9] * 99 + [0.5])
    curve = evaluate(query, gallery).summary(max_rank=120).cmc
    assert curve == [0.0] * 99 + [1.0] * 21


def test_memory_does_not_grow_with_queries_times_gallery():
    rng = np.random.default_rng(0)
    query = random_part(rng, 2500, 400, 4, 8, start=0)
    gallery = random_part(rng, 20_000, 400, 4, 8, start=10_000)
    tracemalloc.start()
    evaluate(query, gallery)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The whole matrix of products would take 200 MB.
    assert peak < 90e6


def test_each_file_is_embedded_once_and_bad_ones_are_named(tmp_path: Path, embedder: Embedder):
    paths = write_crops(tmp_path, pids=2)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    crops = [Crop(path, pid=path.name[:4], camid=path.name[6]) for path in paths]
    seen: list[tuple[int, int]] = []
    query, gallery, failures = embed_crops(
        crops, [*crops, Crop(bad, "1", "1")], embedder, progress=lambda done, total: seen.append((done, total))
    )
    assert [name for name, _ in failures] == [str(bad)]
    assert seen[-1] == (5, 5)
    assert gallery.labels.pids == ["0001", "0001", "0002", "0002"]
    np.testing.assert_array_equal(query.embeddings, gallery.embeddings)
    np.testing.assert_array_equal(query.embeddings, embedder.embed_encoded([path.read_bytes() for path in paths]))


def test_no_readable_query_is_a_clear_answer(tmp_path: Path, embedder: Embedder):
    with pytest.raises(EvaluationError, match="none of 1 query images can be read"):
        embed_crops([Crop(tmp_path / "nowhere.jpg", "1")], [], embedder)


def test_images_are_called_the_same_wherever_a_dataset_lies():
    sources = ["query/1/a.jpg", "query/1/b.jpg", "query/10/a.jpg"]
    for root in ("/", "/data/market/", "other/"):
        labels = Labels(["1"] * 4, ["1"] * 4, [None, *(root + source for source in sources)])
        assert labels.names() == [None, "1/a.jpg", "1/b.jpg", "10/a.jpg"]
    assert Labels(["1"], ["1"], ["/a/b.jpg"]).names() == ["b.jpg"]
    assert Labels(["1"], ["1"], [None]).names() == [None]
