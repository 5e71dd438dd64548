import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidserve.errors import EvaluationError
from reidserve.evaluate import Labelled, Labels
from reidserve.evaluate.tracks import evaluate_tracks
from reidserve.index.search.flat import rank_bare
from reidserve.index.search.ranking import every_score, rank_plainly
from tests.conftest import unit_rows


def labelled(rng: np.random.Generator, pids, camids) -> Labelled:
    return Labelled(unit_rows(rng, len(pids), 12), Labels(pids, camids, [str(place) for place in range(len(pids))]))


def test_a_track_scores_as_its_nearest_image_and_takes_one_rank():
    rng = np.random.default_rng(0)
    names = [f"{pid}/{camid}/{number}" for pid in "123" for camid in "ab" for number in "xy"]
    tracks = [names[place] for place in rng.integers(0, len(names), 80)]
    gallery = labelled(rng, [track[0] for track in tracks], [track[2] for track in tracks])
    query = labelled(rng, ["1", "2", "3", "1"], ["a", "a", "b", "b"])
    evaluation = evaluate_tracks(query, gallery, tracks)
    order = list(dict.fromkeys(tracks))
    assert (evaluation.gallery_size, evaluation.gallery.pids) == (len(order), [track[0] for track in order])
    for place in range(4):
        scores = [
            max(
                np.vecdot(query.embeddings[place], gallery.embeddings[row])
                for row, one in enumerate(tracks)
                if one == track
            )
            for track in order
        ]
        pid, camid = query.labels.pids[place], query.labels.camids[place]
        ranked = [
            track
            for _, track in sorted(zip(scores, order, strict=True), key=lambda pair: -pair[0])
            if not (track[0] == pid and track[2] == camid)
        ]
        expected = [rank for rank, track in enumerate(ranked, start=1) if track[0] == pid]
        assert evaluation.outcomes.ranks[evaluation.outcomes.of(place)].tolist() == expected


def test_a_track_may_score_as_the_mean_of_its_images():
    rng = np.random.default_rng(1)
    tracks = ["t1", "t1", "t2", "t2", "t2"]
    gallery = labelled(rng, ["1", "1", "2", "2", "2"], ["b"] * 5)
    query = labelled(rng, ["1"], ["a"])
    evaluation = evaluate_tracks(query, gallery, tracks, similarity="mean")
    means = [gallery.embeddings[:2].mean(axis=0), gallery.embeddings[2:].mean(axis=0)]
    scores = [float(query.embeddings[0] @ mean / np.linalg.norm(mean)) for mean in means]
    assert evaluation.outcomes.ranks.tolist() == [1 + (scores[1] > scores[0])]
    assert evaluation.outcomes.scores[0] == pytest.approx(scores[0], abs=1e-6)


def test_tracks_that_are_none_are_refused():
    rng = np.random.default_rng(1)
    gallery, query = labelled(rng, ["1", "2"], ["b", "b"]), labelled(rng, ["1"], ["a"])
    with pytest.raises(EvaluationError, match="track 't' has images of several pids or cameras"):
        evaluate_tracks(query, gallery, ["t", "t"])
    with pytest.raises(EvaluationError, match="2 gallery images, and 1 say which track"):
        evaluate_tracks(query, gallery, ["t"])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 9),
    rows=st.integers(1, 400),
    dim=st.sampled_from([3, 24, 2048]),
)
def test_scores_of_all_pairs_and_bare_rankings_are_those_of_vecdot(seed, queries, rows, dim):
    rng = np.random.default_rng(seed)
    asked, vectors = unit_rows(rng, queries, dim), unit_rows(rng, rows, dim)
    vectors[rng.integers(0, rows, rows // 3)] = asked[0]
    scores = every_score(asked, vectors)
    for place, query in enumerate(asked):
        np.testing.assert_array_equal(scores[place], np.vecdot(vectors, query))
    found, expected = (
        rank_bare(asked, vectors, top_k=7),
        rank_plainly(asked, vectors, np.arange(rows), top_k=min(7, rows)),
    )
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
