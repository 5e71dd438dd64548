import inspect
import json
from dataclasses import asdict
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from reidserve.commands.train import app  # noqa: E402
from reidserve.commands.train.adapting import adapt  # noqa: E402
from reidserve.datasets.synth import SynthSpec, write_dataset  # noqa: E402
from reidserve.errors import CheckpointError, OutputExistsError, UsageError  # noqa: E402
from reidserve.export.adapt import AdaptSettings  # noqa: E402
from reidserve.export.checkpoints import read_checkpoint  # noqa: E402
from tests.runs import log_of  # noqa: E402

TINY = ("network.arch=resnet18", "input.height=32", "input.width=32", "batch.identities=2", "batch.images=2")
FLAGS = ["--epochs", "1", "--adapt-epochs", "1", "--k1", "6", "--k2", "2", "--eps", "0.6", "--min-samples", "2"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("domains")
    for domain in ("a", "b"):
        spec = SynthSpec(
            domain=domain, train_identities=6, test_identities=3, cameras=2, images_per_camera=2, junk=0, distractors=0
        )
        write_dataset(root / domain, spec)
    return root


def adapt_by_command(domains: Path, out: Path, *flags: str) -> int:
    sets = [f"--set={change}" for change in TINY]
    data = ["--source", str(domains / "a"), "--target", str(domains / "b")]
    code: int = app(["adapt", *data, "--out", str(out), *FLAGS, *sets, *flags])
    return code


def test_one_command_trains_on_the_source_and_adapts_to_the_target(domains: Path, tmp_path, capsys):
    assert adapt_by_command(domains, tmp_path / "out") == 0
    found = capsys.readouterr()
    assert f"wrote       {tmp_path}/out/adapted/model.safetensors" in found.out
    assert "target      24 images, learnt from without their labels" in found.out
    assert "source: epoch 1/1  loss" in found.err
    assert "epoch 0/1  before adapting  Rank-1 " in found.err
    assert "F (by labels) 0." in found.err
    assert read_checkpoint(tmp_path / "out" / "adapted" / "model.safetensors").metadata["target"] == "b"

    shown = {
        folder: [path.name for path in sorted((tmp_path / "out" / folder).glob("*.[ph][nt]*"))]
        for folder in ("source", "adapted")
    }
    assert shown == {
        "source": ["curves.png", "first-batch.png", "predictions.png", "run.html"],
        "adapted": ["curves.png"],
    }

    # A source that is learnt is not learnt again, and the same command comes to the same.
    adapted, source = tmp_path / "out" / "adapted", tmp_path / "out" / "source" / "model.safetensors"
    before, written = (adapted / "model.safetensors").read_bytes(), source.stat().st_mtime_ns
    assert adapt_by_command(domains, tmp_path / "out") == 0
    again = capsys.readouterr()
    assert again.out == found.out
    done = "all 1 epochs are done (--force starts over)"
    assert again.err.splitlines()[-2:] == [f"source: {done}", done]
    with pytest.raises(OutputExistsError, match="a finished run of 1 epochs and differs: mode was joint, is target"):
        adapt_by_command(domains, tmp_path / "out", "--mode", "target")
    for path in adapted.iterdir():
        path.unlink()
    assert adapt_by_command(domains, tmp_path / "out") == 0
    assert "source: all 1 epochs are done" in capsys.readouterr().err
    assert (adapted / "model.safetensors").read_bytes() == before
    assert source.stat().st_mtime_ns == written

    # Another way of adapting, from the same start.
    start = ("--start", str(source), "--mode", "target", "--json")
    assert adapt_by_command(domains, tmp_path / "other", *start) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == str(tmp_path / "other" / "adapted" / "model.safetensors")
    assert (facts["source_images"], facts["target_images"], facts["failures"]) == (24, 24, [])
    assert facts["last"]["target_loss"] == facts["last"]["loss"]
    assert not (tmp_path / "other" / "source").exists()
    assert log_of(tmp_path / "other" / "adapted")[0]["mAP"] == log_of(adapted)[0]["mAP"]


def test_the_commands_defaults_are_those_of_the_settings():
    said, known = inspect.signature(adapt).parameters, asdict(AdaptSettings())
    flags = {name: f"adapt_{name}" if name in ("epochs", "lr") else name for name in known}
    assert {name: said[flag].default for name, flag in flags.items()} == known


def test_two_beginnings_are_refused(domains: Path, tmp_path):
    with pytest.raises(UsageError, match="--start takes its place: give one"):
        adapt_by_command(domains, tmp_path, "--start", "one.safetensors", "--pretrained", "other.safetensors")


def test_what_an_adaptation_cannot_follow_is_refused_before_the_source_is_learnt(domains: Path, tmp_path):
    with pytest.raises(UsageError, match=r"optim.ema must be 0, is 0.9"):
        adapt_by_command(domains, tmp_path / "out", "--set=optim.ema=0.9")
    with pytest.raises(CheckpointError, match="none.safetensors"):
        adapt_by_command(domains, tmp_path / "out", "--pretrained", str(tmp_path / "none.safetensors"))
    assert list(tmp_path.iterdir()) == []
