"""A draft: a graph that is being rewritten, its constants as arrays, and who gives and reads what."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

ELEMENTWISE = frozenset({"Add", "Div", "Mul", "Sub"})

Array = NDArray[Any]
Shape = tuple[int | None, ...]
"""Sizes of a value; None where a size is not known before the graph runs, as that of the batch."""


class Draft:
    """A copy of a model to rewrite; the model itself is left as it was.

    Attributes:
        nodes: the operators, each after those whose values it reads.
        constants: the values that no input decides, by name.
        outputs: names of what the graph gives.
        opset: the imported operator sets.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._frame = onnx.ModelProto()
        self._frame.CopyFrom(model)
        graph = self._frame.graph
        self.nodes = [_copy(node) for node in graph.node]
        self.constants: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.outputs = frozenset(value.name for value in graph.output)
        self.opset = list(model.opset_import)
        self._derived: set[str] = set()
        del graph.node[:], graph.initializer[:], graph.value_info[:]

    def giver(self, name: str) -> onnx.NodeProto | None:
        """The operator that gives a value; None for an input or a constant."""
        return next((node for node in self.nodes if name in node.output), None)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The operators that read a value."""
        return [node for node in self.nodes if name in node.input]

    def sole_reader(self, name: str) -> onnx.NodeProto | None:
        """The one operator that reads a value, if nothing else does and it is no output of the graph."""
        readers = self.readers(name)
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def derive(self, name: str, value: Array) -> str:
        """Keep a float64 constant, which becomes float32 when the draft is finished; returns its name."""
        self.constants[name] = value
        self._derived.add(name)
        return name

    def is_float(self, name: str) -> bool:
        """Whether a name is a constant of real numbers, float32 in the finished graph."""
        return name in self._derived or (name in self.constants and self.constants[name].dtype == np.float32)

    def bypass(self, node: onnx.NodeProto, name: str) -> None:
        """Take out a node whose first output is the value `name`; an output of the graph keeps its own name."""
        given = node.output[0]
        kept, gone = (given, name) if given in self.outputs else (name, given)
        if gone in self.outputs or (gone == name and self.giver(name) is None):
            return
        self.nodes.remove(node)
        for other in self.nodes:
            other.input[:] = [kept if read == gone else read for read in other.input]
            other.output[:] = [kept if written == gone else written for written in other.output]

    def replace(self, old: Sequence[onnx.NodeProto], new: Sequence[onnx.NodeProto]) -> None:
        """Put new nodes where the last of the old ones stood."""
        place = self.nodes.index(old[-1])
        self.nodes[place : place + 1] = new
        for node in old[:-1]:
            self.nodes.remove(node)

    def shapes(self) -> dict[str, Shape]:
        """The shapes of the values, as far as they are known."""
        model = self._without_constants()
        for name in self._constants_of(model):
            # No shape depends on a weight: they are declared and not carried.
            if self.is_float(name):
                shape = self.constants[name].shape
                model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
            else:
                model.graph.initializer.append(self._tensor(name))
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        return {
            value.name: tuple(
                size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
            )
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }

    def finish(self) -> onnx.ModelProto:
        """The model of the nodes that lead to an output; equal drafts give equal bytes."""
        model = self._without_constants()
        model.graph.initializer.extend(self._tensor(name) for name in self._constants_of(model))
        return model

    def _without_constants(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._frame)
        model.graph.node.extend(_named(node) for node in self._live())
        return model

    def _constants_of(self, model: onnx.ModelProto) -> list[str]:
        """The constants that a graph reads or gives, in that order."""
        read = [name for node in model.graph.node for name in node.input]
        names = dict.fromkeys([*read, *(value.name for value in model.graph.output)])
        return [name for name in names if name in self.constants]

    def _tensor(self, name: str) -> onnx.TensorProto:
        value = self.constants[name]
        return numpy_helper.from_array(value.astype(np.float32) if name in self._derived else value, name)

    def _live(self) -> Iterator[onnx.NodeProto]:
        wanted = set(self.outputs)
        live = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                live.append(node)
                wanted |= set(node.input)
        return reversed(live)


def make_node(kind: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    """A node without attributes, named as its one output."""
    return helper.make_node(kind, inputs, [output], name=output)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes that a node says, by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _named(node: onnx.NodeProto) -> onnx.NodeProto:
    # What stays in float32 is told by name.
    copy = _copy(node)
    copy.name = copy.name or copy.output[0]
    return copy
