"""The operators of a graph as flavours see them: which may leave float32, and which never do.

An operator is named by its first output: unlike its own name, that is always there and always unique.
"""

from collections.abc import Collection, Iterable

import onnx
from onnx import NodeProto, TensorProto

from reidserve.errors import ExportError

QUANTISED_PER_CHANNEL = 13
"""The opset that gave QuantizeLinear an axis."""

_UPGRADED = 17
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_STATISTICS = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization"})
_ARITHMETIC = WEIGHTED | {
    *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Erf", "Sigmoid", "Tanh", "Softmax"),
    *("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "BatchNormalization"),
}


def name_of(node: NodeProto) -> str:
    """What an operator is called here: its first output."""
    return next(output for output in node.output if output)


def plain_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose constants are all initializers, of an opset that can quantise per channel.

    Raises:
        ExportError: the graph has branches or loops, or an opset that ONNX cannot bring up to date.
    """
    if inner := sorted({node.op_type for node in model.graph.node if any(map(_is_graph, node.attribute))}):
        raise ExportError(f"the graph branches or loops ({', '.join(inner)}), such a graph has no flavour but float32")
    opset = opset_of(model)
    if opset < QUANTISED_PER_CHANNEL:
        try:
            plain = onnx.version_converter.convert_version(model, _UPGRADED)
        except Exception as error:
            raise ExportError(f"the graph has opset {opset}, and does not convert to {_UPGRADED}: {error}") from error
    else:
        plain = onnx.ModelProto()
        plain.CopyFrom(model)
    nodes = []
    for node in plain.graph.node:
        value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            plain.graph.initializer.add().CopyFrom(value)
            plain.graph.initializer[-1].name = node.output[0]
        else:
            nodes.append(node)
    replace_nodes(plain.graph, nodes)
    del plain.graph.value_info[:]
    return plain


def _is_graph(attribute: onnx.AttributeProto) -> bool:
    return attribute.HasField("g") or bool(attribute.graphs)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a graph uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Every tensor of a graph that is float32, weights too."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = [*graph.input, *graph.value_info, *graph.output]
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return floats | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def pinned(model: onnx.ModelProto) -> set[str]:
    """The operators that stay float32 in every flavour.

    They are what normalises pixels before the first weights; InstanceNorm and its kin, which sum over an image's own
    map; the L2 normalisation and all that follows it; and what gives the output.
    """
    outputs = {value.name for value in model.graph.output}
    weighted: set[str] = set()
    normalised: set[str] = set()
    found = set()
    for node in model.graph.node:
        if node.op_type in WEIGHTED or weighted.intersection(node.input):
            weighted.update(node.output)
        if node.op_type == "ReduceL2" or normalised.intersection(node.input):
            normalised.update(node.output)
        if (
            node.op_type in _STATISTICS
            or not weighted.intersection(node.output)
            or normalised.intersection(node.output)
            or outputs.intersection(node.output)
        ):
            found.add(name_of(node))
    return found


def operators(model: onnx.ModelProto) -> list[str]:
    """The operators that a flavour may lower, in their order: those that compute, and are not pinned."""
    stay = pinned(model)
    return [name_of(node) for node in model.graph.node if computes(node) and name_of(node) not in stay]


def computes(node: NodeProto) -> bool:
    """Whether an operator does arithmetic; the others choose among numbers and move them, exactly in any format."""
    return node.op_type in _ARITHMETIC


def check_kept(model: onnx.ModelProto, kept: Collection[str]) -> None:
    """See that every operator to be kept is there: one that nobody finds would be lowered in silence.

    Raises:
        ExportError: one is not.
    """
    if strangers := sorted(set(kept) - {name_of(node) for node in model.graph.node}):
        raise ExportError(
            f"the graph has no operator {', '.join(strangers)} to keep in float32: name operators by their first output"
        )


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Put operators, the graph's own among them, in place of the graph's operators."""
    written = [node.SerializeToString() for node in nodes]  # the graph's own go with the graph's list
    del graph.node[:]
    graph.node.extend(NodeProto.FromString(node) for node in written)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Leave out the initializers that nothing reads, and sort the others by name: equal graphs are equal bytes."""
    read = {name for node in graph.node for name in node.input}
    left = sorted((tensor for tensor in graph.initializer if tensor.name in read), key=lambda tensor: tensor.name)
    tensors = [TensorProto.FromString(tensor.SerializeToString()) for tensor in left]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
