"""Features computed by the projects' own code, in torch and through the exported graph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reidserve.embed.onnx_session import OnnxSession

torch = pytest.importorskip("torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import Checkpoint, Feed, read_checkpoint  # noqa: E402
from reidserve.export.convert.from_checkpoint import trace  # noqa: E402
from tests.goldens import GOLDENS, difference, golden_feature, golden_inputs, golden_weights  # noqa: E402

IN_TORCH, IN_ONNX = 1e-5, 1e-4
FAST = ("ibnnet_resnet18_ibn_a_s2", "fastreid_sbs_R50_ibn")
"""Which of them go through a graph in every run of the tests."""


def read_golden(folder: Path, path: Path) -> Checkpoint:
    torch.save(golden_weights(folder), path)
    said: dict[str, Any] = GOLDENS[folder.name]
    return read_checkpoint(path, **said)


@pytest.mark.parametrize("name", GOLDENS)
def test_a_checkpoint_computes_what_its_own_project_computes(shared: Path, tmp_path: Path, name: str):
    folder = shared / "data/goldens/dialects" / name
    checkpoint = read_golden(folder, tmp_path / "weights.pth")
    for kind, crops in golden_inputs(folder, checkpoint.feeding or Feed()).items():
        with torch.inference_mode():
            got: Any = checkpoint.network(torch.from_numpy(crops))
        expected = golden_feature(folder, kind, checkpoint.architecture.parts)
        assert difference(got.numpy(), expected) <= IN_TORCH, kind


def test_the_official_pcb_brings_each_part_to_unit_length_itself(shared: Path):
    folder = shared / "data/goldens/dialects/pcb_official"
    golden = np.load(folder / "golden.npz")
    for kind in ("", "blocks_"):
        assert difference(golden_feature(folder, kind, parts=6), golden[f"{kind}model_output"]) <= 1e-6


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in GOLDENS]
)
def test_a_projects_own_features_come_out_of_the_exported_graph(shared: Path, tmp_path: Path, name: str):
    folder = shared / "data/goldens/dialects" / name
    checkpoint = read_golden(folder, tmp_path / "weights.pth")
    inputs = golden_inputs(folder, checkpoint.feeding or Feed())
    height, width = inputs[""].shape[2:]
    session = OnnxSession(trace(checkpoint.network, height=height, width=width).SerializeToString())
    for kind, crops in inputs.items():
        expected = golden_feature(folder, kind, checkpoint.architecture.parts)
        assert difference(session(crops), expected) <= IN_ONNX, kind
