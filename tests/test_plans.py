"""Plans of TensorRT, as far as a machine without a GPU can try them: on twins of TensorRT and CUDA where they run."""

import ast
import gc
import hashlib
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from reidserve.embed import Embedder, Plan, read_artifact
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.contract import MODEL_FILE, decode_contract, encode_contract
from reidserve.embed.gpu import Stream
from reidserve.embed.onnx_session import OnnxSession
from reidserve.embed.tensorrt_session import (
    MAX_BATCH,
    Platform,
    Port,
    TensorRtSession,
    choose_bucket,
    faulty_batches,
    find_platform,
    foreign_ports,
    refusals,
)
from reidserve.errors import ArtifactError, DeviceError, EmbeddingError, ExportError
from reidserve.export.plans import build_plan, plan_file
from reidserve.export.plans.build import _complaints
from reidserve.export.plans.timings import read_timings, write_timings
from tests import tensorrt_twin
from tests.conftest import DIM, HEIGHT, WIDTH

ROOT = Path(__file__).parents[1]
HERE = Platform(gpu="NVIDIA A10", capability="8.6", driver="13.0", tensorrt="11.4.0.106")
PLAN = Plan(
    graph="model.fp16.onnx",
    precision="fp16",
    gpu=HERE.gpu,
    capability=HERE.capability,
    driver=HERE.driver,
    tensorrt=HERE.tensorrt,
    batches=(1, 8, 32),
)
CROPS = Port("crops", True, "UINT8", (-1, HEIGHT, WIDTH, 3), 32)
EMBEDDINGS = Port("embeddings", False, "FLOAT", (-1, DIM))


@pytest.fixture
def twin() -> Iterator[tensorrt_twin.Runtime]:
    with tensorrt_twin.installed() as runtime:
        yield runtime


@pytest.fixture
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def graph(model: Path) -> bytes:
    return (model / MODEL_FILE).read_bytes()


def build(graph: bytes, **settings) -> tuple[bytes, Plan]:
    return build_plan(graph, **{"name": MODEL_FILE, "precision": "fp32", "batches": (1, 4, 8), **settings})


# What a plan is bound to


def test_a_plan_of_this_platform_is_not_refused():
    assert refusals(PLAN, HERE) == []


@pytest.mark.parametrize(
    ("fact", "other", "word"),
    [
        ("gpu", "NVIDIA A100", "GPU"),
        ("capability", "8.0", "compute capability"),
        ("driver", "12.8", "CUDA driver"),
        ("tensorrt", "11.4.0.105", "TensorRT"),
    ],
)
def test_one_fact_that_differs_refuses_a_plan_and_is_named(fact, other, word):
    plan = msgspec.structs.replace(PLAN, **{fact: other})
    assert refusals(plan, HERE) == [f"it was built for {word} {other}, here is {getattr(HERE, fact)}"]


def test_every_fact_of_the_platform_is_one_of_the_plan_and_all_that_differ_are_named():
    other = Platform(gpu="a", capability="b", driver="c", tensorrt="d")
    assert len(refusals(PLAN, other)) == len(Platform.__slots__) == 4


@pytest.mark.parametrize("batches", [(1,), (8,), (1, 8, 32), (1, 2, 3, MAX_BATCH)])
def test_a_bucket_is_the_smallest_that_holds_the_batch(batches):
    assert faulty_batches(batches) is None
    for count in range(1, batches[-1] + 1):
        bucket = choose_bucket(count, batches)
        assert bucket >= count
        assert not [size for size in batches if count <= size < bucket]


@pytest.mark.parametrize("batches", [(), (0, 1), (-1,), (8, 1), (1, 1), (1, MAX_BATCH + 1)])
def test_batch_sizes_that_are_none_are_refused(batches, graph):
    assert "must ascend from 1" in faulty_batches(batches)
    with pytest.raises(ArtifactError, match=r"plan of model.fp16.onnx is damaged: batch sizes must ascend"):
        TensorRtSession(b"", msgspec.structs.replace(PLAN, batches=batches), dim=DIM)


