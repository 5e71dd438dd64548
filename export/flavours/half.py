"""The float16 flavour: the same graph, its weights and what flows between them in half the bytes."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, defs, helper, numpy_helper

from reidserve.errors import ExportError
from reidserve.export.flavours.operators import (
    check_kept,
    computes,
    drop_unread,
    float_tensors,
    name_of,
    opset_of,
    pinned,
    plain_copy,
    replace_nodes,
)
from reidserve.export.flavours.ranges import Ranges

_LARGEST = float(np.finfo(np.float16).max)
_FLOAT, _HALF = "tensor(float)", "tensor(float16)"


def make_half(graph: onnx.ModelProto, *, kept: Collection[str] = (), ranges: Ranges | None = None) -> onnx.ModelProto:
    """The graph in float16 but for the operators `kept`, named by their first output, and those that are pinned.

    Crops stay uint8 and embeddings float32. An operator computes in float16 where ONNX's own schema lets it, and one
    that only moves numbers leaves them as they come. Between the two formats stands one Cast, however many read it.
    With `ranges` it is seen that values fit as well as weights. An engine may hide that they do not: ONNX Runtime's CPU
    computes what is meant for float16 in float32, and leaves out casts there and back.

    Raises:
        ExportError: a weight or a value is beyond float16, the ranges are another graph's, or `kept` names no operator
            of this one.
    """
    if ranges is not None:
        ranges.check(graph)
    model = plain_copy(graph)
    check_kept(model, kept)
    floats = float_tensors(model)
    stay = pinned(model) | set(kept)
    nodes = _Nodes(model.graph)
    for node in model.graph.node:
        lowered = name_of(node) not in stay and (computes(node) or not nodes.half.isdisjoint(node.input))
        places = _half_places(node, floats, opset_of(model)) if lowered else set()
        given = floats.intersection(node.output) if places else set()
        if ranges is not None:
            _check_reach(ranges, [*(node.input[place] for place in places), *given])
        for place, name in enumerate(node.input):
            if name in floats:
                node.input[place] = nodes.read(name, half=place in places)
        nodes.add(node, half=given)
    replace_nodes(model.graph, nodes.written)
    drop_unread(model.graph)
    return model


class _Nodes:
    """The operators written so far, and the tensors that are float16 among what they give."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self.written: list[NodeProto] = []
        self.half: set[str] = set()
        self._converted: set[str] = set()

    def read(self, name: str, *, half: bool) -> str:
        """The name under which a float tensor can be read in the format wanted: converted once, for all who read it."""
        if half == (name in self.half):
            return name
        converted = f"{'fp16' if half else 'fp32'}/{name}"
        if converted not in self._converted:
            self._converted.add(converted)
            if name in self._weights:
                self._graph.initializer.append(_half_weight(self._weights[name], converted))
            else:
                to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                self.written.append(helper.make_node("Cast", [name], [converted], converted, to=to))
        return converted

    def add(self, node: NodeProto, *, half: set[str]) -> None:
        """Write an operator whose outputs `half` are float16."""
        self.written.append(node)
        self.half |= half


def _half_places(node: NodeProto, floats: set[str], opset: int) -> set[int]:
    """The inputs, by place, that an operator may read in float16; none where its outputs would stay float32."""
    if node.domain not in ("", "ai.onnx"):
        return set()
    schema = defs.get_schema(node.op_type, opset, "")
    allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}

    def types(formal: Sequence[defs.OpSchema.FormalParameter], names: Sequence[str]) -> dict[int, str]:
        # The last parameter may stand for any number.
        slots = {place: formal[min(place, len(formal) - 1)].type_str for place in range(len(names))}
        return {place: slot for place, slot in slots.items() if names[place] in floats}

    read, given = types(schema.inputs, node.input), types(schema.outputs, node.output)
    places = {place for place, slot in read.items() if _HALF in allowed.get(slot, ())}
    follows = {read[place] for place in places}
    return places if set(given.values()) <= follows else set()


def _check_reach(ranges: Ranges, names: Iterable[str]) -> None:
    for name in names:
        low, high = ranges.tensors.get(name, (0.0, 0.0))
        _check_fits(name, max(-low, high))


def _check_fits(name: str, largest: float) -> None:
    if not largest <= _LARGEST:
        raise ExportError(f"{name} reaches {largest:g}, float16 ends at {_LARGEST:g}: keep what meets it in float32")


def _half_weight(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    _check_fits(tensor.name, float(np.abs(values).max(initial=0)))
    return numpy_helper.from_array(values.astype(np.float16), name)
