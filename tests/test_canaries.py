import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from reidserve.embed import Precision, open_embedder, read_artifact
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.canaries import BOUNDS, FOREIGN_BOUNDS, Canaries, compare_canaries
from reidserve.embed.contract import encode_contract
from reidserve.embed.engines import GRAPHS, Device
from reidserve.errors import ArtifactError
from tests.conftest import unit_rows
from tests.precisions import perturb_weights, replace_graph, write_flavours

DIM = 16
FLAVOURS: list[Precision] = ["fp16", "int8"]


@pytest.fixture(scope="module")
def flavoured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flavours(model, tmp_path_factory.mktemp("models") / "flavoured")


@pytest.fixture
def copy(flavoured: Path, tmp_path: Path) -> Path:
    """An artifact with flavours, to damage."""
    return Path(shutil.copytree(flavoured, tmp_path / "copy"))


@pytest.fixture
def rows() -> np.ndarray:
    return unit_rows(np.random.default_rng(0), 8, DIM)


def canaries_of(**rows: np.ndarray) -> Canaries:
    named = {engine.replace("_", "/").replace("ort", "onnxruntime-cpu"): kept for engine, kept in rows.items()}
    return Canaries(images=[b""] * 8, embeddings={engine: kept.tobytes() for engine, kept in named.items()})


def turned(rows: np.ndarray, distance: float) -> np.ndarray:
    """The rows, the last of them turned to another unit vector at this distance."""
    moved = rows.copy()
    across = np.roll(rows[-1], 1) - rows[-1] * (rows[-1] @ np.roll(rows[-1], 1))
    angle = 2 * np.arcsin(distance / 2)
    moved[-1] = np.cos(angle) * rows[-1] + np.sin(angle) * across / np.linalg.norm(across)
    return moved


@pytest.mark.parametrize(
    ("engine", "bound"),
    [(f"{precision}/onnxruntime-cpu", BOUNDS[precision]) for precision in GRAPHS]
    + [(f"{precision}/tensorrt", FOREIGN_BOUNDS[precision]) for precision in GRAPHS],
)
def test_canaries_hold_up_to_the_bound_of_the_engine_and_not_above(rows, engine: str, bound: float):
    canaries = canaries_of(fp32_ort=rows, fp16_ort=rows, int8_ort=rows)
    assert compare_canaries(canaries, turned(rows, 0.9 * bound), engine=engine) == pytest.approx(0.9 * bound, rel=0.01)
    with pytest.raises(ArtifactError, match=f"on {engine}, at most {bound:g} was expected"):
        compare_canaries(canaries, turned(rows, 1.1 * bound), engine=engine)
    broken = rows.copy()
    broken[7, -1] = np.nan
    with pytest.raises(ArtifactError, match="canaries differ by nan"):
        compare_canaries(canaries, broken, engine=engine)


def test_an_engine_is_held_to_its_own_canaries_first(rows):
    other = unit_rows(np.random.default_rng(1), 8, DIM)
    canaries = canaries_of(fp32_ort=rows, int8_ort=rows, int8_tensorrt=other)
    assert compare_canaries(canaries, other, engine="int8/tensorrt") == 0
    with pytest.raises(ArtifactError, match="canaries differ by"):
        compare_canaries(canaries, rows, engine="int8/tensorrt")


def test_a_flavour_without_any_canaries_is_refused(rows):
    with pytest.raises(ArtifactError, match="none of fp16/tensorrt and none of fp16/onnxruntime-cpu: make that flavou"):
        compare_canaries(canaries_of(fp32_ort=rows), rows, engine="fp16/tensorrt")


@pytest.mark.parametrize("device", ["cpu", "openvino"])
@pytest.mark.parametrize("precision", FLAVOURS)
def test_another_resize_filter_is_caught_whatever_the_engine(copy: Path, precision: Precision, device: Device):
    contract = read_artifact(copy).contract
    (copy / CONTRACT_FILE).write_bytes(encode_contract(msgspec.structs.replace(contract, resize="bicubic")))
    if device == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(ArtifactError, match=r"on fp32/onnxruntime-cpu, at most 0.0001 was expected"):
        open_embedder(copy, precision=precision, device=device)


@pytest.mark.parametrize("device", ["cpu", "openvino"])
@pytest.mark.parametrize("precision", FLAVOURS)
def test_other_weights_in_a_flavour_are_caught_whatever_the_engine(copy: Path, precision: Precision, device: Device):
    if device == "openvino":
        pytest.importorskip("openvino")
    open_embedder(copy, precision=precision, device=device)
    replace_graph(copy, GRAPHS[precision], perturb_weights)
    engine = f"{precision}/{'onnxruntime' if device == 'cpu' else device}-cpu"
    with pytest.raises(ArtifactError, match=f"canaries differ by .* on {engine}, at most"):
        open_embedder(copy, precision=precision, device=device)


def test_an_engine_that_was_absent_at_export_is_warned_of(flavoured: Path, caplog: pytest.LogCaptureFixture):
    pytest.importorskip("openvino")
    open_embedder(flavoured, precision="int8")
    assert not caplog.messages
    open_embedder(flavoured, precision="int8", device="openvino")
    (said,) = caplog.messages
    assert "has no canaries of int8/openvino-cpu; they lie within" in said
