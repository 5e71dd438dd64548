from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from reidserve.errors import ExportError
from reidserve.export.flavours import make_half, measure_ranges
from reidserve.export.flavours.operators import operators
from tests.flavours import draw_batch, embed, resnet_graph, scale_weights, small_graph, worst_cosine

BATCH = draw_batch(range(8))
PIXELS = ("levels", "rgb", "pixels/scaled", "pixels")
LENGTH = ("norm", "divisor", "embeddings")


def formats(graph: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor, as ONNX infers it."""
    inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True).graph
    typed = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return typed | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def test_embeddings_are_nearly_those_of_float32_from_half_the_bytes():
    graph = resnet_graph()
    half = make_half(graph)
    embeddings = embed(half, BATCH)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert worst_cosine(embed(graph, BATCH), embeddings) > 0.99999
    assert np.abs(embed(graph, BATCH) - embeddings).max() > 1e-6  # it did leave float32
    assert half.ByteSize() < 0.51 * graph.ByteSize()
    alone = np.concatenate([embed(half, crop[np.newaxis]) for crop in BATCH[:3]])
    np.testing.assert_array_equal(alone, embeddings[:3])


def test_pixels_instance_norm_and_length_stay_float32_and_the_rest_does_not():
    half = make_half(resnet_graph())
    found = formats(half)
    statistics = [node for node in half.graph.node if node.op_type == "InstanceNormalization"]
    assert len(statistics) == 6
    for name in (*PIXELS, *LENGTH, *(name for node in statistics for name in (*node.input, *node.output))):
        assert found[name] == TensorProto.FLOAT, name
    convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for name in (name for node in convolutions for name in (*node.input, *node.output)):
        assert found[name] == TensorProto.FLOAT16, name


def test_there_is_one_cast_between_two_formats():
    half = make_half(resnet_graph())
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    cast = {node.output[0] for node in casts}
    assert not cast.intersection(node.input[0] for node in casts)
    assert max(Counter(node.input[0] for node in casts).values()) == 1
    # Those of the crops and the pixels, two about each InstanceNorm, and the feature's.
    assert len(casts) == 1 + 1 + 2 * 6 + 1


def test_kept_operators_compute_in_float32():
    graph = resnet_graph()
    names = operators(graph)
    (kept,) = (name for name in names if "layer2.0/bn2" in name)
    found = formats(make_half(graph, kept=[kept]))
    (node,) = (node for node in make_half(graph, kept=[kept]).graph.node if kept in node.output)
    assert {found[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT}
    whole = make_half(graph, kept=names)
    np.testing.assert_array_equal(embed(whole, BATCH), embed(graph, BATCH))
    assert TensorProto.FLOAT16 not in formats(whole).values()


def test_a_weight_beyond_float16_is_refused_by_name_unless_its_reader_is_kept():
    graph = small_graph(edit=lambda graph: scale_weights(graph, "w3", [1e6] * 128, axis=0))
    with pytest.raises(ExportError, match=r"backbone/w3 reaches .*float16 ends at 65504"):
        make_half(graph)
    kept = make_half(graph, kept=["backbone/feature"])
    assert worst_cosine(embed(kept, BATCH), embed(graph, BATCH)) > 0.99999


def test_a_value_beyond_float16_is_refused_by_name_unless_its_operators_are_kept():
    def large(graph: onnx.GraphProto) -> None:
        scale_weights(graph, "w1", [3e4] * 8, axis=0)
        scale_weights(graph, "b1", [3e4] * 8, axis=0)
        scale_weights(graph, "w2", [1e-4] * 8, axis=1)

    graph = small_graph(edit=large)
    ranges = measure_ranges(graph, [BATCH])
    for kept in ([], ["backbone/c1"]):
        with pytest.raises(ExportError, match=r"backbone/[cr]1 reaches .*float16 ends at 65504"):
            make_half(graph, kept=kept, ranges=ranges)
    half = make_half(graph, kept=["backbone/c1", "backbone/c2"], ranges=ranges)
    assert worst_cosine(embed(half, BATCH), embed(graph, BATCH)) > 0.99999
    with pytest.raises(ExportError, match="measured on the graph"):
        make_half(small_graph(), ranges=ranges)


def test_an_operator_to_keep_that_is_not_there_is_refused():
    with pytest.raises(ExportError, match="no operator backbone/c9 to keep"):
        make_half(small_graph(), kept=["backbone/c1", "backbone/c9"])


def test_a_graph_with_branches_is_refused():
    graph = small_graph()
    branch = helper.make_graph([helper.make_node("Identity", ["embeddings"], ["out"])], "branch", [], [])
    graph.graph.node.append(helper.make_node("If", ["condition"], ["end"], then_branch=branch, else_branch=branch))
    with pytest.raises(ExportError, match=r"branches or loops \(If\)"):
        make_half(graph)


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
def test_older_opsets_have_a_half_flavour_too(opset: int):
    graph = small_graph(opset=opset)
    half = make_half(graph)
    onnx.checker.check_model(half, full_check=True)
    assert worst_cosine(embed(half, BATCH), embed(graph, BATCH)) > 0.99999


def test_inputs_that_the_schema_wants_in_float32_stay_so():
    def enlarge(graph: onnx.GraphProto) -> None:
        graph.initializer.append(helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 1, 1]))
        graph.node.insert(2, helper.make_node("Resize", ["r1", "", "scales"], ["large"], mode="nearest"))
        graph.node[3].input[0] = "large"

    graph = small_graph(edit=enlarge)
    half = make_half(graph)
    found = formats(half)
    (resize,) = (node for node in half.graph.node if node.op_type == "Resize")
    assert found[resize.input[0]] == found[resize.output[0]] == TensorProto.FLOAT16
    assert found[resize.input[2]] == TensorProto.FLOAT
    assert worst_cosine(embed(half, BATCH), embed(graph, BATCH)) > 0.99999


def test_equal_graphs_give_equal_bytes_and_are_left_as_they_were():
    graph = small_graph()
    before = graph.SerializeToString(deterministic=True)
    assert make_half(graph).SerializeToString(deterministic=True) == (
        make_half(small_graph()).SerializeToString(deterministic=True)
    )
    assert graph.SerializeToString(deterministic=True) == before
