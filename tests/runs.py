"""What tests of training share: small settings, small data, and runs to compare bit by bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.export.train import Material, Outcome, Settings, claim_folder, read_material, train
from reidserve.export.train.recipes import change

SMALL = change(
    Settings(),
    [
        *("network.arch=resnet18_ibn_a", "input.height=64", "input.width=32", "stages.1.epochs=3"),
        *("batch.identities=4", "batch.images=4", "optim.lr=1e-3", "evaluation.every=1"),
    ],
)
"""9 steps on 16 images each, of 12 identities with 4 images."""

CHILD = Path(__file__).with_name("train_child.py")
"""A process that trains: DATA OUT RECIPE."""


class CutOffError(Exception):
    """Ends a run where a test wants it to end."""


def write_data(root: Path) -> Path:
    """12 training identities with 4 images each, 6 others to score on."""
    spec = SynthSpec(train_identities=12, test_identities=6, cameras=2, images_per_camera=2, junk=2, distractors=2)
    write_dataset(root, spec)
    return root


def read_small(scratch: Path, *changes: str) -> Material:
    """The material of `write_data` for SMALL with these changes."""
    return read_material(write_data(scratch / "data"), change(SMALL, changes), scratch=scratch)


def train_into(out: Path, material: Material, settings: Settings = SMALL, *, force: bool = False, **hooks) -> Outcome:
    with claim_folder(out, settings, force=force) as folder:
        return train(material, folder, settings, **hooks)


def cut_off_at(batch: int):
    """Progress that ends a run after so many batches."""

    def progress(done: int, total: int) -> None:
        if done == batch:
            raise CutOffError

    return progress


def start_child(data: Path, out: Path, settings: Path, *launcher: str) -> subprocess.Popen[str]:
    """A process that trains, or by a launcher several."""
    command = [sys.executable, "-P", *launcher, CHILD, data, out, settings]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def different_tensors(one: Path, other: Path) -> list[str]:
    """The names of tensors whose bits differ."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return [name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()]


def assert_same_run(one: Path, other: Path) -> None:
    """The same tensors bit by bit, moments of the optimiser too; the same checkpoints; the same log but for times."""
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    assert different_tensors(one / "last.safetensors", other / "last.safetensors") == []
    for path in one.iterdir():
        if path.name.startswith(("model", "stage")):
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    logs = [[{**line, "images_per_second": None} for line in log_of(out)] for out in (one, other)]
    assert logs[0] == logs[1]
