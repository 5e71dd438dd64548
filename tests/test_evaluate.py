import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reidserve.datasets import Crop
from reidserve.embed import Embedder
from reidserve.errors import EvaluationError
from reidserve.evaluate import Labelled, draw_rankings, embed_crops, evaluate
from reidserve.evaluate.picture import RIGHT, WRONG, best_of, choose_queries
from tests.conftest import unit_rows, write_crops


def plain_evaluation(query: Labelled, gallery: Labelled) -> dict[str, Any]:
    """The rule of Market-1501 word for word: sort everything by (-score, row), walk down, count."""
    precisions, penalties, firsts, unmatchable, positives = [], [], [], 0, 0
    for place in range(len(query)):
        ranked = []
        for row in range(len(gallery)):
            same_pid = gallery.pids[row] is not None and gallery.pids[row] == query.pids[place]
            same_camid = gallery.camids[row] is not None and gallery.camids[row] == query.camids[place]
            same_source = gallery.sources[row] is not None and gallery.sources[row] == query.sources[place]
            if gallery.pids[row] == "-1" or (same_pid and same_camid) or same_source:
                continue
            score = np.vecdot(query.embeddings[place], gallery.embeddings[row])
            ranked.append((-score, row, same_pid))
        right = [rank for rank, (_, _, hit) in enumerate(sorted(ranked), start=1) if hit]
        if not right:
            unmatchable += 1
            continue
        precisions.append(sum(hits / rank for hits, rank in enumerate(right, start=1)) / len(right))
        penalties.append(len(right) / right[-1])
        firsts.append(right[0])
        positives += len(right)
    if not firsts:
        return {"queries": 0}
    return {
        "rank1": np.mean([first <= 1 for first in firsts]),
        "rank5": np.mean([first <= 5 for first in firsts]),
        "rank10": np.mean([first <= 10 for first in firsts]),
        "mAP": np.mean(precisions),
        "mINP": np.mean(penalties),
        "queries": len(firsts),
        "unmatchable": unmatchable,
        "gallery": len(gallery),
        "positives": positives,
    }


