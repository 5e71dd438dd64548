"""Flavours as tests need them: the same graph in half precision and in integers, by ONNX Runtime's own tools."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from reidserve.embed import Check, Embedder, Flavour, read_artifact
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.canaries import CANARIES_FILE, REFERENCE_ENGINE, encode_canaries
from reidserve.embed.contract import MODEL_FILE, encode_contract
from reidserve.embed.engines import GRAPHS
from reidserve.embed.onnx_session import OnnxSession
from tests.conftest import HEIGHT, WIDTH


def write_flavours(model: Path, out: Path, *, checked: tuple[str, ...] = ()) -> Path:
    """A copy of an artifact with fp16 and int8 beside it, each with its canaries on ONNX Runtime's CPU.

    `checked` are the engines that the contract says were held to fp32.
    """
    shutil.copytree(model, out)
    artifact = read_artifact(model)
    embed = Embedder(artifact.contract, OnnxSession((model / MODEL_FILE).read_bytes()))
    crops = np.stack([embed.prepare(image) for image in artifact.canaries.images])
    graph = onnx.load(model / MODEL_FILE)
    flavours: dict[Literal["fp16", "int8"], onnx.ModelProto] = {
        "fp16": in_half(graph),
        "int8": in_integers(graph, crops, out / "work.onnx"),
    }
    rows = {REFERENCE_ENGINE: embed.embed(crops)}
    files = dict(artifact.contract.files)
    for precision, made in flavours.items():
        data = made.SerializeToString()
        write(out / GRAPHS[precision], data, files)
        rows[f"{precision}/onnxruntime-cpu"] = OnnxSession(data, precision=precision)(crops)
    write(out / CANARIES_FILE, encode_canaries(artifact.canaries.images, rows), files)
    told = {
        GRAPHS[precision]: Flavour(
            precision=precision,
            checks=tuple(
                Check(engine=engine, data="0" * 64, queries=1000, cosine=0.99)
                for engine in checked
                if engine.startswith(precision)
            ),
        )
        for precision in flavours
    }
    contract = msgspec.structs.replace(artifact.contract, files=files, flavours=told)
    (out / CONTRACT_FILE).write_bytes(encode_contract(contract))
    return out


def write(path: Path, data: bytes, files: dict[str, str]) -> None:
    """Write a file of an artifact and its sha256 into `files`."""
    path.write_bytes(data)
    files[path.name] = hashlib.sha256(data).hexdigest()


def replace_graph(folder: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a graph of an artifact, and the sha256 that its contract names."""
    graph = onnx.load(folder / name)
    change(graph)
    contract = read_artifact(folder).contract
    files = dict(contract.files)
    write(folder / name, graph.SerializeToString(), files)
    (folder / CONTRACT_FILE).write_bytes(encode_contract(msgspec.structs.replace(contract, files=files)))


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its first convolution computed in float16."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    conv = next(node for node in graph.node if node.op_type == "Conv")
    place = list(graph.node).index(conv)
    before = [helper.make_node("Cast", [name], [f"{name}/half"], to=onnx.TensorProto.FLOAT16) for name in conv.input]
    after = helper.make_node("Cast", [f"{conv.output[0]}/half"], [conv.output[0]], to=onnx.TensorProto.FLOAT)
    conv.input[:] = [f"{name}/half" for name in conv.input]
    conv.output[0] = f"{conv.output[0]}/half"
    nodes = [*graph.node[:place], *before, graph.node[place], after, *graph.node[place + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def in_integers(model: onnx.ModelProto, crops: NDArray[np.uint8], work: Path) -> onnx.ModelProto:
    """The graph with its convolutions in integers, their ranges taken from crops."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for place, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(crops)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            crop = next(self._batches, None)
            return None if crop is None else {named.graph.input[0].name: crop[np.newaxis]}

    quantize_static(
        named,
        work,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    made = onnx.load(work)
    work.unlink()
    return made


def normalising_model(*, blocks: int = 8, channels: int = 32) -> onnx.ModelProto:
    """A foreign network of convolutions with InstanceNorm behind each, as foreign_model in what it takes and gives."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "pixels"
    for block in range(blocks):
        taken = 3 if block == 0 else channels
        filters = rng.standard_normal((channels, taken, 3, 3)) * 1.4 / np.sqrt(9 * taken)
        for name, values in (("w", filters), ("s", np.ones(channels)), ("b", np.zeros(channels))):
            weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}{block}"))
        strides = [2, 2] if block < 2 else [1, 1]
        nodes += [
            helper.make_node("Conv", [last, f"w{block}"], [f"c{block}"], pads=[1, 1, 1, 1], strides=strides),
            helper.make_node("InstanceNormalization", [f"c{block}", f"s{block}", f"b{block}"], [f"n{block}"]),
            helper.make_node("Relu", [f"n{block}"], [f"r{block}"]),
        ]
        last = f"r{block}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["p"]), helper.make_node("Flatten", ["p"], ["feature"])]
    graph = helper.make_graph(
        nodes,
        "normalising",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["N", 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("feature", onnx.TensorProto.FLOAT, ["N", channels])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def perturb_weights(model: onnx.ModelProto) -> None:
    """Every second filter of the first convolution, or its scale where it is quantised, times three."""
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    makers = {output: node for node in model.graph.node for output in node.output}
    maker = makers.get(conv.input[1])
    # Where weights are integers, the scale that makes them numbers.
    name = conv.input[1] if maker is None else maker.input[1 if maker.op_type == "DequantizeLinear" else 0]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[::2] *= 3
    tensor.CopyFrom(numpy_helper.from_array(values, name))
