"""Files of weights: wrappers, prefixes, and files that are refused."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reidserve.errors import CheckpointError

torch = pytest.importorskip("torch", reason="needs reidserve[train]")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import read_checkpoint as read_strictly  # noqa: E402
from reidserve.export.checkpoints import (  # noqa: E402
    write_checkpoint,
)
from reidserve.export.model import Network, build_network  # noqa: E402
from tests.states import FEED, SMALL, STRONG, lively, save  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture(scope="module")
def network() -> Network:
    return lively(build_network(SMALL, seed=0))


@pytest.fixture(scope="module")
def own(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `network`, as reid-train would write it."""
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    write_checkpoint(path, network, {"epoch": "12", **FEED.to_metadata()})
    return path


def read_checkpoint(path: Path, **said: Any) -> Any:
    return read_strictly(path, **said)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 60},
        lambda state: {"model": state, "optimizer": {"param_groups": []}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "rank1": np.float32(0.931), "mAP": np.float64(0.852)},
    ],
    ids=["state_dict", "model", "module", "_orig_mod", "both", "averaged", "numpy scalars"],
)
def test_wrappers_are_taken_off(path: Path, wrap: Any):
    checkpoint = read_checkpoint(save(wrap(STRONG), path), dialect="strong-baseline")
    assert checkpoint.architecture == SMALL
    assert "base.bn1.num_batches_tracked" in checkpoint.dead


def test_the_older_format_of_torch_is_read(path: Path):
    save({"state_dict": STRONG, "rank1": np.float32(0.5)}, path, _use_new_zipfile_serialization=False)
    assert read_checkpoint(path, dialect="strong-baseline").architecture == SMALL


def test_a_foreign_safetensors_is_read_by_its_names(path: Path):
    safetensors_torch.save_file({name: tensor.contiguous() for name, tensor in STRONG.items()}, path)
    assert read_checkpoint(path, dialect="strong-baseline").dialect == "strong-baseline"


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["beside", "among", "alone"])
def test_a_pickle_that_would_run_code_does_not_run(path: Path, tmp_path: Path, where: str, zipped: bool):
    runs = Runs(tmp_path / "ran")
    loaded = {"beside": {"state_dict": STRONG, "hook": runs}, "among": STRONG | {"base.hook": runs}, "alone": runs}
    save(loaded[where], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"wants posix\.mkdir, which could run code, so nothing of it was loaded"):
        read_checkpoint(path, dialect="strong-baseline")
    assert not runs.path.exists()
    path.write_bytes(pickle.dumps(loaded["alone"]))
    with pytest.raises(CheckpointError):
        read_checkpoint(path, dialect="strong-baseline")
    assert not runs.path.exists()


class NumpyRuns:
    """Reaches for code through a type of NumPy that is let through by name."""

    def __reduce__(self) -> Any:
        return np.dtype, ("f4",), {"a": 1}


def test_the_names_that_are_let_through_stand_for_nothing(path: Path):
    let_through_before = torch.serialization.get_safe_globals()
    checkpoint = read_checkpoint(save({"state_dict": STRONG, "kind": NumpyRuns()}, path), dialect="dmt")
    assert checkpoint.architecture == SMALL
    with pytest.raises(CheckpointError, match=r"wants numpy.*_reconstruct, which could run code"):
        read_checkpoint(save({"state_dict": STRONG, "array": np.ones(3)}, path), dialect="dmt")
    assert torch.serialization.get_safe_globals() == let_through_before


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_is_refused_and_the_refusal_says_how_to_save_a_state_dict(path: Path, zipped: bool):
    save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"container\.Sequential.*torch\.save\(model\.state_dict\(\), path\)"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_things_than_a_state_dict_are_refused(path: Path):
    for value, message in (
        (torch.ones(3), "holds Tensor, a state dict with tensors was expected"),
        ([], "holds list, a state dict with tensors was expected"),
        ({"net": {}, "epoch": 3}, "under state_dict or model: these are no tensors: net, epoch"),
        (STRONG | {"epoch": 3}, "these are no tensors: epoch"),
        ({"a": torch.ones(2).to_sparse(), "b": torch.ones(2, device="meta")}, "sparse, nested or have no values: a, b"),
        ({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "sparse, nested or have no values: a"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(save(value, path))


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, own: Path, part: float):
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(STRONG, zipped)
    torch.save(STRONG, legacy, _use_new_zipfile_serialization=False)
    for data in (own.read_bytes(), zipped.getvalue(), legacy.getvalue()):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(CheckpointError, match="is no whole|is empty"):
            read_checkpoint(path, dialect="strong-baseline")


def test_a_damaged_file_is_refused_and_nothing_else_escapes(path: Path):
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    torch.save({name: STRONG[name] for name in list(STRONG)[:20]}, buffer, _use_new_zipfile_serialization=False)
    for _ in range(200):
        data = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        where = random.integers(0, len(data), 3)
        data[where] = random.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        with pytest.raises(CheckpointError):
            read_checkpoint(path, dialect="strong-baseline")


def test_no_file_a_folder_and_an_empty_file_are_refused(path: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)
    path.touch()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(path)
