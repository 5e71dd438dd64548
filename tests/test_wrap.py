from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidserve.embed import Preprocessing
from reidserve.embed.onnx_session import OnnxSession
from reidserve.export.convert import wrap
from tests.conftest import DIM, HEIGHT, IMAGENET, WIDTH, foreign_model

BATCH = np.random.default_rng(0).integers(0, 256, (5, HEIGHT, WIDTH, 3), dtype=np.uint8)
# What TransReID, CLIP-ReID and fast-reid's 0..255 models feed.
HALVES = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), colour="rgb")
LEVELS = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255), colour="rgb")
CAFFE = Preprocessing(mean=(104 / 255, 117 / 255, 123 / 255), std=(1 / 255, 1 / 255, 1 / 255), colour="bgr")
IMAGENET_BGR = Preprocessing(mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229), colour="bgr")


def wrapped(
    model: onnx.ModelProto, preprocessing: Preprocessing = IMAGENET, *, feature: str = "feature", dim: int = DIM
):
    return wrap(model, feature=feature, height=HEIGHT, width=WIDTH, dim=dim, preprocessing=preprocessing)


def run_wrapped(
    model: onnx.ModelProto, preprocessing: Preprocessing = IMAGENET, batch: np.ndarray = BATCH
) -> np.ndarray:
    return OnnxSession(wrapped(model, preprocessing).SerializeToString())(batch)


def feed_by_hand(model: onnx.ModelProto, preprocessing: Preprocessing = IMAGENET) -> np.ndarray:
    """The foreign graph on BATCH, everything around it written out in float64."""
    pixels = BATCH[..., [2, 1, 0]] if preprocessing.colour == "bgr" else BATCH
    normal = (pixels / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    features = OnnxSession(model.SerializeToString())(normal.transpose(0, 3, 1, 2).astype(np.float32))
    return np.asarray(features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True))


def pooling_model(opset: int, ir: int) -> onnx.ModelProto:
    """A graph of operators that have not changed since opset 11: the mean of each channel, times weights."""
    weights = np.random.default_rng(3).standard_normal((3, DIM)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["feature"]),
        ],
        "pooling",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, "h", "w"])],
        [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def test_the_graph_takes_uint8_crops_and_gives_unit_embeddings():
    model = wrapped(foreign_model())
    onnx.checker.check_model(model, full_check=True)
    session = OnnxSession(model.SerializeToString())
    assert session.inputs == [("crops", ["N", HEIGHT, WIDTH, 3], "tensor(uint8)")]
    assert session.outputs == [("embeddings", ["N", DIM], "tensor(float)")]
    embeddings = session(BATCH)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "preprocessing",
    [IMAGENET, IMAGENET_BGR, HALVES, LEVELS, CAFFE],
    ids=["imagenet", "imagenet bgr", "halves", "0..255", "caffe"],
)
def test_the_graph_computes_what_the_foreign_one_gives_when_fed_by_hand(preprocessing: Preprocessing):
    expected = feed_by_hand(foreign_model(), preprocessing)
    np.testing.assert_allclose(run_wrapped(foreign_model(), preprocessing), expected, rtol=0, atol=1e-6)


def test_each_preprocessing_gives_other_embeddings():
    # Or the test above would pass for a graph that leaves a step out.
    ways = [run_wrapped(foreign_model(), preprocessing) for preprocessing in (IMAGENET, IMAGENET_BGR, HALVES, CAFFE)]
    for place, first in enumerate(ways):
        for second in ways[place + 1 :]:
            assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(("opset", "ir"), [(11, 6), (11, 3), (13, 7), (17, 8), (18, 8), (20, 9), (21, 10)])
def test_every_opset_since_11_is_wrapped_as_itself(opset: int, ir: int):
    # Opset 18 made the axes of ReduceL2 an input; before IR 4 every initializer stands among the inputs.
    model = pooling_model(opset, ir)
    if ir < 4:
        model.graph.input.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, [3, DIM]))
    made = wrapped(model)
    onnx.checker.check_model(made, full_check=True)
    assert {(entry.domain, entry.version) for entry in made.opset_import} == {("", opset)}
    assert [value.name for value in made.graph.input] == ["crops"]
    np.testing.assert_allclose(run_wrapped(model), feed_by_hand(model), rtol=0, atol=1e-6)


def test_names_of_the_foreign_graph_cannot_clash_with_ours():
    ours = sorted(name for name in names_in(wrapped(foreign_model(), IMAGENET_BGR)) if not name.startswith("backbone/"))
    assert {"crops", "embeddings", "mean", "std", "norm"} <= set(ours)
    plain = foreign_model()
    for start in range(len(ours)):
        # Each foreign name in turn is one of ours.
        names = dict(zip(sorted(names_in(plain)), ours[start:] + ours[:start], strict=False))
        model = foreign_model(edit=partial(rename, names=names))
        made = wrapped(model, IMAGENET_BGR, feature=names.get("feature", "feature"))
        onnx.checker.check_model(made, full_check=True)
        embeddings = OnnxSession(made.SerializeToString())(BATCH)
        np.testing.assert_array_equal(embeddings, run_wrapped(plain, IMAGENET_BGR))


