"""Affine operators: what multiplies each channel and adds to it belongs into the weights before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from reidserve.export.convert.draft import ELEMENTWISE, Array, Draft, Shape, attributes_of, make_node

_EPSILON = 1e-5
"""Of a BatchNormalization that says none."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _Affine:
    """What an operator does to each channel (axis 1) of a value: times scale, plus shift; both (channels,)."""

    source: str
    scale: Numbers
    shift: Numbers


def fold_affine(draft: Draft, shapes: Mapping[str, Shape]) -> None:
    """Put every chain of norms and constant factors into the weights before it, or make it one Mul and Add."""
    chains = [chain for node in draft.nodes if (chain := _chain_from(draft, node, shapes))]
    for chain in chains:
        nodes, affines = zip(*chain, strict=True)
        whole = _compose(affines)
        if _absorb(draft, whole):
            giver = draft.giver(whole.source)
            assert giver is not None
            giver.output[:] = [nodes[-1].output[0] if name == whole.source else name for name in giver.output]
            draft.replace(nodes, [])
            continue
        rank = len(shapes[nodes[-1].output[0]])
        shorter = _mul_and_add(draft, whole, rank, nodes[-1].output[0])
        # Of a map two passes would cost more than the one of BatchNormalization.
        if len(shorter) < len(nodes) or (rank == 2 and any(node.op_type == "BatchNormalization" for node in nodes)):
            draft.replace(nodes, shorter)


def _chain_from(
    draft: Draft, node: onnx.NodeProto, shapes: Mapping[str, Shape]
) -> list[tuple[onnx.NodeProto, _Affine]]:
    """The affine operators that follow one another from `node` on; none if it is not the first of them."""
    affine = _affine(draft, node, shapes)
    if affine is None:
        return []
    earlier = draft.giver(affine.source)
    if earlier is not None and draft.sole_reader(affine.source) and _affine(draft, earlier, shapes):
        return []
    chain = [(node, affine)]
    while (later := draft.sole_reader(chain[-1][0].output[0])) and (affine := _affine(draft, later, shapes)):
        chain.append((later, affine))
    return chain


def _affine(draft: Draft, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> _Affine | None:
    """What a BatchNormalization, or arithmetic with a constant, does to each channel; None if it does more."""
    shape = shapes.get(node.output[0], ())
    if len(shape) < 2 or shape[1] is None:
        return None
    if node.op_type == "BatchNormalization":
        return _norm(draft, node)
    if node.op_type not in ELEMENTWISE:
        return None
    constant = next((place for place, name in enumerate(node.input) if draft.is_float(name)), None)
    if constant is None or (node.op_type == "Div" and constant == 0) or shapes.get(node.input[1 - constant]) != shape:
        return None
    numbers = _per_channel(draft.constants[node.input[constant]], rank=len(shape), channels=shape[1])
    if numbers is None:
        return None
    source, ones, zeros = node.input[1 - constant], np.ones(shape[1]), np.zeros(shape[1])
    if node.op_type == "Mul":
        return _Affine(source, numbers, zeros)
    if node.op_type == "Div":
        return _Affine(source, 1 / numbers, zeros)
    if node.op_type == "Add":
        return _Affine(source, ones, numbers)
    return _Affine(source, ones, -numbers) if constant == 1 else _Affine(source, -ones, numbers)


def _norm(draft: Draft, node: onnx.NodeProto) -> _Affine | None:
    attributes = attributes_of(node)
    if (
        attributes.get("training_mode")
        or len(node.output) > 1
        or not all(draft.is_float(name) for name in node.input[1:])
    ):
        return None
    weight, bias, mean, variance = (draft.constants[name].astype(np.float64) for name in node.input[1:])
    scale = weight / np.sqrt(variance + attributes.get("epsilon", _EPSILON))
    return _Affine(node.input[0], scale, bias - mean * scale)


def _per_channel(array: Array, *, rank: int, channels: int) -> Numbers | None:
    """A constant that broadcasts along axis 1 alone, one number for each channel; None for another."""
    if array.ndim > rank:
        return None
    sizes = (1,) * (rank - array.ndim) + array.shape
    if sizes[1] not in (1, channels) or prod(sizes) != sizes[1]:
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _compose(affines: Sequence[_Affine]) -> _Affine:
    scale, shift = affines[0].scale, affines[0].shift
    for affine in affines[1:]:
        scale, shift = affine.scale * scale, affine.scale * shift + affine.shift
    return _Affine(affines[0].source, scale, shift)


def _absorb(draft: Draft, affine: _Affine) -> bool:
    """Put scale and shift into the rows of the weights that give the affine's source; whether that could be done."""
    giver = draft.giver(affine.source)
    if giver is None or draft.sole_reader(affine.source) is None:
        return False
    return giver.op_type in ("Conv", "Gemm") and _scale_rows(draft, giver, affine.scale, affine.shift)


def _scale_rows(draft: Draft, node: onnx.NodeProto, scale: Numbers, shift: Numbers) -> bool:
    """Multiply each output of a convolution or linear layer and add to it, in its weights and bias."""
    attributes = attributes_of(node)
    if not all(draft.is_float(name) for name in node.input[1:]) or any(
        attributes.get(name, usual) != usual for name, usual in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))
    ):
        return False
    weight = draft.constants[node.input[1]].astype(np.float64)
    bias = draft.constants[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(1)
    rows_first = node.op_type == "Conv" or bool(attributes.get("transB"))
    factors = scale.reshape(-1, *[1] * (weight.ndim - 1)) if rows_first else scale
    # Under names of their own: weights that are equal are one constant, which others may read.
    node.input[1:] = [
        draft.derive(f"{node.output[0]}/weight", weight * factors),
        draft.derive(f"{node.output[0]}/bias", bias.reshape(-1) * scale + shift),
    ]
    return True


def _mul_and_add(draft: Draft, affine: _Affine, rank: int, output: str) -> list[onnx.NodeProto]:
    """Nodes that give `output`, without a factor of 1 or a summand of 0."""
    steps = [
        (kind, numbers.reshape(1, -1, *[1] * (rank - 2)))
        for kind, numbers, idle in (("Mul", affine.scale, 1), ("Add", affine.shift, 0))
        if not (numbers == idle).all()
    ]
    nodes, source = [], affine.source
    for number, (kind, numbers) in enumerate(steps, start=1):
        given = output if number == len(steps) else f"{output}/scaled"
        constant = draft.derive(f"{output}/{'scale' if kind == 'Mul' else 'shift'}", numbers)
        nodes.append(make_node(kind, [source, constant], given))
        source = given
    return nodes or [make_node("Identity", [source], output)]