@pytest.mark.parametrize(
    ("ports", "fault"),
    [
        ([CROPS], "one tensor in and one out, got 1 and 0"),
        ([CROPS, CROPS, EMBEDDINGS], "one tensor in and one out, got 2 and 1"),
        ([Port("x", True, "FLOAT", CROPS.shape, 32), EMBEDDINGS], "expected UINT8"),
        ([Port("x", True, "UINT8", (-1, 3, HEIGHT, WIDTH), 32), EMBEDDINGS], "expected UINT8"),
        ([Port("x", True, "UINT8", (1, HEIGHT, WIDTH, 3), 32), EMBEDDINGS], "expected UINT8"),
        ([CROPS, Port("y", False, "HALF", (-1, DIM))], "FLOAT (-1, 24) out, got HALF"),
        ([CROPS, Port("y", False, "FLOAT", (-1, DIM + 1))], "FLOAT (-1, 24) out, got FLOAT (-1, 25)"),
        ([Port("x", True, "UINT8", CROPS.shape, 16), EMBEDDINGS], "batches of up to 32, it takes 16"),
    ],
)
def test_a_plan_of_another_graph_is_told_by_its_tensors(ports, fault):
    (found,) = foreign_ports(ports, batches=PLAN.batches, dim=DIM)
    assert fault in found


def test_the_tensors_of_the_contract_are_not_foreign_in_either_order():
    for ports in ([CROPS, EMBEDDINGS], [EMBEDDINGS, CROPS]):
        assert foreign_ports(ports, batches=PLAN.batches, dim=DIM) == []


# Beside the model


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA A10", "model.fp16.nvidia-a10.plan"),
        ("NVIDIA H100 80GB HBM3", "model.fp16.nvidia-h100-80gb-hbm3.plan"),
        ("NVIDIA GeForce RTX 4090 (../x)", "model.fp16.nvidia-geforce-rtx-4090-x.plan"),
    ],
)
def test_a_plan_is_named_after_its_gpu(gpu, name):
    assert plan_file("fp16", gpu) == name