def random_part(rng, count, pids, camids, dim, start) -> Labelled:
    return Labelled(
        unit_rows(rng, count, dim),
        [str(pid) if pid < pids else "-1" for pid in rng.integers(0, pids + 1, count)],
        [str(camid) if camid < camids else None for camid in rng.integers(0, camids + 1, count)],
        [str(source) for source in range(start, start + count)],
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 12),
    count=st.integers(1, 60),
    pids=st.integers(1, 8),
    camids=st.integers(1, 4),
    dim=st.integers(1, 40),
    copies=st.integers(0, 60),
    overlap=st.booleans(),
)
def test_scores_equal_the_plain_rule_with_ties_junk_and_missing_positives(
    seed, queries, count, pids, camids, dim, copies, overlap
):
    rng = np.random.default_rng(seed)
    gallery = random_part(rng, count, pids, camids, dim, start=5 if overlap else 1000)
    query = random_part(rng, queries, pids, camids, dim, start=0)
    # Copies and near copies: what a matrix product gets in the wrong order.
    gallery.embeddings[rng.integers(0, count, copies)] = query.embeddings[0]
    nudged = rng.integers(0, count, copies // 2)
    gallery.embeddings[nudged] = np.nextafter(gallery.embeddings[nudged], np.float32(1))
    expected = plain_evaluation(query, gallery)
    if not expected["queries"]:
        with pytest.raises(EvaluationError, match="right entry"):
            evaluate(query, gallery)
        return
    report = asdict(evaluate(query, gallery))
    assert report.pop("protocol") == "market1501"
    assert report == pytest.approx(expected, abs=1e-12)


def part(pids, camids, scores) -> Labelled:
    """Two-dimensional embeddings whose cosine with (1, 0) is the score."""
    embeddings = np.array([[score, np.sqrt(1 - score**2)] for score in scores], np.float32)
    return Labelled(embeddings, pids, camids, [None] * len(pids))


def test_a_worked_example_by_hand():
    query = part(["7"], ["1"], [1.0])
    # Dropped: the own camera's 7 at the top, and junk. Left: wrong, right, wrong, right.
    gallery = part(["7", "-1", "3", "7", "0", "7"], ["1", "2", "2", "2", "3", "3"], [0.99, 0.95, 0.9, 0.8, 0.7, 0.6])
    report = evaluate(query, gallery)
    assert (report.rank1, report.rank5, report.rank10) == (0, 1, 1)
    assert report.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert report.mINP == pytest.approx(2 / 4)
    assert (report.queries, report.unmatchable, report.positives, report.gallery) == (1, 0, 2, 6)


def test_a_tie_goes_to_the_earlier_gallery_row():
    query = part(["7"], ["1"], [1.0])
    assert evaluate(query, part(["7", "3"], ["2", "2"], [0.5, 0.5])).rank1 == 1
    assert evaluate(query, part(["3", "7"], ["2", "2"], [0.5, 0.5])).rank1 == 0


def test_unknown_cameras_are_not_the_same_camera():
    report = evaluate(part(["7"], [None], [1.0]), part(["7", "3"], [None, None], [0.9, 0.5]))
    assert (report.rank1, report.positives) == (1, 1)


def test_a_querys_own_image_is_no_answer_where_cameras_are_unknown():
    embeddings = part(["7", "7"], [None, None], [1.0, 0.2]).embeddings
    both = Labelled(embeddings, ["7", "7"], [None, None], ["a.jpg", "b.jpg"])
    report = evaluate(both, both)
    assert (report.positives, report.rank1) == (2, 1)


def test_queries_that_can_never_match_are_left_out_and_counted():
    query = part(["7", "8"], ["1", "1"], [1.0, 1.0])
    report = evaluate(query, part(["7", "8"], ["2", "1"], [0.9, 0.5]))
    assert (report.queries, report.unmatchable, report.mAP) == (1, 1, 1.0)


def test_nothing_to_score_is_a_clear_answer():
    with pytest.raises(EvaluationError, match="none of 1 queries has a right entry in the gallery of 1"):
        evaluate(part(["7"], ["1"], [1.0]), part(["8"], ["2"], [1.0]))
    with pytest.raises(EvaluationError, match="1 of 1 queries have no pid"):
        evaluate(part([None], ["1"], [1.0]), part(["8"], ["2"], [1.0]))


def test_parts_of_different_length_are_refused():
    with pytest.raises(EvaluationError, match="must be of one length"):
        Labelled(np.zeros((2, 2), np.float32), ["1"], ["1"], [None])


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


def test_a_picture_shows_queries_from_best_to_worst_framed_right_and_wrong(tmp_path: Path):
    paths = write_crops(tmp_path / "crops", pids=4, camids=3)
    labels = [(path.name[:4], path.name[6], str(path)) for path in paths]
    rng = np.random.default_rng(0)
    identities = unit_rows(rng, 4, 16)
    embeddings = identities.repeat(3, axis=0) + 0.4 * unit_rows(rng, 12, 16)
    embeddings[:3] = unit_rows(rng, 3, 16)  # nothing of the first identity is recognised
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    both = Labelled(embeddings, *(list(column) for column in zip(*labels, strict=True)))
    chosen = choose_queries(both, both, 4)
    assert len(set(chosen)) == 4
    assert both.pids[chosen[-1]] == "0001"
    draw_rankings(both, both, tmp_path / "ranked.png", rows=4, top_k=5)
    with Image.open(tmp_path / "ranked.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for line, place in enumerate(chosen):
        frames = [tuple(pixels[14 + 30 + line * 158 + 2, 14 + column * 86 + 6 + 40]) for column in range(1, 6)]
        right = [right for _, right in best_of(both, both, place, 5)]
        assert frames == [RIGHT if hit else WRONG for hit in right]
        assert place not in [row for row, _ in best_of(both, both, place, 12)]


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
    assert gallery.pids == ["0001", "0001", "0002", "0002"]
    np.testing.assert_array_equal(query.embeddings, gallery.embeddings)
    np.testing.assert_array_equal(query.embeddings, embedder.embed_encoded([path.read_bytes() for path in paths]))


def test_no_readable_query_is_a_clear_answer(tmp_path: Path, embedder: Embedder):
    with pytest.raises(EvaluationError, match="none of 1 query images can be read"):
        embed_crops([Crop(tmp_path / "nowhere.jpg", "1")], [], embedder)
