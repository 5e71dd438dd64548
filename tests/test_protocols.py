import numpy as np
import pytest

from reidserve.errors import EvaluationError
from reidserve.evaluate import Labelled, Labels, Rule, evaluate, evaluate_scores
from reidserve.evaluate.protocols import Protocol, evaluate_expanded, evaluate_reranked
from reidserve.index.rerank import Reranking, rerank
from tests.conftest import unit_rows


@pytest.fixture(scope="module")
def problem() -> tuple[Labelled, Labelled]:
    rng = np.random.default_rng(0)
    centres = unit_rows(rng, 25, 16)

    def part(count: int, cameras: str) -> Labelled:
        pids = rng.integers(-1, 25, count)
        rows = centres[pids] + unit_rows(rng, count, 16)
        labels = Labels(
            [str(pid) for pid in pids], [cameras[pid % len(cameras)] for pid in range(count)], [None] * count
        )
        return Labelled(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels)

    return part(60, "ab"), part(300, "abc")


def test_reranking_leaves_junk_out_of_neighbourhoods_and_improves_clustered_identities(problem):
    query, gallery = problem
    how = Reranking(k1=8, k2=3, weight=0.4)
    found = evaluate_reranked(query, gallery, how=how)
    kept = gallery.take(np.flatnonzero(np.array(gallery.labels.pids) != "-1"))
    distances = rerank(query.embeddings, kept.embeddings, how)
    expected = evaluate_scores([(slice(0, 60), -distances)], query.labels, kept.labels)
    assert found.metrics.mAP == pytest.approx(expected.metrics.mAP, abs=1e-4)
    assert found.metrics.mAP > evaluate(query, gallery).metrics.mAP + 0.02


def test_expanded_queries_are_means_with_what_they_found(problem):
    query, gallery = problem
    rule = Rule(junk=True)
    scores = np.vecdot(query.embeddings[:, np.newaxis], gallery.embeddings[np.newaxis])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :4]
    weights = np.clip(np.take_along_axis(scores, best, axis=1), 0, None) ** 2
    means = query.embeddings + np.einsum("qk,qkd->qd", weights, gallery.embeddings[best])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = evaluate(Labelled(means.astype(np.float32), query.labels), gallery, rule=rule)
    found = evaluate_expanded(query, gallery, count=4, alpha=2, rule=rule)
    assert found.metrics.mAP == pytest.approx(expected.metrics.mAP, abs=1e-6)
    assert found.metrics.cmc == pytest.approx(expected.metrics.cmc)


def test_what_counts_for_no_query_is_averaged_into_none(problem):
    query, gallery = problem
    kept = gallery.take(np.flatnonzero(np.array(gallery.labels.pids) != "-1"))
    assert len(kept) < len(gallery)
    found, expected = (evaluate_expanded(query, one, count=4, alpha=2) for one in (gallery, kept))
    assert found.outcomes.scores.tolist() == expected.outcomes.scores.tolist()


@pytest.mark.parametrize("again", ["reranked", "expanded"])
def test_what_is_ranked_again_is_said_of_the_whole_gallery(problem, again: str):
    query, gallery = problem
    found = (
        evaluate_reranked(query, gallery, how=Reranking(k1=4, k2=2))
        if again == "reranked"
        else evaluate_expanded(query, gallery, count=2, alpha=1)
    )
    assert (found.gallery_size, found.gallery) == (300, gallery.labels)
    outcomes = found.outcomes
    for place in range(60):
        pid = query.labels.pids[place]
        assert {gallery.labels.pids[row] for row in outcomes.rows[outcomes.of(place)].tolist()} <= {pid}
        assert gallery.labels.pids[outcomes.wrong[place]] not in (pid, "-1")


def test_each_protocol_is_what_its_name_says(problem):
    query, gallery = problem
    market = Protocol().evaluate(query, gallery)
    assert market.metrics == evaluate(query, gallery).metrics
    drawn = Protocol("vehicleid", trials=4, seed=5).evaluate(query, gallery)
    assert (drawn.trials, drawn.gallery_size) == (4, 25)
    assert Protocol("vehicleid").evaluate(query, gallery).trials == 10
    assert Protocol("cuhk03-single-shot").evaluate(query, gallery).trials == 100
    with pytest.raises(EvaluationError, match="which track each gallery image is of"):
        Protocol("image-to-track").evaluate(query, gallery)