@pytest.fixture
def with_plan(model: Path, tmp_path: Path) -> Path:
    """An artifact with a plan, and the name of it in its contract."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    contract = read_artifact(folder).contract
    (folder / "model.plan").write_bytes(b"a plan")
    contract = msgspec.structs.replace(
        contract,
        files={**contract.files, "model.plan": hashlib.sha256(b"a plan").hexdigest()},
        plans={"model.plan": PLAN},
    )
    (folder / CONTRACT_FILE).write_bytes(encode_contract(contract))
    return folder


def test_a_plan_leaves_the_identity_as_it_is_and_its_facts_come_back(with_plan: Path, model: Path):
    contract = read_artifact(with_plan).contract
    assert contract.plans == {"model.plan": PLAN}
    assert contract.identity == read_artifact(model).contract.identity
    assert decode_contract(encode_contract(contract)) == contract


def test_a_plan_that_was_changed_is_refused_before_anything_reads_it(with_plan: Path):
    (with_plan / "model.plan").write_bytes(b"a plam")
    with pytest.raises(ArtifactError, match=r"model\.plan was changed after export"):
        read_artifact(with_plan)


@pytest.mark.parametrize("fact", ["gpu", "capability", "driver", "tensorrt", "batches", "graph"])
def test_a_contract_whose_plan_lacks_a_fact_does_not_read(with_plan: Path, fact):
    facts = msgspec.json.decode((with_plan / CONTRACT_FILE).read_bytes())
    del facts["plans"]["model.plan"][fact]
    with pytest.raises(ArtifactError, match=f"missing required field `{fact}`"):
        decode_contract(msgspec.json.encode(facts))


def test_the_timing_cache_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch):
    path = tmp_path / "caches" / "timings"
    assert read_timings(None) == read_timings(path) == b""
    write_timings(path, b"first")
    assert read_timings(path) == b"first"

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExportError, match=r"timings cannot be written: No space left"):
        write_timings(path, b"second")
    assert read_timings(path) == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["timings"]
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        read_timings(tmp_path)


# Where TensorRT is not


@pytest.fixture(params=["nothing", "type stubs"])
def no_tensorrt(request, monkeypatch) -> str:
    absent = None if request.param == "nothing" else types.ModuleType("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", absent)
    return str(request.param)


def test_without_tensorrt_a_session_and_a_build_say_what_to_install(no_tensorrt, graph):
    with pytest.raises(DeviceError, match=r'expected TensorRT.*pip install "reidserve\[tensorrt\]"') as refused:
        find_platform()
    assert ("only its type stubs" in str(refused.value)) == (no_tensorrt == "type stubs")
    with pytest.raises(DeviceError, match="expected TensorRT"):
        TensorRtSession(b"", PLAN, dim=DIM)
    with pytest.raises(ExportError, match=r"built where it will run: expected TensorRT.*reidserve\[tensorrt\]"):
        build(graph)


@pytest.mark.parametrize(
    ("missing", "words"), [("polygraphy", "through Polygraphy"), ("cuda.bindings", "expected cuda-bindings")]
)
def test_without_one_of_its_companions_a_build_says_what_to_install(twin, graph, monkeypatch, missing, words):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExportError, match=rf'{words}.*not installed here: pip install "reidserve\[tensorrt\]"'):
        build(graph)


def test_what_polygraphy_complains_of_is_heard_and_not_printed(capfd):
    from polygraphy.logger import G_LOGGER

    settings = ("colors", "letter", "use_python_logging_system")
    before = [getattr(G_LOGGER, name) for name in settings]
    with _complaints() as heard:
        G_LOGGER.error("In node 3: no such thing\n")
        G_LOGGER.warning("slow")
        G_LOGGER.info("hello")
    assert heard == ["In node 3: no such thing"]
    assert capfd.readouterr() == ("", "")
    assert [getattr(G_LOGGER, name) for name in settings] == before


# Built and run, on twins


def test_pinned_memory_begins_as_zeros_and_what_is_asked_for_twice_stays_apart(twin):
    stream = Stream()
    first, second = stream.pin((2, 3), np.float32), stream.pin((2, 3), np.float32)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, np.zeros((2, 3)))
    first[...] = 1
    np.testing.assert_array_equal(second, np.zeros((2, 3)))
    stream.close()
    assert twin.live == {}


def test_memory_that_is_not_there_is_refused_in_cudas_words(twin):
    with pytest.raises(DeviceError, match="CUDA says cudaErrorMemoryAllocation"):
        Stream().allocate(2**40)


def test_a_plan_computes_what_its_graph_computes_whatever_the_batch(twin, graph, batch):
    plan, facts = build(graph)
    session = TensorRtSession(plan, facts, dim=DIM)
    plain = OnnxSession(graph)(batch)
    assert (session.engine, session.max_batch) == ("fp32/tensorrt", 8)
    for count in (1, 2, 4, 5, 8, 9, 23):
        np.testing.assert_array_equal(session(batch[:count]), plain[:count])
    np.testing.assert_array_equal(session(batch[::-1]), plain[::-1])


def test_answers_of_one_call_are_not_those_of_the_next(twin, graph, batch):
    session = TensorRtSession(*build(graph), dim=DIM)
    first = session(batch[:8])
    kept = first.copy()
    session(batch[8:16])
    np.testing.assert_array_equal(first, kept)


def test_a_request_only_launches_one_graph_for_each_bucket_it_fills(twin, graph, batch):
    session = TensorRtSession(*build(graph), dim=DIM)
    assert twin.launches == 0
    before = set(twin.live)
    session(batch[:3])
    assert twin.launches == 1
    session(batch)
    assert twin.launches == 4
    assert set(twin.live) == before


def test_everything_is_let_go_graphs_before_contexts_and_those_before_their_memory(twin, graph, batch):
    session = TensorRtSession(*build(graph), dim=DIM)
    session(batch)
    session.close()
    assert (twin.live, twin.streams, twin.graphs) == ({}, set(), {})
    assert twin.log[0] == "graph"
    assert twin.log[-2:] == ["memory", "stream"]
    last_graph = len(twin.log) - 1 - twin.log[::-1].index("graph")
    assert last_graph < twin.log.index("context")
    assert twin.log.count("context") == twin.log.count("graph") == 3
    session.close()
    with pytest.raises(EmbeddingError, match="was closed"):
        session(batch)


def test_a_session_that_is_forgotten_lets_go_too(twin, graph):
    session = TensorRtSession(*build(graph), dim=DIM)
    assert twin.live
    del session
    gc.collect()
    assert (twin.live, twin.streams, twin.graphs) == ({}, set(), {})


def test_an_embedder_holds_a_plan_to_its_contract(twin, model, graph, batch):
    embedder = Embedder(read_artifact(model).contract, TensorRtSession(*build(graph), dim=DIM))
    np.testing.assert_allclose(np.linalg.norm(embedder.embed(batch), axis=1), 1, atol=1e-5)


def test_a_batch_of_another_size_is_refused(twin, graph, batch):
    session = TensorRtSession(*build(graph), dim=DIM)
    for wrong in (batch[:, 1:], batch.astype(np.float32)):
        with pytest.raises(EmbeddingError, match=r"takes uint8 \(N, \*\(64, 32, 3\)\)"):
            session(wrong)


def test_a_failing_launch_fails_its_batch_and_no_others(twin, graph, batch):
    session = TensorRtSession(*build(graph), dim=DIM)
    twin.broken = True
    with pytest.raises(EmbeddingError, match="failed on 2 images: CUDA says cudaErrorLaunchFailure"):
        session(batch[:2])
    twin.broken = False
    np.testing.assert_array_equal(session(batch[:2]), OnnxSession(graph)(batch[:2]))


def test_a_damaged_plan_is_refused_in_tensorrts_words_and_nothing_is_kept(twin, graph):
    plan, facts = build(graph)
    with pytest.raises(ArtifactError, match="model.onnx: Serialization assertion magicTag failed") as refused:
        TensorRtSession(plan[1:], facts, dim=DIM)
    assert (twin.live, twin.streams) == ({}, set()), refused  # whose frames are alive still


def test_a_plan_of_another_model_is_refused_and_nothing_is_kept(twin, graph):
    plan, facts = build(graph)
    with pytest.raises(ArtifactError, match=r"not of this model: expected FLOAT \(-1, 25\) out, got FLOAT \(-1, 24\)"):
        TensorRtSession(plan, facts, dim=DIM + 1)
    assert (twin.live, twin.streams) == ({}, set())


@pytest.mark.parametrize("fact", ["gpu", "capability", "driver", "tensorrt"])
def test_a_plan_of_another_platform_is_refused_before_it_is_read(twin, fact):
    facts = msgspec.structs.replace(PLAN, **{**asdict(find_platform()), fact: "another"})
    with pytest.raises(DeviceError, match=r"built for .* another, here is .*\. Build one here: reid-export MODEL"):
        TensorRtSession(b"no plan at all", facts, dim=DIM)
    assert twin.log == []


def test_what_a_plan_was_built_with_is_recorded(twin, graph, tmp_path):
    plan, facts = build(graph, batches=[8, 1, 4, 4])
    assert plan.startswith(b'PLAN{"profile": [[1, 64, 32, 3], [4, 64, 32, 3], [8, 64, 32, 3]]}\n')
    assert facts == Plan(
        graph=MODEL_FILE,
        precision="fp32",
        gpu="NVIDIA Twin 80GB",
        capability="9.0",
        driver="13.1",
        tensorrt="11.4.0.106",
        batches=(1, 4, 8),
    )


def test_timings_are_taken_up_and_carried_on(twin, graph, tmp_path):
    cache = tmp_path / "timings"
    build(graph, timing_cache=cache)
    assert cache.read_bytes() == b"timed "
    build(graph, timing_cache=cache)
    assert cache.read_bytes() == b"timed timed "


def test_timings_of_another_gpu_are_passed_over_and_replaced(twin, graph, tmp_path):
    cache = tmp_path / "timings"
    cache.write_bytes(b"another's")
    assert build(graph, timing_cache=cache) == build(graph)
    assert cache.read_bytes() == b"timed "


def test_a_graph_that_does_not_build_is_refused_in_tensorrts_words(twin, graph, tmp_path, capfd):
    cache = tmp_path / "timings"
    with pytest.raises(ExportError, match=r"11.4.0.106 builds no plan of model.onnx: In node -1 with name: no graph"):
        build(b"\xff" + graph, timing_cache=cache)
    strange = onnx.load_from_string(graph)
    strange.graph.node[0].op_type = "Unbuildable"
    with pytest.raises(ExportError, match="Could not find any implementation for node Unbuildable"):
        build(strange.SerializeToString(), timing_cache=cache)
    assert not cache.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("batches", [[], [0], [MAX_BATCH + 1]])
def test_batch_sizes_that_are_none_are_refused_before_a_build(twin, graph, batches):
    with pytest.raises(ExportError, match="batch sizes must ascend from 1"):
        build(graph, batches=batches)


# What TensorRT 11 no longer has

FLAGS = {"FP16", "INT8", "BF16", "FP8", "INT4", "FP4", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"}
"""Of BuilderFlag."""

REMOVED = {
    "EXPLICIT_BATCH",
    "IAlgorithmSelector",
    "IInt8Calibrator",
    "IInt8EntropyCalibrator",
    "IInt8EntropyCalibrator2",
    "IInt8LegacyCalibrator",
    "IInt8MinMaxCalibrator",
    "QuantizationFlag",
    "algorithm_selector",
    "clear_quantization_flag",
    "device_memory_size",
    "dynamic_range",
    "get_calibration_profile",
    "get_quantization_flag",
    "int8_calibrator",
    "platform_has_fast_fp16",
    "platform_has_fast_int8",
    "quantization_flags",
    "reset_precision",
    "set_calibration_profile",
    "set_dynamic_range",
    "set_output_type",
    "set_quantization_flag",
}
"""From docs.nvidia.com/deeplearning/tensorrt, "Removed Python APIs and Replacements", 10.x to 11.x: the weak typing."""

GONE_BEFORE = {
    "binding_is_input",
    "build_cuda_engine",
    "build_engine",
    "execute",
    "execute_async",
    "execute_async_v2",
    "execute_v2",
    "get_binding_dtype",
    "get_binding_index",
    "get_binding_name",
    "get_binding_shape",
    "max_workspace_size",
    "num_bindings",
    "set_binding_shape",
}
"""Bindings by number, and what else TensorRT 10 dropped. `execute` is SQLite's word too."""

