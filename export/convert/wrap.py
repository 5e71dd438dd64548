"""A backbone's graph in, the contract's graph out: uint8 RGB crops to unit vectors."""

from collections.abc import Iterator, Sequence

import onnx
from onnx import compose, helper, parser

from reidserve.embed import Preprocessing

_INITIALIZERS_ARE_NO_INPUTS = 4  # the IR version that freed them
_REDUCE_AXES_ARE_AN_INPUT = 18  # the opset that made them one

_BEFORE = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
before (uint8[N, {height}, {width}, 3] crops) => (float[N, 3, {height}, {width}] pixels)
<float white = {{255.0}}, float[1, 3, 1, 1] mean = {{{mean}}}, float[1, 3, 1, 1] std = {{{std}}}>
{{
    levels = Cast <to = 1> (crops)
    rgb = Transpose <perm = [0, 3, 1, 2]> (levels)
    {swap}
    unit = Div ({colour}, white)
    centred = Sub (unit, mean)
    pixels = Div (centred, std)
}}
"""

_SWAP = """
    order = Constant <value = int64[3] {2, 1, 0}> ()
    bgr = Gather <axis = 1> (rgb, order)
"""

# The smallest norm is the one of torch.nn.functional.normalize.
_AFTER = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
after (float[N, {dim}] feature) => (float[N, {dim}] embeddings)
<float smallest = {{1e-12}}, int64[1] axis = {{1}}>
{{
    norm = {reduce}
    divisor = Max (norm, smallest)
    embeddings = Div (feature, divisor)
}}
"""


def wrap(
    model: onnx.ModelProto, *, feature: str, height: int, width: int, dim: int, preprocessing: Preprocessing
) -> onnx.ModelProto:
    """Put normalisation before and L2 after a graph: float32 (N, 3, height, width) in, `feature` (N, dim) out.

    The new graph takes `crops`, uint8 (N, height, width, 3) RGB, and gives `embeddings`, float32 (N, dim) of unit
    length. It computes what ToTensor and Normalize of torchvision compute, in their order, so the backbone gets
    the same bits. Doc strings and metadata are dropped: equal inputs give equal bytes.
    """
    backbone = compose.add_prefix(model, "backbone/")
    _drop_inputs_with_values(backbone.graph)
    backbone.ir_version = max(backbone.ir_version, _INITIALIZERS_ARE_NO_INPUTS)
    versions = {
        "ir": backbone.ir_version,
        "opset": next(entry.version for entry in backbone.opset_import if entry.domain in ("", "ai.onnx")),
    }
    before = _parse(
        _BEFORE,
        **versions,
        height=height,
        width=width,
        mean=_numbers(preprocessing.mean),
        std=_numbers(preprocessing.std),
        colour=preprocessing.colour,
        swap=_SWAP if preprocessing.colour == "bgr" else "",
    )
    axes_are_an_input = versions["opset"] >= _REDUCE_AXES_ARE_AN_INPUT
    reduce = "ReduceL2 (feature, axis)" if axes_are_an_input else "ReduceL2 <axes = [1]> (feature)"
    after = _parse(_AFTER, **versions, dim=dim, reduce=reduce)

    (pixels,) = (value.name for value in backbone.graph.input)
    wrapped = compose.merge_models(before, backbone, io_map=[("pixels", pixels)], outputs=[f"backbone/{feature}"])
    wrapped = compose.merge_models(wrapped, after, io_map=[(f"backbone/{feature}", "feature")], name="reidserve")
    _import_once(wrapped)
    _forget_provenance(wrapped)
    return wrapped


def _parse(text: str, **values: int | str) -> onnx.ModelProto:
    return parser.parse_model(text.format(**values))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.17g}" if value % 1 else f"{value:.1f}" for value in values)


def _drop_inputs_with_values(graph: onnx.GraphProto) -> None:
    # Up to IR version 3 every initializer had to stand among the inputs too.
    initialised = {tensor.name for tensor in graph.initializer}
    free = [value for value in graph.input if value.name not in initialised]
    del graph.input[:]
    graph.input.extend(free)


def _import_once(model: onnx.ModelProto) -> None:
    # merge_models lists the operator sets of each part.
    versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the graphs inside it: branches and loop bodies."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from every_graph(inner)


def _forget_provenance(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version = "reidserve", ""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    for graph in every_graph(model.graph):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        values = [*graph.value_info, *graph.input, *graph.output]
        for message in (graph, *graph.node, *graph.initializer, *values):
            message.ClearField("doc_string")
            message.ClearField("metadata_props")
        for attribute in attributes:
            attribute.ClearField("doc_string")
