"""A backbone's graph in, the contract's graph out: uint8 RGB crops to unit vectors."""

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import compose, helper, parser

from reidserve.embed import Preprocessing

_INITIALIZERS_ARE_NO_INPUTS = 4  # the IR version that freed them
_REDUCE_AXES_ARE_AN_INPUT = 18  # the opset that made them one
_SPLIT_COUNTS_ITS_OUTPUTS = 18  # the opset that asks for their number

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

_MIRROR = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
mirror (float[N, 3, {height}, {width}] straight) => (float[both, 3, {height}, {width}] pairs)
{{
    columns = Constant <value = int64[{width}] {{{columns}}}> ()
    mirrored = Gather <axis = 3> (straight, columns)
    pairs = Concat <axis = 0> (straight, mirrored)
}}
"""

# The smallest norm is the one of torch.nn.functional.normalize.
_AFTER = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
after (float[N, {dim}] feature) => (float[N, {dim}] {embeddings})
<float smallest = {{1e-12}}, int64[1] axis = {{1}}>
{{
    norm = {reduce} (feature{axis})
    divisor = Max (norm, smallest)
    {embeddings} = Div (feature, divisor)
}}
"""

# The sum of opposite vectors has no direction but rounding's: it is left shorter than 1, and so refused.
_MEAN = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
average (float[both, {dim}] each) => (float[N, {dim}] embeddings)
<float shortest = {{1e-6}}, int64[1] along = {{1}}>
{{
    one, other = Split <axis = 0{two}> (each)
    total = Add (one, other)
    length = {reduce} (total{along})
    part = Max (length, shortest)
    embeddings = Div (total, part)
}}
"""


def wrap(
    model: onnx.ModelProto,
    *,
    feature: str,
    height: int,
    width: int,
    dim: int,
    preprocessing: Preprocessing,
    flip: bool = False,
) -> onnx.ModelProto:
    """Put normalisation before and L2 after a graph: float32 (N, 3, height, width) in, `feature` (N, dim) out.

    The new graph takes `crops`, uint8 (N, height, width, 3) RGB, and gives `embeddings`, float32 (N, dim) of unit
    length. It computes what ToTensor and Normalize of torchvision compute, in their order, so the backbone gets
    the same bits. With `flip` the backbone gets each crop and its mirror image, and an embedding is the mean of the two
    unit vectors, of unit length again. Doc strings and metadata are dropped: equal inputs give equal bytes.
    """
    backbone = compose.add_prefix(model, "backbone/")
    _drop_inputs_with_values(backbone.graph)
    backbone.ir_version = max(backbone.ir_version, _INITIALIZERS_ARE_NO_INPUTS)
    versions = {
        "ir": backbone.ir_version,
        "opset": next(entry.version for entry in backbone.opset_import if entry.domain in ("", "ai.onnx")),
    }
    sizes = {"height": height, "width": width}
    wrapped = _parse(
        _BEFORE,
        **versions,
        **sizes,
        mean=_numbers(preprocessing.mean),
        std=_numbers(preprocessing.std),
        colour=preprocessing.colour,
        swap=_SWAP if preprocessing.colour == "bgr" else "",
    )
    fed = "pixels"
    if flip:
        mirror = _parse(_MIRROR, **versions, **sizes, columns=", ".join(map(str, reversed(range(width)))))
        wrapped, fed = compose.merge_models(wrapped, mirror, io_map=[(fed, "straight")]), "pairs"
    (pixels,) = (value.name for value in backbone.graph.input)
    wrapped = compose.merge_models(wrapped, backbone, io_map=[(fed, pixels)], outputs=[f"backbone/{feature}"])
    for part, given, read in _after(versions, dim=dim, flip=flip, feature=f"backbone/{feature}"):
        wrapped = compose.merge_models(wrapped, part, io_map=[(given, read)], name="reidserve")
    _import_once(wrapped)
    _forget_provenance(wrapped)
    return wrapped


def _after(
    versions: Mapping[str, int], *, dim: int, flip: bool, feature: str
) -> Iterator[tuple[onnx.ModelProto, str, str]]:
    """What follows the backbone: graphs, each with the value before it and the name it reads that under."""
    axes_are_an_input = versions["opset"] >= _REDUCE_AXES_ARE_AN_INPUT
    values = {**versions, "dim": dim, "reduce": "ReduceL2" if axes_are_an_input else "ReduceL2 <axes = [1]>"}
    embeddings = "each" if flip else "embeddings"
    yield (
        _parse(_AFTER, **values, embeddings=embeddings, axis=", axis" if axes_are_an_input else ""),
        feature,
        "feature",
    )
    if flip:
        two = ", num_outputs = 2" if versions["opset"] >= _SPLIT_COUNTS_ITS_OUTPUTS else ""
        yield _parse(_MEAN, **values, two=two, along=", along" if axes_are_an_input else ""), "each", "each"


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