KEYWORDS = {"algorithm_selector", "bf16", "calibrator", "fp16", "fp8", "int8", "precision_constraints"}
"""Of Polygraphy's CreateConfig, for networks that are not strongly typed."""


def removed_names(source: str) -> list[str]:
    """Where a source uses what TensorRT 11 no longer has, and in which words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            of_flags = isinstance(node.value, ast.Attribute) and node.value.attr == "BuilderFlag"
            if node.attr in (REMOVED | GONE_BEFORE) or (of_flags and node.attr in FLAGS):
                found.append(node.attr)
            if node.attr == "precision" and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) != "self":
                found.append("precision =")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("create_config", "CreateConfig")):
            found += [f"{keyword.arg}=" for keyword in node.keywords if keyword.arg in KEYWORDS]
        elif isinstance(node, ast.Constant) and node.value in REMOVED:
            found.append(str(node.value))  # getattr(trt, "...")
    return found


def test_nothing_of_ours_uses_what_tensorrt_11_removed():
    sources = [*(ROOT / "embed").rglob("*.py"), *(ROOT / "export").rglob("*.py")]
    assert {ROOT / "embed/tensorrt_session.py", ROOT / "export/plans/build.py"} <= set(sources)
    assert {str(path): found for path in sources if (found := removed_names(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "config.set_flag(trt.BuilderFlag.FP16)",
        "config.set_flag(trt.BuilderFlag.INT8)",
        "class Mine(trt.IInt8Calibrator): pass",
        "layer.precision = trt.float16",
        "tensor.set_dynamic_range(-1, 1)",
        "builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))",
        "context.execute_v2([1, 2])",
        "engine.get_binding_name(0)",
        "engine.device_memory_size",
        "trt.create_config(builder, network, fp16=True)",
        "getattr(config, 'int8_calibrator')",
    ],
)
def test_the_search_for_removed_names_finds_them(source):
    assert removed_names(source)


def test_the_search_for_removed_names_leaves_what_is_ours():
    ours = "self.precision = facts.precision\nFlavour(precision='int8')\nengine.device_memory_size_v2\nDataType.UINT8"
    assert removed_names(ours) == []
