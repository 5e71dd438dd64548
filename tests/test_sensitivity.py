import math
from collections.abc import Collection

import numpy as np
import onnx
import pytest

from reidserve.errors import ExportError
from reidserve.export.flavours import choose_kept, make_half, make_integer, measure_ranges, rank_sensitivity
from reidserve.export.flavours.operators import operators
from tests.flavours import draw_batch, embed, scale_weights, small_graph, wide_channel, worst_cosine

CALIBRATION, BATCH = draw_batch(range(100, 116)), draw_batch(range(8))
FIRST, SECOND = "backbone/c1", "backbone/c2"


def integer_maker(graph: onnx.ModelProto):
    ranges = measure_ranges(graph, [CALIBRATION])
    return lambda kept: make_integer(graph, ranges, signed=False, kept=kept)


def test_the_loss_is_that_of_one_operator_alone():
    graph = small_graph()
    make = integer_maker(graph)
    names = operators(graph)
    assert names == [FIRST, SECOND, "backbone/p", "backbone/feature"]
    ranked = dict(rank_sensitivity(graph, make, BATCH))
    for name in names:
        alone = embed(make([other for other in names if other != name]), BATCH)
        cosines = (embed(graph, BATCH).astype(np.float64) * alone).sum(1)
        assert ranked[name] == pytest.approx(max(1 - cosines.mean(), 0), abs=1e-9)
    assert min(ranked[FIRST], ranked[SECOND]) > 1e-6
    assert ranked["backbone/p"] == 0  # int8 leaves the pooling alone


def test_a_channel_a_thousand_times_wider_is_found_and_its_operators_are_kept():
    plain, graph = small_graph(), small_graph(edit=wide_channel(1000))
    np.testing.assert_allclose(embed(graph, BATCH), embed(plain, BATCH), atol=1e-5)
    make = integer_maker(graph)
    reference = embed(graph, BATCH)
    assert worst_cosine(reference, embed(make([]), BATCH)) < 0.9
    ranking = rank_sensitivity(graph, make, BATCH)
    # Both meet the wide tensor: the one gives it, the other takes it.
    assert {name for name, _ in ranking[:2]} == {FIRST, SECOND}
    assert ranking[1][1] > 100 * ranking[2][1]
    ordinary = dict(rank_sensitivity(plain, integer_maker(plain), BATCH))
    assert ranking[1][1] > 100 * max(ordinary.values())

    def lost(candidate: onnx.ModelProto) -> float:
        return 100 * (1 - worst_cosine(reference, embed(candidate, BATCH)))

    chosen = choose_kept(ranking, make, lost, budget=0.5)
    assert set(chosen.kept) == {FIRST, SECOND}
    assert chosen.lost == lost(chosen.graph) <= 0.5
    assert lost(make([])) > 10


@pytest.mark.parametrize("factor", [3e4, 1e6], ids=["values", "weights"])
def test_what_overflows_in_float16_is_found_and_kept(factor: float):
    def large(graph: onnx.GraphProto) -> None:
        scale_weights(graph, "w1", [factor] * 8, axis=0)
        scale_weights(graph, "b1", [factor] * 8, axis=0)
        scale_weights(graph, "w2", [1 / factor] * 8, axis=1)

    def make(kept: Collection[str]) -> onnx.ModelProto:
        return make_half(graph, kept=kept, ranges=ranges)

    graph = small_graph(edit=large)
    ranges = measure_ranges(graph, [CALIBRATION])
    reference = embed(graph, BATCH)
    ranking = rank_sensitivity(graph, make, BATCH)
    assert [name for name, loss in ranking if loss == math.inf] == [FIRST, SECOND]

    def lost(candidate: onnx.ModelProto) -> float:
        return 100 * (1 - worst_cosine(reference, embed(candidate, BATCH)))

    chosen = choose_kept(ranking, make, lost, budget=0.01)
    assert chosen.kept == (FIRST, SECOND)


def test_what_cannot_be_made_at_all_is_refused_and_no_operators_fault():
    graph, other = small_graph(), small_graph(edit=wide_channel(2))
    ranges = measure_ranges(other, [CALIBRATION])
    with pytest.raises(ExportError, match="measured on the graph"):
        rank_sensitivity(graph, lambda kept: make_integer(graph, ranges, signed=False, kept=kept), BATCH)


class Tried:
    """A maker and its loss: points by how many operators are kept."""

    def __init__(self, points: dict[int, float]) -> None:
        self.points = points
        self.kept: list[tuple[str, ...]] = []

    def make(self, kept: Collection[str]) -> onnx.ModelProto:
        self.kept.append(tuple(kept))
        return onnx.ModelProto(producer_name=str(len(kept)))

    def lost(self, graph: onnx.ModelProto) -> float:
        return self.points[int(graph.producer_name)]


RANKING = [(name, 1.0 / place) for place, name in enumerate("abcdefghij", start=1)]


def test_operators_are_kept_by_doubling_until_the_budget_is_met():
    tried = Tried({0: 4, 1: 3, 2: 1, 4: 0.5, 8: 0})
    chosen = choose_kept(RANKING, tried.make, tried.lost, budget=0.5)
    assert [len(kept) for kept in tried.kept] == [0, 1, 2, 4]
    assert chosen.kept == ("a", "b", "c", "d")
    assert (chosen.lost, chosen.graph.producer_name) == (0.5, "4")


def test_nothing_is_kept_where_nothing_is_lost():
    tried = Tried({0: -0.1})
    assert choose_kept(RANKING, tried.make, tried.lost, budget=0.0).kept == ()
    assert choose_kept([], tried.make, tried.lost, budget=0.0).kept == ()


def test_a_budget_that_sparing_does_not_meet_is_refused():
    tried = Tried({0: 4, 1: 3, 2: 2, 4: math.nan, 8: 0.75})
    with pytest.raises(ExportError, match=r"loses 0.75 points of mAP at best, with up to 8 of 10 .*0.5 were allowed"):
        choose_kept(RANKING, tried.make, tried.lost, budget=0.5)
    assert [len(kept) for kept in tried.kept] == [0, 1, 2, 4, 8]
