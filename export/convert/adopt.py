"""Adopting: anyone's ONNX, read strictly, becomes an artifact of the contract."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from reidserve.embed import Batch, Embeddings, Network, Source
from reidserve.embed.onnx_session import OnnxSession
from reidserve.errors import ArtifactError, ExportError
from reidserve.export.convert.assembly import Assembled, Blueprint, assemble, check_free
from reidserve.export.convert.feeding import Feeding, feed_by_hand
from reidserve.export.convert.wrap import every_graph, wrap

OLDEST_OPSET = 11
_PLAIN_DOMAINS = ("", "ai.onnx")


def adopt(
    path: Path,
    out: Path,
    feeding: Feeding,
    *,
    output: str | None = None,
    flip: bool = False,
    images: Sequence[bytes] = (),
    force: bool = False,
) -> Assembled:
    """Turn a foreign ONNX (float32 (N, 3, height, width) in, (N, dim) out) into an artifact in the folder `out`.

    The written artifact is compared with the foreign model fed by hand, on the canaries and on encoded `images`, and
    is left nowhere if they differ. Its operators stay as they are.
    `output` names the output to take where the graph has several; with `flip` the artifact averages a crop and its
    mirror image.

    Raises:
        ExportError: the file is no such model; the message says what was expected and what came.
        OutputExistsError: `out` is there already.
    """
    check_free(out, force=force)
    data, model = _read(path)
    feature = _select_output(model, output)
    _check_input(model, feeding)
    try:
        foreign = OnnxSession(model.SerializeToString(), whole=True)
    except ArtifactError as error:
        raise ExportError(f"{path} does not run: {error}") from error

    def fed_by_hand(batch: Batch) -> Embeddings:
        straight = _unit(foreign(feed_by_hand(batch, feeding.preprocessing)))
        if not flip:
            return straight
        return _unit(straight + _unit(foreign(feed_by_hand(batch[:, :, ::-1], feeding.preprocessing))))

    dim = _probe(foreign, feeding)
    graph = wrap(
        model,
        feature=feature,
        height=feeding.height,
        width=feeding.width,
        dim=dim,
        preprocessing=feeding.preprocessing,
        flip=flip,
    )
    blueprint = Blueprint(
        feeding=feeding,
        dim=dim,
        network=Network(flip=flip),
        source=Source(kind="onnx", sha256=hashlib.sha256(data).hexdigest()),
    )
    return assemble(graph, blueprint, out, reference=fed_by_hand, images=images, force=force)


def _unit(vectors: Embeddings) -> Embeddings:
    unit: Embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _read(path: Path) -> tuple[bytes, onnx.ModelProto]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ExportError(f"{path} is no ONNX model: {error}") from error
    if not model.graph.node:
        raise ExportError(f"{path} is no ONNX model: it has no graph")
    # Before the checker, which would look for the files that the tensors name.
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in _tensors(model)):
        raise ExportError(
            f"{path} keeps weights in other files, which may lie anywhere: save it as one file "
            "(onnx.save_model(onnx.load(file), out, save_as_external_data=False))"
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path} is no valid ONNX model: {str(error).partition(chr(10))[0]}") from error
    _check_operators(path, model)
    return data, model


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    found = []
    for graph in every_graph(model.graph):
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        found += [*graph.initializer, *(attribute.t for attribute in attributes)]
        found += [tensor for attribute in attributes for tensor in attribute.tensors]
        sparse = [*graph.sparse_initializer, *(attribute.sparse_tensor for attribute in attributes)]
        found += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    return found


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in _PLAIN_DOMAINS), 0)
    if opset < OLDEST_OPSET:
        raise ExportError(f"{path} has opset {opset}, at least {OLDEST_OPSET} was expected: export it again")
    foreign = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for graph in every_graph(model.graph)
            for node in graph.node
            if node.domain not in _PLAIN_DOMAINS
        }
    )
    if foreign or model.functions:
        raise ExportError(
            f"{path} uses operators outside the ONNX standard ({', '.join(foreign) or 'local functions'}), which no "
            "other engine runs: export it without optimisation for one engine"
        )


def _select_output(model: onnx.ModelProto, name: str | None) -> str:
    names = [value.name for value in model.graph.output]
    if name is None and len(names) != 1:
        raise ExportError(f"the graph has the outputs {', '.join(names)}: name the embedding with --output")
    chosen = name if name is not None else names[0]
    if chosen not in names:
        raise ExportError(f"the graph has no output {chosen!r}, it has {', '.join(names)}")
    kept = next(value for value in model.graph.output if value.name == chosen)
    shape = kept.type.tensor_type.shape.dim
    if kept.type.tensor_type.HasField("shape") and len(shape) != 2:
        described = ", ".join(dim.dim_param or str(dim.dim_value) for dim in shape)
        raise ExportError(f"output {chosen!r} must be (N, dim), got ({described}): export the pooled feature")
    del model.graph.output[:]
    model.graph.output.append(kept)
    return chosen


def _check_input(model: onnx.ModelProto, feeding: Feeding) -> None:
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialised]
    if len(inputs) != 1:
        raise ExportError(
            f"one input was expected, the graph has {', '.join(value.name for value in inputs) or 'none'}"
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        got = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ExportError(f"input {inputs[0].name!r} must be float32, got {got}")
    fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    expected = [None, 3, feeding.height, feeding.width]
    if len(fixed) != 4 or any(size not in (None, wanted) for size, wanted in zip(fixed[1:], expected[1:], strict=True)):
        raise ExportError(
            f"input {inputs[0].name!r} must be (N, 3, {feeding.height}, {feeding.width}), got "
            f"({', '.join('N' if size is None else str(size) for size in fixed)}): is --size right?"
        )
    if fixed[0] is not None:
        raise ExportError(
            f"input {inputs[0].name!r} has its batch fixed at {fixed[0]}: export with a dynamic batch "
            "(torch.onnx.export(..., dynamic_axes={'input': {0: 'N'}, 'output': {0: 'N'}}))"
        )


def _probe(foreign: OnnxSession, feeding: Feeding) -> int:
    """The dimensions of the foreign embedding, seen by feeding two and three grey crops."""
    dims: set[int] = set()
    for count in (2, 3):
        grey = np.full((count, feeding.height, feeding.width, 3), 127, np.uint8)
        try:
            features = foreign(feed_by_hand(grey, feeding.preprocessing))
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ExportError(f"the graph does not run on {count} crops (is its batch fixed?): {reason}") from error
        if features.dtype != np.float32 or features.ndim != 2 or len(features) != count:
            raise ExportError(
                f"the output must be float32 (N, dim), got {features.dtype} {features.shape} for {count} crops"
            )
        if not np.isfinite(features).all():
            raise ExportError("the model gives NaN or infinity for a plain grey crop: are its weights whole?")
        dims.add(features.shape[1])
    if len(dims) != 1:
        raise ExportError(f"the output must be (N, dim), got another dim for 2 crops than for 3: {sorted(dims)}")
    return dims.pop()
