from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from reidserve.embed.onnx_session import OnnxSession
from reidserve.export.convert.fold import count_operators, fold
from tests.conftest import foreign_model
from tests.test_wrap import branching

pytest.importorskip("torch", reason="needs the [train] extra")

from reidserve.export.convert import wrap
from reidserve.export.convert.feeding import feed_by_hand
from reidserve.export.convert.from_checkpoint import trace
from reidserve.export.model import Architecture
from tests.test_from_checkpoint import FEEDING, VARIANTS, lively_network

BOUND = 2e-6
OTHER = Architecture(
    backbone="resnet18", pooling="gem", non_local=(0, 0, 1, 0), neck_relu=True, stem_relu=False, stem_pool="ceil"
)
ARCHITECTURES = VARIANTS | {"gem, non-local": OTHER}
FOLDED = ["ibn-a", "parts after their necks", "gem, non-local"]
REST = [pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS if variant not in FOLDED]
NOISE = np.random.default_rng(0).integers(0, 256, (4, 64, 32, 3), dtype=np.uint8)
BLOCKS = np.random.default_rng(1).integers(0, 256, (4, 8, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
BATCH = np.concatenate([NOISE, BLOCKS])


@cache
def backbone(variant: str) -> onnx.ModelProto:
    return trace(lively_network(ARCHITECTURES[variant]), height=64, width=32)


@cache
def traced(variant: str, *, flip: bool = False) -> onnx.ModelProto:
    return wrap(
        backbone(variant),
        feature="feature",
        height=64,
        width=32,
        dim=ARCHITECTURES[variant].feature_dim,
        preprocessing=FEEDING.preprocessing,
        flip=flip,
    )


def to_bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def embed(model: onnx.ModelProto, batch: np.ndarray = BATCH) -> np.ndarray:
    return OnnxSession(to_bytes(model))(batch)


def difference(one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    return float(np.abs(embed(one) - embed(other)).max())


@pytest.mark.parametrize("variant", [*FOLDED, *REST])
def test_a_folded_graph_computes_the_same_in_fewer_operators(variant: str):
    given = traced(variant)
    folded = fold(given)
    onnx.checker.check_model(folded.graph, full_check=True)
    session = OnnxSession(to_bytes(folded.graph))
    embeddings = session(BATCH)
    np.testing.assert_allclose(embeddings, embed(given), rtol=0, atol=BOUND)
    alone = np.concatenate([session(crop[np.newaxis]) for crop in BATCH[::3]])
    np.testing.assert_allclose(alone, embeddings[::3], rtol=0, atol=BOUND)
    assert set(folded.after).isdisjoint({"Constant", "Expand", "Identity", "Shape", "Slice"})
    # Only that of IBN-a's second half stays, beside each InstanceNormalization.
    assert folded.after.get("BatchNormalization") == folded.after.get("InstanceNormalization")
    assert sum(folded.after.values()) < sum(folded.before.values()) * 0.8
    assert to_bytes(fold(folded.graph).graph) == to_bytes(folded.graph)


def test_equal_graphs_are_folded_to_equal_bytes_and_left_as_they_were():
    data = to_bytes(traced("ibn-a"))
    assert to_bytes(fold(traced("ibn-a")).graph) == to_bytes(fold(onnx.load_model_from_string(data)).graph)
    assert to_bytes(traced("ibn-a")) == data


def test_what_is_left_is_counted():
    folded = fold(traced("ibn-a"))
    kept = {"Cast": 1, "InstanceNormalization": 6, "MaxPool": 1, "Split": 6, "GlobalAveragePool": 1}
    kept |= {"Conv": 20, "Relu": 17, "Transpose": 1, "ReduceL2": 1, "Max": 1}
    before = {"Add": 8, "BatchNormalization": 21, "Concat": 7, "Constant": 7, "Div": 3, "Flatten": 2}
    before |= {"Reshape": 1, "Shape": 1, "Slice": 1, "Sub": 1}
    assert folded.before == kept | before == count_operators(traced("ibn-a"))
    # Two Adds and two Muls more: of the pixels' normalisation and of the neck.
    assert folded.after == kept | {"Add": 10, "BatchNormalization": 6, "Concat": 6, "Div": 1, "Flatten": 1, "Mul": 2}
    assert (sum(folded.before.values()), sum(folded.after.values())) == (107, 81)


def test_a_flipping_graph_is_folded_as_far():
    given = traced("ibn-a", flip=True)
    folded = fold(given)
    assert difference(folded.graph, given) <= BOUND
    more = {kind: folded.after[kind] - count for kind, count in fold(traced("ibn-a")).after.items()}
    assert {kind for kind, count in more.items() if count} == {"Add", "Concat", "Div", "Max", "ReduceL2", "Split"}
    assert max(more.values()) == folded.after["Gather"] == 1


def test_every_operator_has_a_name_of_its_own_and_every_constant_is_read():
    graph = fold(traced("parts after their necks")).graph.graph
    assert len({node.name for node in graph.node} - {""}) == len(graph.node)
    read = {name for node in graph.node for name in node.input}
    assert [tensor.name for tensor in graph.initializer if tensor.name not in read] == []
    assert len({tensor.name for tensor in graph.initializer}) == len(graph.initializer)


def test_pixels_are_normalised_as_by_hand():
    graph = fold(traced("ibn-a")).graph
    fed = graph.graph.output.add(name="pixels")
    fed.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    inner = onnx.utils.Extractor(graph).extract_model(["crops"], ["pixels"])
    assert count_operators(inner) == {"Add": 1, "Cast": 1, "Mul": 1, "Transpose": 1}
    levels = np.arange(256, dtype=np.uint8).repeat(3 * 8).reshape(1, 64, 32, 3)
    np.testing.assert_allclose(embed(inner, levels), feed_by_hand(levels, FEEDING.preprocessing), rtol=0, atol=1e-6)


def set_epsilon(model: onnx.ModelProto, epsilon: float) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "BatchNormalization" and attribute.name == "epsilon":
                attribute.f = epsilon


def turn_bias(model: onnx.ModelProto) -> None:
    """In the first convolution, give each channel the bias that the norm left to the one before it."""
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[2])
    bias.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(bias), 1), bias.name))