def names_in(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in [*node.input, *node.output]}


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.name = names.get(node.output[0], "")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def test_foreign_symbols_for_sizes_cannot_clash_with_ours():
    # "N" is our batch; here it is a foreign height.
    model = foreign_model(shape=("B", 3, "N", WIDTH))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "B"
    np.testing.assert_array_equal(run_wrapped(model), run_wrapped(foreign_model()))


def branching(graph: onnx.GraphProto) -> None:
    """Put an If before the feature, as tracing makes them; its branches see values of the graph around them."""
    graph.node[-1].output[0] = "raw"
    branches = []
    for name, operator in (("then", "Identity"), ("else", "Neg")):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        node = helper.make_node(operator, ["raw"], [f"{name}_out"], doc_string="/home/anna/secret/train.py:7")
        branches.append(helper.make_graph([node], name, [], [out], doc_string="/home/anna/secret"))
    graph.node.append(helper.make_node("If", ["no"], ["feature"], then_branch=branches[0], else_branch=branches[1]))
    graph.initializer.append(numpy_helper.from_array(np.array(False), "no"))


def test_a_graph_with_branches_is_wrapped():
    np.testing.assert_array_equal(run_wrapped(foreign_model(edit=branching)), -run_wrapped(foreign_model()))


def test_only_the_chosen_output_is_kept():
    model = foreign_model()
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 128]))
    assert [value.name for value in wrapped(model).graph.output] == ["embeddings"]
    np.testing.assert_array_equal(run_wrapped(model), run_wrapped(foreign_model()))
    other = OnnxSession(wrapped(model, feature="f", dim=128).SerializeToString())
    assert other.outputs == [("embeddings", ["N", 128], "tensor(float)")]


def test_where_a_graph_came_from_is_dropped_and_equal_inputs_give_equal_bytes():
    secret = foreign_model(edit=branching)
    graph = secret.graph
    for message in (secret, graph, graph.node[0], graph.initializer[0], graph.input[0], graph.output[0]):
        message.doc_string = "/home/anna/secret"
        message.metadata_props.add(key="path", value="/home/anna/secret")
    graph.value_info.add(name="c1", doc_string="/home/anna/secret").type.tensor_type.elem_type = TensorProto.FLOAT
    secret.producer_name = secret.producer_version = secret.domain = graph.name = "secret"
    data = wrapped(secret).SerializeToString(deterministic=True)
    assert b"secret" not in data
    assert b"reidserve" in data
    assert wrapped(secret).SerializeToString(deterministic=True) == data


def test_an_operator_set_is_imported_once():
    assert [(entry.domain, entry.version) for entry in wrapped(foreign_model()).opset_import] == [("", 17)]


def test_the_foreign_model_is_left_as_it_was():
    model = foreign_model()
    wrapped(model)
    assert model.SerializeToString() == foreign_model().SerializeToString()


def test_a_feature_of_zeros_gives_zeros_and_not_nan():
    def cut(graph: onnx.GraphProto) -> None:
        graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.zeros((128, DIM), np.float32), "w3"))

    np.testing.assert_array_equal(run_wrapped(foreign_model(edit=cut)), np.zeros((5, DIM), np.float32))


def embed_flipped(model: onnx.ModelProto, *, batch: np.ndarray = BATCH) -> np.ndarray:
    made = wrap(model, feature="feature", height=HEIGHT, width=WIDTH, dim=DIM, preprocessing=IMAGENET, flip=True)
    onnx.checker.check_model(made, full_check=True)
    session = OnnxSession(made.SerializeToString())
    assert session.outputs == [("embeddings", ["N", DIM], "tensor(float)")]
    return session(batch)


@pytest.mark.parametrize(("opset", "ir"), [(11, 6), (13, 7), (17, 8), (18, 8), (21, 10)])
def test_a_flipping_graph_gives_the_mean_of_both_directions(opset: int, ir: int):
    # Opset 13 made the sizes of Split an input, opset 18 asks for their number.
    def edit(graph: onnx.GraphProto) -> None:
        graph.node[0].CopyFrom(helper.make_node("MaxPool", ["pixels"], ["left"], kernel_shape=[3, 3], strides=[9, 7]))
        graph.node[1].input[0] = "left"

    model = pooling_model(opset, ir)
    edit(model.graph)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            np.random.default_rng(4).standard_normal((3 * 7 * 5, DIM)).astype(np.float32), "weights"
        )
    )
    total = run_wrapped(model) + run_wrapped(model, batch=np.ascontiguousarray(BATCH[:, :, ::-1]))
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    assert np.abs(expected - run_wrapped(model)).max() > 1e-3
    np.testing.assert_allclose(embed_flipped(model), expected, rtol=0, atol=1e-6)


def test_opposite_directions_have_no_mean_and_give_no_unit_vector():
    weights = np.random.default_rng(5).standard_normal((3, HEIGHT, WIDTH, DIM)).astype(np.float32)
    weights -= weights[:, :, ::-1]
    model = pooling_model(17, 8)
    del model.graph.node[0]
    model.graph.node[0].input[0] = "pixels"
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights.reshape(-1, DIM), "weights"))
    np.testing.assert_allclose(np.linalg.norm(run_wrapped(model), axis=1), 1, atol=1e-6)
    assert np.linalg.norm(embed_flipped(model), axis=1).max() < 0.9
