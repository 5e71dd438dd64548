import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidserve.datasets import path_to_text
from reidserve.errors import EvaluationError, ImageError
from reidserve.evaluate import Evaluation, Labelled, Labels, evaluate
from reidserve.evaluate.picture import QUERY, RIGHT, WRONG, draw_rankings
from reidserve.evaluate.shown import Shown, choose_groups, choose_spread, show
from reidserve.evaluate.trials import evaluate_one_per_identity
from tests.conftest import unit_rows, write_crops


def turned(*degrees: float) -> np.ndarray:
    angles = np.radians(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def parts() -> tuple[Labelled, Labelled]:
    """One query of camera 1; the gallery holds it too, then its own camera, junk, a wrong one, a right one."""
    query = Labelled(turned(0), Labels(["a"], ["1"], ["me"]))
    pids, camids = ["a", "a", "-1", "b", "a", "b"], ["1", "1", "2", "2", "2", "2"]
    gallery = Labelled(turned(0, 5, 10, 15, 20, 25), Labels(pids, camids, ["me", "own", "junk", "b1", "a1", "b2"]))
    return query, gallery


def test_hits_stand_in_order_with_the_dropped_ones_in_place_and_the_query_itself_left_out(parts):
    (shown,) = show(evaluate(*parts), *parts, [0], top_k=2)
    assert [(hit.source, hit.verdict) for hit in shown.hits] == [
        *(("own", "dropped"), ("junk", "dropped"), ("b1", "wrong"), ("a1", "right"))
    ]
    assert [hit.score for hit in shown.hits] == pytest.approx(np.cos(np.radians([5, 10, 15, 20])), abs=1e-6)
    assert (shown.source, shown.pid, shown.camid) == ("me", "a", "1")
    assert (shown.average_precision, shown.first, shown.dropped) == (0.5, 2, 2)


def test_of_many_dropped_entries_the_first_few_are_shown_and_all_are_counted(parts):
    query, gallery = parts
    angles = np.linspace(1, 9, 30)
    labels = Labels(
        ["a"] * 30 + list(gallery.labels.pids),
        ["1"] * 30 + list(gallery.labels.camids),
        [f"own{place}" for place in range(30)] + list(gallery.labels.sources),
    )
    gallery = Labelled(np.concatenate([turned(*angles), gallery.embeddings]), labels)
    (shown,) = show(evaluate(query, gallery), query, gallery, [0], top_k=1)
    assert [hit.source for hit in shown.hits] == ["own0", "own1", "own2", "own3", "own4", "b1"]
    assert shown.dropped == 32


def test_equal_scores_are_shown_in_gallery_order():
    query = Labelled(turned(0), Labels(["a"], ["1"], ["q"]))
    gallery = Labelled(turned(7, 7, 7), Labels(["b", "a", "c"], ["2"] * 3, ["g0", "g1", "g2"]))
    (shown,) = show(evaluate(query, gallery), query, gallery, [0])
    assert [hit.source for hit in shown.hits] == ["g0", "g1", "g2"]


def test_what_is_shown_is_what_was_scored():
    rng = np.random.default_rng(1)
    labels = [
        Labels([str(pid) for pid in rng.integers(0, 9, 60)], ["1"] * 60, [f"{part}{n}" for n in range(60)])
        for part in "qg"
    ]
    query, gallery = (Labelled(unit_rows(rng, 60, 8), part) for part in labels)
    evaluation = evaluate(query, Labelled(gallery.embeddings, Labels(labels[1].pids, ["2"] * 60, labels[1].sources)))
    gallery = Labelled(gallery.embeddings, evaluation.gallery)
    places = choose_spread(evaluation, 60)
    for place, shown in zip(places, show(evaluation, query, gallery, places, top_k=60), strict=True):
        ranks = [rank for rank, hit in enumerate(shown.hits, start=1) if hit.verdict == "right"]
        assert ranks == evaluation.outcomes.ranks[evaluation.outcomes.of(place)].tolist()
        assert shown.first == ranks[0]


def test_another_gallery_than_the_one_that_was_ranked_is_refused(parts):
    query, gallery = parts
    with pytest.raises(EvaluationError, match="expected an evaluation of 1 queries against all of 5 entries"):
        show(evaluate(query, gallery), query, gallery.take(np.arange(5)), [0])


def test_galleries_drawn_in_trials_are_refused(parts):
    _, gallery = parts
    drawn = evaluate_one_per_identity(gallery, trials=2)
    with pytest.raises(EvaluationError, match="in 2 trials"):
        show(drawn, gallery, gallery, [0])


def ordered_evaluation(count: int) -> Evaluation:
    """Queries whose only right entry is found at rank 1, 2, ... count."""
    query = Labelled(turned(*[0] * count), Labels([str(n) for n in range(count)], ["1"] * count, [None] * count))
    gallery = Labelled(turned(*range(count)), Labels(query.labels.pids, ["2"] * count, [None] * count))
    return evaluate(query, gallery)


@pytest.mark.parametrize(
    ("count", "best", "median", "worst"),
    [
        (9, [0, 1, 2], [3, 4, 5], [8, 7, 6]),
        (20, [0, 1, 2], [8, 9, 10], [19, 18, 17]),
        (4, [0, 1], [2, 3], []),
        (2, [0], [1], []),
        (1, [0], [], []),
    ],
)
def test_best_median_and_worst_queries_share_none(count, best, median, worst):
    assert choose_groups(ordered_evaluation(count), 3) == {"best": best, "median": median, "worst": worst}


def test_queries_are_spread_from_the_best_to_the_worst():
    assert choose_spread(ordered_evaluation(11), 3) == [0, 5, 10]
    assert choose_spread(ordered_evaluation(2), 6) == [0, 1]


def photographed(paths: list[Path]) -> Labelled:
    rng = np.random.default_rng(0)
    names = [path.name for path in paths]
    labels = Labels([name[:4] for name in names], [name[6] for name in names], [path_to_text(path) for path in paths])
    return Labelled(unit_rows(rng, len(paths), 8), labels)


@pytest.fixture
def ranked(tmp_path: Path) -> tuple[Evaluation, list[Shown]]:
    both = photographed(write_crops(tmp_path / "crops", pids=6))
    evaluation = evaluate(both, both)
    return evaluation, show(evaluation, both, both, choose_spread(evaluation, 4))


def test_a_picture_frames_each_hit_as_right_or_wrong_and_marks_it_too(ranked, tmp_path: Path):
    _, shown = ranked
    draw_rankings(shown, tmp_path / "ranked.png", top_k=5)
    pixels = np.asarray(Image.open(tmp_path / "ranked.png").convert("RGB")).astype(int)
    for line, one in enumerate(shown):
        middle = 14 + 30 + line * 158 + 76
        assert tuple(pixels[middle, 15]) == QUERY
        for column, hit in enumerate([hit for hit in one.hits if hit.verdict != "dropped"][:5], start=1):
            left = 14 + column * 86 + 6
            colour = {"right": RIGHT, "wrong": WRONG}[hit.verdict]
            assert tuple(pixels[middle, left + 1]) == colour
            badge = pixels[middle - 76 + 136 : middle - 76 + 152, left + 64 : left + 80].reshape(-1, 3)
            assert 20 < (badge.sum(axis=1) > 700).sum() < 120
            # Only a cross begins in the upper left corner of its badge.
            assert (tuple(pixels[middle - 76 + 139, left + 67]) != colour) == (hit.verdict == "wrong")


def test_a_picture_of_an_image_that_is_gone_is_an_error_and_leaves_no_file(ranked, tmp_path: Path):
    _, shown = ranked
    Path(shown[0].source).write_bytes(b"nothing")
    with pytest.raises(ImageError):
        draw_rankings(shown, tmp_path / "ranked.png")
    assert not (tmp_path / "ranked.png").exists()


def test_a_picture_that_does_not_fit_the_disk_leaves_what_was_there(ranked, tmp_path: Path):
    _, shown = ranked
    path = tmp_path / "pictures" / "ranked.png"
    path.parent.mkdir()
    path.write_text("an older picture")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            draw_rankings(shown, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "an older picture"
    assert list(path.parent.iterdir()) == [path]
