"""Folding: the same network in fewer operators, by arithmetic on its constants."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from reidserve.export.convert.affine import fold_affine
from reidserve.export.convert.draft import ELEMENTWISE, Draft, Shape, attributes_of, make_node

_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Folded:
    """A graph and what folding did to it.

    Attributes:
        graph: the folded graph; each of its operators has a name.
        before: how many operators of each type the given graph had.
        after: how many the folded graph has.
    """

    graph: onnx.ModelProto
    before: Mapping[str, int]
    after: Mapping[str, int]


def fold(model: onnx.ModelProto) -> Folded:
    """The same network with its constants computed, norms inside the weights before them, and nothing idle left.

    Arithmetic is in float64 and rounded once. The BatchNorm of IBN-a's second half stays behind its Split: inside the
    convolution it gains nothing in float32 and costs int8 up to 9 % (benchmarks/artifact.py, before it was removed).
    The mean and standard deviation of the pixels become one Mul and Add; they stay outside the first convolution, whose
    padding is of zeros after normalisation. A graph with branches is given back as it is. A second folding changes
    nothing.
    """
    before = count_operators(model)
    if _branches(model):
        return Folded(model, before, before)
    draft = Draft(model)
    _compute_constants(draft)
    _fix_reshapes(draft)
    shapes = draft.shapes()
    _drop_idle(draft, shapes)
    _join_reshapes(draft, shapes)
    fold_affine(draft, shapes)
    graph = draft.finish()
    return Folded(graph, before, count_operators(graph))


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """How many operators of each type a graph has, by name of the type."""
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))


def _branches(model: onnx.ModelProto) -> bool:
    return any(
        attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for node in model.graph.node
        for attribute in node.attribute
    )


def _compute_constants(draft: Draft) -> None:
    """Compute whatever reads nothing but constants."""
    for node in list(draft.nodes):
        read = [name for name in node.input if name]
        if not (all(name in draft.constants for name in read) if read else node.op_type == "Constant"):
            continue
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(draft.constants[name].dtype), draft.constants[name].shape
            )
            for name in dict.fromkeys(read)
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
        alone = helper.make_model(helper.make_graph([node], "alone", inputs, outputs), opset_imports=draft.opset)
        values = ReferenceEvaluator(alone).run(None, {name: draft.constants[name] for name in read})
        draft.constants |= dict(zip(node.output, map(np.asarray, values), strict=True))
        draft.nodes.remove(node)


def _fix_reshapes(draft: Draft) -> None:
    """Give a Reshape that keeps its input's first sizes, asked for with Shape, constant sizes: 0 keeps one too."""
    for node in draft.nodes:
        if node.op_type != "Reshape" or attributes_of(node).get("allowzero"):
            continue
        joined = draft.giver(node.input[1])
        if joined is None or joined.op_type != "Concat":
            continue
        kept = _kept_sizes(draft, joined.input[0], of=node.input[0])
        if kept and all(name in draft.constants for name in joined.input[1:]):
            sizes = [0] * kept + [size for name in joined.input[1:] for size in draft.constants[name].tolist()]
            node.input[1] = _sizes(draft, node, sizes)


def _kept_sizes(draft: Draft, name: str, *, of: str) -> int:
    """How many of the first sizes of the value `of` are under the name `name`; 0 if it is anything else."""
    cut = draft.giver(name)
    if cut is None or cut.op_type != "Slice" or not all(bound in draft.constants for bound in cut.input[1:]):
        return 0
    asked = draft.giver(cut.input[0])
    bounds = [draft.constants[bound].tolist() for bound in cut.input[1:]]
    if asked is None or asked.op_type != "Shape" or asked.input[0] != of or asked.attribute:
        return 0
    start, end, *rest = bounds
    return int(end[0]) if start == [0] and end[0] > 0 and rest in ([], [[0]], [[0], [1]]) else 0


def _sizes(draft: Draft, node: onnx.NodeProto, sizes: Sequence[int]) -> str:
    name = f"{node.output[0]}/sizes"
    draft.constants[name] = np.array(sizes, np.int64)
    return name


def _drop_idle(draft: Draft, shapes: Mapping[str, Shape]) -> None:
    """Take out what gives what it reads: Identity, Dropout, a flattening of rows, sizes that broadcasting gives."""
    for node in list(draft.nodes):
        idle = node.op_type == "Identity" or (node.op_type == "Dropout" and len(node.input) < 3)
        if node.op_type in _RESHAPING:
            row = _row(shapes.get(node.input[0]))
            idle = row is not None and row == _row(shapes.get(node.output[0]))
        if idle or (node.op_type == "Expand" and _broadcasts(draft, node)):
            draft.bypass(node, node.input[0])


def _row(shape: Shape | None) -> tuple[int, ...] | None:
    """The sizes of one image's part of a value; None if one of them is not known."""
    known = tuple(size for size in shape[1:] if size is not None) if shape else None
    return known if shape and known is not None and len(known) == len(shape) - 1 else None


def _broadcasts(draft: Draft, node: onnx.NodeProto) -> bool:
    """Whether all that read an Expand to some value's shape combine it with that very value."""
    asked = draft.giver(node.input[1])
    if asked is None or asked.op_type != "Shape" or asked.attribute:
        return False
    readers = draft.readers(node.output[0])
    return all(reader.op_type in ELEMENTWISE and asked.input[0] in reader.input for reader in readers)


def _join_reshapes(draft: Draft, shapes: Mapping[str, Shape]) -> None:
    """Make one of several reshapings in a row; the batch comes first in all of them."""
    for node in list(draft.nodes):
        earlier = draft.giver(node.input[0]) if node.op_type in _RESHAPING else None
        if earlier is None or earlier.op_type not in _RESHAPING:
            continue
        before, after = _row(shapes.get(earlier.input[0])), _row(shapes.get(node.output[0]))
        if before is None or after is None or prod(before) != prod(after):
            continue
        if len(after) == 1:
            # Its axis is 1 unless another is said.
            joined = make_node("Flatten", [earlier.input[0]], node.output[0])
        else:
            sizes = _sizes(draft, node, [-1, *after])
            joined = make_node("Reshape", [earlier.input[0], sizes], node.output[0])
        draft.replace([node], [joined])
