"""The int8 flavours: explicit QuantizeLinear and DequantizeLinear around the operators that compute in integers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from reidserve.export.flavours.operators import check_kept, drop_unread, name_of, pinned, plain_copy, replace_nodes
from reidserve.export.flavours.ranges import Ranges

_Reals = NDArray[np.float32]
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_GIVES_INTEGERS = frozenset({"Conv", "Add", "MaxPool"})
_SMALLEST = 1e-12
"""A range that is never narrower keeps scales above zero."""


def make_integer(
    graph: onnx.ModelProto, ranges: Ranges, *, signed: bool, kept: Collection[str] = ()
) -> onnx.ModelProto:
    """The graph in int8 but for the operators `kept`, named by their first output, and those that are pinned.

    Weights are int8, symmetric, with a scale for each output channel.
    Unsigned is for CPUs: activations are uint8 with a zero point, and convolutions, sums and poolings have integers
    on both sides, so that a residual path never leaves them. Signed is for TensorRT: activations are int8 around
    zero, biases float32, and what a convolution gives is left alone, for the sum and the ReLU to be fused into it.

    Raises:
        ExportError: the ranges are another graph's, or `kept` names no operator of this one.
    """
    ranges.check(graph)
    model = plain_copy(graph)
    check_kept(model, kept)
    layout = _lay_out(model, pinned(model) | set(kept), signed=signed)
    quantising = _Quantising(model, layout.ranges(ranges.tensors), signed=signed)
    for node in model.graph.node:
        places = layout.reads.get(name_of(node), ())
        for place, name in enumerate(node.input):
            if place in places or name in layout.given:
                node.input[place] = quantising.activation(name)
        if places and (axis := _channel_axis(node)) is not None:
            quantising.weights(node, axis)
        quantising.nodes.append(node)
    replace_nodes(model.graph, quantising.nodes)
    drop_unread(model.graph)
    return model


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where integers flow.

    Attributes:
        reads: by operator, the inputs (by place) that it reads as integers.
        given: tensors that are integers for whoever reads them.
        pooled: by tensor, the one whose scale it shares, being a choice among its values.
    """

    reads: Mapping[str, Sequence[int]]
    given: Collection[str]
    pooled: Mapping[str, str]

    def ranges(self, measured: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """The range of each tensor, a pooled one's being its source's."""
        return {name: measured[self.pooled.get(name, name)] for name in measured}


def _lay_out(model: onnx.ModelProto, stay: Collection[str], *, signed: bool) -> _Layout:
    constants = {tensor.name for tensor in model.graph.initializer}
    givers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    reads: dict[str, Sequence[int]] = {}
    given: set[str] = set()
    pooled: dict[str, str] = {}
    for node in model.graph.node:
        places = _integer_places(node, constants, given)
        if not places or name_of(node) in stay:
            continue
        if signed and node.op_type == "Add":
            places = _without_branch(node, givers, readers)
        reads[name_of(node)] = places
        result = node.output[0]
        (reader, *others) = readers.get(result, [node])
        if not others and reader.op_type in _ACTIVATIONS:
            result = reader.output[0]
        if node.op_type == "MaxPool":
            pooled[result] = pooled.get(node.input[0], node.input[0])
        if not signed and node.op_type in _GIVES_INTEGERS:
            given.add(result)
    return _Layout(reads, given, pooled)


def _integer_places(node: NodeProto, constants: Collection[str], given: Collection[str]) -> Sequence[int]:
    """The inputs that an operator reads as integers; none for one that cannot, or has no reason to."""
    constant = [name in constants for name in node.input]
    if _channel_axis(node) is not None:
        return (0,) if constant[1:] and all(constant[1:]) and not constant[0] else ()
    if node.op_type == "Add":
        return () if any(constant) else (0, 1)
    return (0,) if node.op_type == "MaxPool" and node.input[0] in given else ()


def _without_branch(
    node: NodeProto, givers: Mapping[str, NodeProto], readers: Mapping[str, Sequence[NodeProto]]
) -> Sequence[int]:
    """The inputs of a sum but for one that comes from a convolution alone, which TensorRT adds to as it computes."""
    branches = [
        place for place, name in enumerate(node.input) if givers[name].op_type == "Conv" and len(readers[name]) == 1
    ]
    return tuple(place for place in (0, 1) if place not in branches[:1])


def _channel_axis(node: NodeProto) -> int | None:
    """Along which axis of its weights an operator's output channels lie; None for operators that have none."""
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return 1
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    if node.op_type == "Gemm" and plain:
        return 0 if attributes.get("transB", 0) else 1
    return None


class _Quantising:
    """The operators written so far, and the scales of what is quantised among what they give."""

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], *, signed: bool) -> None:
        self.nodes: list[NodeProto] = []
        self._initializers = model.graph.initializer
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._ranges = ranges
        self._signed = signed
        self._scales: dict[str, np.float32] = {}

    def activation(self, name: str) -> str:
        """The name under which a tensor is read after it went through integers, once for all who read it."""
        real = f"int8/{name}/real"
        if real not in self._scales:
            scale, zero = _scale(*self._ranges[name], signed=self._signed)
            self._scales[real] = scale
            parameters = [self._keep(f"int8/{name}/scale", scale), self._keep(f"int8/{name}/zero", zero)]
            self._add("QuantizeLinear", [name, *parameters], f"int8/{name}/integers")
            self._add("DequantizeLinear", [f"int8/{name}/integers", *parameters], real)
        return real

    def weights(self, node: NodeProto, axis: int) -> None:
        """Give an operator that reads integers int8 weights, and an int32 bias unless activations are signed."""
        name, entering = name_of(node), self._scales[node.input[0]]
        values = self._values(node.input[1])
        bias = self._values(node.input[2]) if node.input[2:] and not self._signed else None
        if bias is not None and bias.shape != (values.shape[axis],):
            bias = None  # Gemm takes other shapes, and adds them in float32
        scales = _weight_scales(values, axis, None if bias is None else bias / entering)
        node.input[1] = self._integers(f"int8/{name}/weights", values, scales, axis, np.int8)
        if bias is not None:
            node.input[2] = self._integers(f"int8/{name}/bias", bias, entering * scales, 0, np.int32)

    def _integers(
        self, name: str, values: _Reals, scales: _Reals, axis: int, kind: type[np.int8] | type[np.int32]
    ) -> str:
        shape = [-1 if place == axis else 1 for place in range(values.ndim)]
        # The smallest integer has no opposite, and is left out.
        largest = np.iinfo(kind).max
        integers = np.clip(np.rint(values / scales.astype(np.float64).reshape(shape)), -largest, largest)
        parts = {"integers": integers.astype(kind), "scale": scales, "zero": np.zeros(len(scales), kind)}
        self._add(
            "DequantizeLinear",
            [self._keep(f"{name}/{part}", value) for part, value in parts.items()],
            f"{name}/real",
            axis=axis,
        )
        return f"{name}/real"

    def _values(self, name: str) -> _Reals:
        return numpy_helper.to_array(self._constants[name]).astype(np.float32, copy=False)

    def _keep(self, name: str, value: np.generic | NDArray[Any]) -> str:
        self._initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, *, axis: int | None = None) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, axis=axis))


def _scale(low: float, high: float, *, signed: bool) -> tuple[np.float32, np.int8 | np.uint8]:
    """The step between two integers and the integer that stands for zero, for values of a range."""
    if signed:
        return np.float32(max(-low, high, _SMALLEST) / 127), np.int8(0)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, _SMALLEST) / 255)
    return scale, np.uint8(np.rint(-low / scale))


def _weight_scales(values: _Reals, axis: int, bias: _Reals | None) -> _Reals:
    """The step of each output channel's weights: as fine as its largest one allows, and its bias.

    The bias, in steps of what enters, is counted in these same steps, and must not leave half of int32.
    """
    others = tuple(place for place in range(values.ndim) if place != axis)
    steps = np.abs(values).max(others).astype(np.float64) / 127
    if bias is not None:
        steps = np.maximum(steps, np.abs(bias) / 2**30)
    scales: _Reals = np.maximum(steps, _SMALLEST).astype(np.float32)
    return scales