def centre_otherwise(model: onnx.ModelProto) -> None:
    shift = next(tensor for tensor in model.graph.initializer if tensor.name == "pixels/shift")
    shift.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(shift) + np.float32(1e-3), shift.name))


@pytest.mark.parametrize(
    ("before", "after"),
    [(lambda model: set_epsilon(model, 1e-4), None), (None, turn_bias), (None, centre_otherwise)],
    ids=["another epsilon", "another channel's", "another mean"],
)
def test_a_wrong_folding_would_be_seen(before: Callable | None, after: Callable | None):
    given = onnx.ModelProto()
    given.CopyFrom(traced("ibn-a"))
    if before:
        before(given)
    folded = fold(given).graph
    if after:
        after(folded)
    assert difference(folded, traced("ibn-a")) > 5 * BOUND


def test_a_graph_with_branches_is_given_back():
    model = foreign_model(edit=branching)
    folded = fold(model)
    assert folded.graph == model
    assert folded.after == folded.before == count_operators(model)


SMALL = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[N, 2, 6, 4] x) => ({outputs})
<float[3, 2, 3, 3] w, float[3] b, float[5] d,
 float[3] n1, float[3] n2, float[3] n3, float[3] n4, float[3, 1, 1] k>
{{
    {body}
}}
"""
MAP, ROWS = "float[N, 3, 6, 4] y", "float[N, 5] y"
BODIES = {
    "norm and factors after a convolution": (
        "c1 = Conv <pads = [1, 1, 1, 1]> (x, w, b) c2 = BatchNormalization (c1, n1, n2, n3, n4) c3 = Mul (c2, k) "
        "c4 = Sub (k, c3) y = Div (c4, k)",
        MAP,
        {"Conv": 1},
    ),
    "equal weights, one of them scaled": (
        "c1 = Conv <pads = [1, 1, 1, 1]> (x, w) c2 = Mul (c1, k) c3 = Conv <pads = [1, 1, 1, 1]> (x, w) "
        "y = Sub (c2, c3)",
        MAP,
        {"Conv": 2, "Sub": 1},
    ),
    "a convolution that two read": (
        "c1 = Conv <pads = [1, 1, 1, 1]> (x, w) c2 = BatchNormalization (c1, n1, n2, n3, n4) y = Max (c1, c2)",
        MAP,
        {"BatchNormalization": 1, "Conv": 1, "Max": 1},
    ),
    "a factor that is no channel's": (
        "c1 = Conv <pads = [1, 1, 1, 1]> (x, w) e = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> () "
        "y = Mul (c1, e)",
        MAP,
        {"Conv": 1, "Mul": 1},
    ),
    "a constant divided by the map": (
        "c1 = Conv <pads = [1, 1, 1, 1]> (x, w) y = Div (k, c1)",
        MAP,
        {"Conv": 1, "Div": 1},
    ),
    "a linear layer": (
        "p = GlobalAveragePool (x) f = Flatten (p) g = Constant <value = float[2, 5] "
        "{1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0}> () h = Gemm (f, g, d) m = Mul (h, d) y = Identity (m)",
        ROWS,
        {"Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1},
    ),
    "what is idle": (
        "c1 = Conv <pads = [1, 1, 1, 1]> (x, w) c2 = Identity (c1) c3 = Dropout (c2) u = Relu (c3) y = Relu (c3)",
        MAP,
        {"Conv": 1, "Relu": 1},
    ),
    "a row's norm": (
        "p = Conv (x, w) q = GlobalAveragePool (p) f = Flatten (q) v = Relu (f) "
        "s = BatchNormalization (v, n1, n2, n3, n4) y = Identity (s)",
        "float[N, 3] y",
        {"Add": 1, "Conv": 1, "Flatten": 1, "GlobalAveragePool": 1, "Mul": 1, "Relu": 1},
    ),
}


def small_model(body: str, outputs: str) -> onnx.ModelProto:
    model = parser.parse_model(SMALL.format(body=body, outputs=outputs))
    random = np.random.default_rng(7)
    sizes = {"w": (3, 2, 3, 3), "b": (3,), "d": (5,), "k": (3, 1, 1)} | dict.fromkeys(("n1", "n2", "n3", "n4"), (3,))
    del model.graph.initializer[:]
    for name, size in sizes.items():
        values = random.uniform(0.5, 2, size).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


@pytest.mark.parametrize("body", BODIES)
def test_small_graphs_are_folded_to_the_operators_that_are_needed(body: str):
    text, outputs, expected = BODIES[body]
    model = small_model(text, outputs)
    folded = fold(model)
    onnx.checker.check_model(folded.graph, full_check=True)
    assert folded.after == expected
    x = np.random.default_rng(3).standard_normal((2, 2, 6, 4)).astype(np.float32)
    values = [value for each in (model, folded.graph) for value in ReferenceEvaluator(each).run(["y"], {"x": x})]
    given, got = map(np.asarray, values)
    np.testing.assert_allclose(got, given, rtol=2e-6, atol=2e-6)


def test_an_output_keeps_its_name():
    model = small_model("c = Conv (x, w) i = Identity (c) y = Identity (i)", "float[N, 3, 4, 2] y")
    folded = fold(model).graph
    assert [node.output[0] for node in folded.graph.node] == ["y"] == [value.name for value in folded.graph.output]
    straight = small_model("y = Identity (x)", "float[N, 2, 6, 4] y")
    assert fold(straight).after == {"Identity": 1}
    both = small_model("z = Conv (x, w) y = Identity (z)", "float[N, 3, 4, 2] y, float[N, 3, 4, 2] z")
    assert fold(both).after == {"Conv": 1, "Identity": 1}
