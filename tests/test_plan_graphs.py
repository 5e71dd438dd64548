"""The graphs that plans are compiled from keep to what TensorRT's parser documents, as far as a graph shows it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reidserve.datasets import read_crops
from reidserve.embed import open_embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.export.flavours import make_half, make_integer, measure_ranges
from tests import tensorrt_twin
from tests.conftest import HEIGHT, WIDTH

torch = pytest.importorskip("torch", reason="needs the [train] extra")

from reidserve.export.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.convert.from_checkpoint import export_checkpoint  # noqa: E402
from reidserve.export.derive import Calibration, derive_flavour, derive_plan  # noqa: E402
from reidserve.export.model import Architecture  # noqa: E402
from tests.test_from_checkpoint import FEEDING, lively_network  # noqa: E402

OPERATORS = frozenset(
    """
    Add AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv DequantizeLinear Div Equal
    Exp Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity
    InstanceNormalization LayerNormalization LeakyRelu Log LpNormalization MatMul Max MaxPool Min Mul Neg Pad Pow PRelu
    QuantizeLinear Reciprocal ReduceL2 ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice Softmax Split
    Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 — a list of strings would take a page
)
"""Those that a network for images has, of the ones that docs/operators.md of onnx/onnx-tensorrt supports (10.15)."""

OPSETS = range(9, 25)
"""Of the same page."""


def objections(model: onnx.ModelProto) -> list[str]:
    """What TensorRT's documentation says against a graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    found = [f"opset {entry.version} is not supported" for entry in model.opset_import if entry.version not in OPSETS]
    found += [f"{node.op_type} is not supported" for node in graph.node if node.op_type not in OPERATORS]
    found += [f"{name} is {helper.tensor_dtype_to_string(kind)}" for name, kind in types.items() if _strange(kind)]
    for node in graph.node:
        kinds = [types.get(name, 0) for name in node.input]
        if TensorProto.UINT8 in kinds and node.op_type != "Cast":
            found.append(f"{node.op_type} reads uint8, which only a Cast of the input may")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _of_quantising(node, types, constants)
        elif TensorProto.INT8 in kinds:
            found.append(f"{node.op_type} reads int8, which only DequantizeLinear may")
        if node.op_type.startswith("Reduce"):
            found += [f"{name} must be an initializer" for name in node.input[1:] if name not in constants]
        if node.op_type == "InstanceNormalization":
            found += ["InstanceNormalization must be float32, which is ours to say"] * (kinds[0] != TensorProto.FLOAT)
        if node.op_type == "MaxPool" and len(node.output) > 1:
            found.append("MaxPool gives indices")
    return found


def _strange(kind: int) -> bool:
    allowed = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8)
    return kind not in (*allowed, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)


def _of_quantising(node: onnx.NodeProto, types: dict[str, int], constants: dict[str, TensorProto]) -> Iterator[str]:
    side = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    if types.get(side) != TensorProto.INT8:
        yield f"{node.op_type} must be of int8, {side} is not"
    if node.input[1] not in constants:
        yield f"{node.op_type} must have a constant scale"
    if len(node.input) > 2 and numpy_helper.to_array(constants[node.input[2]]).any():
        yield f"{node.op_type} must have 0 as its zero point"


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> onnx.ModelProto:
    """The graph of a network with all that ours can have and others do not."""
    folder = Path(tmp_path_factory.mktemp("models"))
    network = lively_network(
        Architecture(backbone="resnet18", ibn="a", pooling="gem", non_local=(0, 0, 1, 0), classes=5)
    )
    write_checkpoint(folder / "c.safetensors", network, {})
    export_checkpoint(read_checkpoint(folder / "c.safetensors"), folder / "model", FEEDING)
    return onnx.load_from_string((folder / "model" / MODEL_FILE).read_bytes())


def test_tensorrts_documentation_says_nothing_against_any_of_its_graphs(graph):
    batches = [np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)]
    ranges = measure_ranges(graph, batches)
    assert {"InstanceNormalization", "Pow"} <= {node.op_type for node in graph.graph.node}
    assert objections(graph) == []
    assert objections(make_half(graph)) == []
    signed = make_integer(graph, ranges, signed=True)
    assert objections(signed) == []
    assert any(node.op_type == "QuantizeLinear" for node in signed.graph.node)
    # What is meant for CPUs is told from it.
    assert any("must be of int8" in found for found in objections(make_integer(graph, ranges, signed=False)))


def test_an_operator_that_is_not_supported_is_told(graph):
    strange = onnx.ModelProto()
    strange.CopyFrom(graph)
    strange.graph.node[-1].op_type = "Mod"
    assert objections(strange) == ["Mod is not supported"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_whole_way_from_an_artifact_to_a_plan_that_is_opened(model, crops, tmp_path, precision):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    batch = np.random.default_rng(0).integers(0, 256, (23, HEIGHT, WIDTH, 3), dtype=np.uint8)
    with tensorrt_twin.installed():
        if precision != "fp32":
            calibration = Calibration(crops=list(read_crops(crops)), budget=100, seed=0, cache=tmp_path)
            derive_flavour(folder, precision, calibration=calibration if precision == "int8" else None)
        derive_plan(folder, precision, batches=[1, 4, 8], timing_cache=tmp_path / "timings")
        embedder = open_embedder(folder, precision=precision, device="tensorrt")
        embeddings = embedder.embed(batch)
    contract = read_artifact(folder).contract
    assert contract.identity == read_artifact(model).contract.identity
    assert [(plan.precision, plan.unverified) for plan in contract.plans.values()] == [(precision, True)]
    assert embedder.engine == f"{precision}/tensorrt"
    plain = open_embedder(model).embed(batch)
    bound = {"fp32": 0, "fp16": 1e-3, "int8": 0.05}[precision]
    assert np.abs(embeddings - plain).max() <= bound
