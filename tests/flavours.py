"""Graphs to make flavours of, and crops to run through them."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from reidserve.embed import Batch, Embeddings
from reidserve.embed.onnx_session import OnnxSession
from reidserve.export.convert import wrap
from tests.conftest import DIM, HEIGHT, IMAGENET, WIDTH, draw_crop, foreign_model


def small_graph(*, opset: int = 17, edit: Callable[[onnx.GraphProto], None] = lambda graph: None) -> onnx.ModelProto:
    """The contract's graph of `foreign_model`: two convolutions and a product."""
    model = foreign_model(edit=edit)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    return wrap(model, feature="feature", height=HEIGHT, width=WIDTH, dim=DIM, preprocessing=IMAGENET)


@cache
def resnet_graph() -> onnx.ModelProto:
    """The contract's graph of a ResNet-18-IBN-a, with norms and statistics unlike those of birth."""
    pytest.importorskip("torch", reason="needs the [train] extra")
    from reidserve.export.convert.fold import fold
    from reidserve.export.convert.from_checkpoint import trace
    from tests.test_from_checkpoint import FEEDING, VARIANTS, lively_network

    traced = trace(lively_network(VARIANTS["ibn-a"]), height=HEIGHT, width=WIDTH)
    return fold(
        wrap(traced, feature="feature", height=HEIGHT, width=WIDTH, dim=512, preprocessing=FEEDING.preprocessing)
    ).graph


def draw_batch(pids: Sequence[int]) -> Batch:
    """A crop of each pid, (N, 64, 32, 3)."""
    return np.stack([draw_crop(pid, pid % 2)[:HEIGHT, :WIDTH] for pid in pids])


def embed(graph: onnx.ModelProto, batch: Batch) -> Embeddings:
    return OnnxSession(graph.SerializeToString())(batch)


def worst_cosine(one: Embeddings, other: Embeddings) -> float:
    return float(np.einsum("nd,nd->n", one, other).min())


def scale_weights(graph: onnx.GraphProto, name: str, factors: Sequence[float], *, axis: int) -> None:
    """Multiply the weights `name` along an axis: by the first factors, and by 1 after them."""
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor)
    along = np.ones(values.shape[axis], np.float32)
    along[: len(factors)] = factors
    shape = [-1 if place == axis else 1 for place in range(values.ndim)]
    tensor.CopyFrom(numpy_helper.from_array(values * along.reshape(shape), name))


def wide_channel(factor: float) -> Callable[[onnx.GraphProto], None]:
    """An edit of `foreign_model` that leaves what it computes, and makes one channel between convolutions wide."""

    def edit(graph: onnx.GraphProto) -> None:
        scale_weights(graph, "w1", [factor], axis=0)
        scale_weights(graph, "b1", [factor], axis=0)
        scale_weights(graph, "w2", [1 / factor], axis=1)

    return edit


def made_by(graph: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The operator that gives each tensor."""
    return {output: node for node in graph.graph.node for output in node.output}


def value_of(graph: onnx.ModelProto, name: str) -> np.ndarray:
    (tensor,) = (tensor for tensor in graph.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor)
