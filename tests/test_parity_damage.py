"""Damage done to a real artifact's graph: the gate refuses each kind, at the widest bounds, and says why."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from reidserve.datasets import Crop, read_crops
from reidserve.embed import Embedder, Precision
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import EvaluationError
from reidserve.export.parity import Candidate, Parity, measure, table_lines
from tests.conftest import write_crops

Damage = Callable[[onnx.GraphProto], None]
REFERENCE = "fp32/onnxruntime-cpu"


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Crop]:
    """240 crops: 80 pids, 3 cameras."""
    folder = tmp_path_factory.mktemp("crops") / "crops"
    write_crops(folder, pids=80, camids=3)
    return read_crops(folder)


@pytest.fixture(scope="module")
def gate(model: Path, embedder: Embedder, crops: Sequence[Crop]) -> Callable[..., Parity]:
    """Hold the artifact's graph, once something was done to it, to the artifact."""

    def hold(damage: Damage, precision: Precision = "int8") -> Parity:
        graph = onnx.load(model / MODEL_FILE)
        damage(graph.graph)
        onnx.checker.check_model(graph)
        damaged = Embedder(embedder.contract, OnnxSession(graph.SerializeToString()))
        candidate = Candidate(f"{precision}/candidate", precision, damaged)
        return measure(Candidate(REFERENCE, "fp32", embedder), [candidate], crops, crops)

    return hold


def weights(change: Callable[[NDArray[np.float32]], NDArray[np.generic]]) -> Damage:
    """Change the weights of each layer."""

    def damage(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name.startswith("backbone/w"):
                changed = change(numpy_helper.to_array(tensor)).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    return damage


def perturbed(by: float) -> Damage:
    """Noise on all weights, of some share of their spread."""
    return weights(
        lambda values: values + by * values.std() * np.random.default_rng(values.size).standard_normal(values.shape)
    )


def cut(graph: onnx.GraphProto, output: str) -> None:
    """Take out the operator that gives an output: its first input goes on in its place."""
    (place,) = (place for place, node in enumerate(graph.node) if output in node.output)
    node = graph.node[place]
    node.CopyFrom(helper.make_node("Identity", [node.input[0]], [output]))


def without_normalisation(graph: onnx.GraphProto) -> None:
    """Neither mean nor std: the backbone sees 0..1."""
    cut(graph, "centred")
    cut(graph, "pixels")


def without_mean(graph: onnx.GraphProto) -> None:
    cut(graph, "centred")


def without_unit_length(graph: onnx.GraphProto) -> None:
    cut(graph, "embeddings")


def swapped(graph: onnx.GraphProto) -> None:
    """Blue comes first, where red should."""
    (place,) = (place for place, node in enumerate(graph.node) if "rgb" in node.output)
    graph.node[place].output[0] = "rgb_before"
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    graph.node.insert(place + 1, helper.make_node("Gather", ["rgb_before", "order"], ["rgb"], axis=1))


def test_the_artifact_ranks_well_enough_to_lose_something(gate: Callable[..., Parity]):
    found = gate(lambda graph: None)
    reference = found.rows[0]
    assert reference.mAP is not None
    assert 0.6 < reference.mAP < 0.95
    assert (found.queries, found.identities) == (240, 80)


@pytest.mark.parametrize(
    ("precision", "twin"),
    [("fp32", lambda graph: None), ("fp16", weights(lambda values: values.astype(np.float16)))],
    ids=["the same graph", "weights rounded to half precision"],
)
def test_an_undamaged_twin_passes(gate: Callable[..., Parity], precision: Precision, twin: Damage):
    found = gate(twin, precision)
    assert found.refusals() == []
    assert found.rows[1].cosine_min > 0.999
    assert [line.split()[-1] for line in table_lines(found)[1:4]] == ["reference", "passed", "passed"]


@pytest.mark.parametrize(
    "damage",
    [perturbed(0.1), perturbed(0.3), without_normalisation, without_mean, swapped],
    ids=["weights, a little", "weights", "normalisation", "mean", "bgr"],
)
def test_damage_is_refused_for_the_points_it_costs_at_the_widest_bounds(gate: Callable[..., Parity], damage: Damage):
    found = gate(damage)
    own, mixed = found.rows[1:]
    assert mixed.change is not None
    assert mixed.change < -5
    assert "points of mAP are lost" in (mixed.refused or "")
    assert f"int8/candidate on the gallery of {REFERENCE}: {mixed.refused}" in found.refusals()
    assert own.refused is not None
    assert found.rows[1].top10 < 0.9


def test_embeddings_that_are_not_of_unit_length_are_no_embeddings(gate: Callable[..., Parity]):
    with pytest.raises(EvaluationError, match="int8/candidate: none of 240 query images .* no unit vector"):
        gate(without_unit_length)


def test_damage_that_cosines_let_through_is_seen_by_points(gate: Callable[..., Parity]):
    for row in gate(perturbed(0.1)).rows[1:]:
        assert row.cosine_min > 0.95
        assert (row.refused or "").split(" ", 1)[1].startswith("points of mAP are lost")


def test_damage_that_points_let_through_is_seen_by_cosines_and_on_the_references_gallery(gate: Callable[..., Parity]):
    """All embeddings turned alike rank as before among themselves, and find nothing among others."""

    def turned(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == "backbone/w3":
                values = numpy_helper.to_array(tensor)
                turn = np.linalg.qr(np.random.default_rng(0).standard_normal((values.shape[1],) * 2))[0]
                tensor.CopyFrom(numpy_helper.from_array((values @ turn).astype(np.float32), tensor.name))

    own, mixed = gate(turned).rows[1:]
    assert own.change == pytest.approx(0, abs=0.2)
    assert (own.refused or "").startswith("an image's two embeddings have a cosine of")
    assert "points of mAP are lost" in (mixed.refused or "")
