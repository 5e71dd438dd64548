"""TensorRT itself: plans built here and run here. Needs a GPU with TensorRT: scripts/gpu."""

import gc
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from reidserve.embed import open_embedder, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.onnx_session import OnnxSession
from reidserve.embed.tensorrt_session import TensorRtSession, find_platform
from reidserve.errors import ArtifactError, DeviceError
from reidserve.export.plans import build_plan
from tests.conftest import DIM, HEIGHT, WIDTH, run_command

pytestmark = pytest.mark.gpu

BATCHES = (1, 4, 8)
BOUNDS = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.05}
"""Largest difference from the float32 network in any component of a unit embedding; on CPUs it is 0.00014 and 0.011."""


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain(model, batch) -> np.ndarray:
    return OnnxSession((model / MODEL_FILE).read_bytes())(batch)


@pytest.fixture(scope="module")
def timings(tmp_path_factory) -> Path:
    return Path(tmp_path_factory.mktemp("caches") / "timings")


@pytest.fixture(scope="module")
def built(model, timings):
    graph = (model / MODEL_FILE).read_bytes()
    return build_plan(graph, name=MODEL_FILE, precision="fp32", batches=BATCHES, timing_cache=timings)


@pytest.fixture(scope="module")
def session(built):
    return TensorRtSession(*built, dim=DIM)


def test_a_plan_computes_what_its_graph_computes_on_the_cpu(session, batch, plain):
    assert (session.engine, session.max_batch) == ("fp32/tensorrt", 8)
    np.testing.assert_allclose(session(batch), plain, atol=BOUNDS["fp32"])
    # The comparison can fail: pixels that are one grey level off are seen.
    off = np.where(batch < 255, batch + 1, 254).astype(np.uint8)
    assert np.abs(session(off) - plain).max() > 10 * BOUNDS["fp32"]


def test_an_embedding_does_not_depend_on_its_batch(session, batch):
    together = session(batch)
    for count in (1, 2, 4, 5, 8, 9):
        np.testing.assert_allclose(session(batch[:count]), together[:count], atol=BOUNDS["fp32"])
    np.testing.assert_allclose(session(batch[::-1])[::-1], together, atol=BOUNDS["fp32"])


def test_a_captured_graph_gives_the_same_bits_again(session, batch):
    for count in BATCHES:
        np.testing.assert_array_equal(session(batch[:count]), session(batch[:count]))


def test_what_the_plan_is_bound_to_is_recorded(built):
    _, facts = built
    here = find_platform()
    assert (facts.gpu, facts.capability, facts.driver) == (here.gpu, here.capability, here.driver)
    assert facts.tensorrt == here.tensorrt
    assert facts.batches == BATCHES


@pytest.mark.parametrize("fact", ["gpu", "capability", "driver", "tensorrt"])
def test_a_plan_of_another_platform_is_refused(built, fact):
    plan, facts = built
    with pytest.raises(DeviceError, match="it was built for .* another, here is"):
        TensorRtSession(plan, msgspec.structs.replace(facts, **{fact: "another"}), dim=DIM)


@pytest.mark.parametrize("damage", [lambda plan: b"", lambda plan: plan[: len(plan) // 2], lambda plan: b"x" + plan])
def test_a_damaged_plan_is_refused_in_tensorrts_words(built, damage):
    plan, facts = built
    with pytest.raises(ArtifactError, match="does not take the plan of model.onnx: .+"):
        TensorRtSession(damage(plan), facts, dim=DIM)


def test_a_plan_of_another_model_is_refused(built):
    plan, facts = built
    with pytest.raises(ArtifactError, match="not of this model"):
        TensorRtSession(plan, facts, dim=DIM + 1)


def test_timings_shorten_the_next_build_and_stay(model, built, timings):
    before = timings.read_bytes()
    assert before
    graph = (model / MODEL_FILE).read_bytes()
    build_plan(graph, name=MODEL_FILE, precision="fp32", batches=BATCHES, timing_cache=timings)
    assert len(timings.read_bytes()) >= len(before)


def test_closing_gives_the_memory_back(built):
    from cuda.bindings import runtime

    def free() -> int:
        gc.collect()
        return int(runtime.cudaMemGetInfo()[1])

    TensorRtSession(*built, dim=DIM).close()  # what CUDA loads once and keeps
    before = free()
    for _ in range(20):
        TensorRtSession(*built, dim=DIM).close()
    assert before - free() < 2**24


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_whole_way_from_an_artifact_to_a_plan_that_is_opened(model, crops, batch, plain, tmp_path, precision):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    if precision != "fp32":
        calibrate = ["--calibrate", str(crops)] if precision == "int8" else []
        made = run_command("reid-export", str(folder), "--precision", precision, *calibrate, "--unverified")
        assert made.returncode == 0, made.stderr
    made = run_command(
        *("reid-export", str(folder), "--tensorrt", "--precision", precision, "--batch", "1,4,8", "--unverified")
    )
    assert made.returncode == 0, made.stderr
    assert read_artifact(folder).contract.identity == read_artifact(model).contract.identity
    embedder = open_embedder(folder, precision=precision, device="tensorrt")
    assert embedder.engine == f"{precision}/tensorrt"
    np.testing.assert_allclose(embedder.embed(batch), plain, atol=BOUNDS[precision])
