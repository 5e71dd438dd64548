import numpy as np
import pytest

from reidserve.evaluate import Labelled, Labels
from reidserve.evaluate.agreement import find_nearest
from tests.conftest import unit_rows


def labelled(rows: np.ndarray, sources: list[str | None] | None = None) -> Labelled:
    nothing: list[str | None] = [None] * len(rows)
    return Labelled(rows, Labels(nothing, nothing, sources or nothing))


def plain(query: Labelled, gallery: Labelled, top_k: int) -> list[list[int]]:
    found = []
    for vector, source in zip(query.embeddings, query.labels.sources, strict=True):
        scores = np.vecdot(gallery.embeddings, vector)
        places = [place for place, other in enumerate(gallery.labels.sources) if other != source or source is None]
        found.append(sorted(places, key=lambda place: (-scores[place], place))[:top_k])
    return found


@pytest.mark.parametrize("named", [False, True])
def test_the_nearest_are_those_of_a_plain_loop_that_leaves_out_the_querys_own_image(named: bool):
    rng = np.random.default_rng(0)
    rows = unit_rows(rng, 40, 8)
    # Some files stand twice in the gallery.
    names: list[str | None] = [f"{place % 35}.jpg" if named else None for place in range(40)]
    gallery = labelled(rows, names)
    query = labelled(rows[:12], names[:12])
    nearest = find_nearest(query, gallery, top_k=5)
    assert nearest.rows.tolist() == plain(query, gallery, 5)
    assert (nearest.rows[:, 0] == np.arange(12)).all() != named


def test_a_gallery_smaller_than_was_asked_for_ends_in_no_place():
    rows = unit_rows(np.random.default_rng(0), 3, 8)
    query = labelled(rows[:1], ["0.jpg"])
    nearest = find_nearest(query, labelled(rows, ["0.jpg", "1.jpg", "2.jpg"]), top_k=10)
    assert sorted(nearest.rows[0, :2].tolist()) == [1, 2]
    assert (nearest.rows[0, 2:] == -1).all()
    assert nearest.agreement(nearest, 10) == 1


def test_agreement_is_the_share_of_the_nearest_that_both_find():
    rng = np.random.default_rng(1)
    one, other = unit_rows(rng, 30, 8), unit_rows(rng, 30, 8)
    here, there = (find_nearest(labelled(rows[:20]), labelled(rows[10:]), top_k=10) for rows in (one, other))
    for k in (1, 10):
        expected = np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(here.rows, there.rows, strict=True)])
        assert here.agreement(there, k) == pytest.approx(expected)
        assert here.agreement(here, k) == 1
    assert here.agreement(there, 10) < 0.9


def test_of_entries_that_are_equally_near_any_counts():
    query, rows = unit_rows(np.random.default_rng(2), 1, 8), unit_rows(np.random.default_rng(3), 4, 8)
    gallery = labelled(np.stack([rows[0], query[0], query[0], rows[1]]))
    turned = labelled(np.stack([rows[0], rows[1], query[0], rows[2]]))
    one, other = (find_nearest(labelled(query), some, top_k=1) for some in (gallery, turned))
    assert (one.rows.tolist(), other.rows.tolist()) == ([[1]], [[2]])
    assert one.agreement(other, 1) == 1
    assert other.agreement(one, 1) == 0
