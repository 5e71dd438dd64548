import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")


from reidserve.datasets.synth import SynthSpec, write_dataset  # noqa: E402
from reidserve.errors import DatasetError, ExportError, OutputExistsError  # noqa: E402
from reidserve.export.adapt import AdaptSettings, Target, adapt, read_target  # noqa: E402
from reidserve.export.checkpoints import read_checkpoint  # noqa: E402
from reidserve.export.train import Material, Outcome, Settings, claim_folder, read_material  # noqa: E402
from reidserve.export.train.recipes import change, write_recipe  # noqa: E402
from reidserve.export.train.state import read_state  # noqa: E402
from tests.runs import (  # noqa: E402
    SMALL,
    CutOffError,
    assert_same_run,
    cut_off_at,
    different_tensors,
    log_of,
    train_into,
)

HOW = AdaptSettings(epochs=2, lr=0.5, k1=6, k2=2, eps=0.5, min_samples=2)
CHILD = Path(__file__).with_name("adapt_child.py")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Domains a and b, and a run on the first: a checkpoint to adapt to the second."""
    root = tmp_path_factory.mktemp("adapt")
    for domain in ("a", "b"):
        spec = SynthSpec(
            domain=domain,
            train_identities=8,
            test_identities=4,
            cameras=2,
            images_per_camera=2,
            junk=1,
            distractors=1,
        )
        write_dataset(root / domain, spec)
    settings = change(SMALL, ["stages.1.epochs=2", "input.height=32", "evaluation.every=0"])
    train_into(root / "source", read_material(root / "a", settings, scratch=root), settings)
    return root


@pytest.fixture(scope="module")
def settings(folder: Path) -> Settings:
    small = change(SMALL, ["batch.identities=2", "batch.images=2", "input.height=32"])
    return HOW.training(small, start=str(folder / "source" / "model.safetensors"))


@pytest.fixture(scope="module")
def source(folder: Path, settings: Settings) -> Material:
    return read_material(folder / "a", settings, scratch=folder)


@pytest.fixture(scope="module")
def target(folder: Path, settings: Settings) -> Target:
    return read_target(folder / "b", settings, scratch=folder)


def adapt_into(
    out: Path, source: Material, target: Target, settings: Settings, how: AdaptSettings = HOW, **hooks
) -> Outcome:
    with claim_folder(out, settings) as claimed:
        return adapt(source, target, claimed, settings, how, **hooks)


@pytest.fixture(scope="module")
def finished(folder: Path, source: Material, target: Target, settings: Settings) -> Path:
    """An adaptation of two epochs that was not cut off."""
    adapt_into(folder / "finished", source, target, settings)
    return folder / "finished"


# The target


def test_the_target_is_a_training_part_whose_labels_stand_apart(target: Target):
    assert len(target.pictures) == 32
    assert target.identities is not None
    assert np.bincount(target.identities).tolist() == [4] * 8
    assert target.trial is not None
    assert (len(target.trial.query), target.notes) == (8, [])


def test_a_folder_of_images_without_labels_is_a_target_and_that_is_said(folder: Path, settings: Settings, tmp_path):
    images = sorted((folder / "b" / "bounding_box_train").glob("*.*"))
    for number, image in enumerate(images[:5]):
        shutil.copy(image, tmp_path / f"frame{number}{image.suffix}")
    target = read_target(tmp_path, settings, scratch=tmp_path)
    assert (len(target.pictures), target.identities, target.trial) == (5, None, None)
    assert target.notes[0].startswith(f"the target is all 5 images below {tmp_path}:")
    assert target.notes[1].startswith("the target is not scored:")


def test_a_target_of_one_image_or_none_is_refused(folder: Path, settings: Settings, tmp_path):
    (image, *_) = (folder / "b" / "bounding_box_train").glob("*.*")
    shutil.copy(image, tmp_path / image.name)
    with pytest.raises(DatasetError, match="holds 1 target images, of which no clusters can be made"):
        read_target(tmp_path, settings, scratch=tmp_path)
    with pytest.raises(DatasetError, match="neither"):
        read_target(tmp_path / "nowhere", settings, scratch=tmp_path)


# Runs


def test_an_adaptation_records_both_losses_clusters_noise_their_agreement_and_the_targets_ranks(finished: Path):
    before, *epochs = log_of(finished)
    assert (before["epoch"], before["loss"], before["clusters"]) == (0, None, None)
    for number, epoch in enumerate(epochs, 1):
        assert epoch["epoch"] == number
        assert epoch["loss"] == pytest.approx(epoch["source_loss"] + epoch["target_loss"])
        assert epoch["loss"] == pytest.approx(np.mean(epoch["step_losses"]))
        assert epoch["clusters"] >= 2
        assert 0 <= epoch["noise"] < 1
        assert 0 < epoch["pair_f"] <= 1
        assert epoch["lr"] == 5e-4
        assert 0 < epoch["mAP"] <= epoch["rank10"] <= 1
    assert json.loads((finished / "adaptation.json").read_text()) == asdict(HOW)


def test_the_result_is_the_last_epochs_network_and_says_what_it_was_adapted_to(finished: Path):
    checkpoint = read_checkpoint(finished / "model.safetensors")
    metadata = checkpoint.metadata
    assert (metadata["dataset"], metadata["target"], metadata["target_images"]) == ("a", "b", "32")
    assert (metadata["epoch"], metadata["adapt.mode"], metadata["adapt.eps"]) == ("2", "joint", "0.5")


def test_the_same_adaptation_gives_the_same_weights_whatever_the_targets_labels(
    finished: Path, source: Material, target: Target, settings: Settings, tmp_path
):
    assert target.identities is not None
    shuffled = replace(target, identities=np.random.default_rng(0).permutation(target.identities))
    adapt_into(tmp_path / "out", source, shuffled, settings)
    logs = [
        [{**line, "images_per_second": None, "pair_f": None} for line in log_of(out)]
        for out in (finished, tmp_path / "out")
    ]
    assert logs[0] == logs[1]
    scores = [[line["pair_f"] for line in log_of(out)] for out in (finished, tmp_path / "out")]
    assert scores[0] != scores[1]
    assert different_tensors(finished / "last.safetensors", tmp_path / "out" / "last.safetensors") == []
    assert (finished / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_target_without_labels_comes_to_the_same_weights(
    finished: Path, source: Material, target: Target, settings: Settings, tmp_path
):
    adapt_into(tmp_path / "out", source, replace(target, identities=None, trial=None), settings)
    assert {line["pair_f"] for line in log_of(tmp_path / "out")} == {None}
    assert {line["mAP"] for line in log_of(tmp_path / "out")} == {None}
    assert different_tensors(finished / "last.safetensors", tmp_path / "out" / "last.safetensors") == []


@pytest.mark.slow
def test_an_adaptation_that_was_killed_comes_to_the_same_weights(finished: Path, folder: Path, settings, tmp_path):
    (tmp_path / "recipe.toml").write_text(write_recipe(settings))
    (tmp_path / "how.json").write_bytes(msgspec.json.encode(HOW))
    out = tmp_path / "out"
    command = [sys.executable, "-P", CHILD, folder / "a", folder / "b", out, tmp_path / "recipe.toml"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([*map(str, command), tmp_path / "how.json"], stdout=subprocess.PIPE, text=True)

    with start() as child:
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(2)] == ["0\n", "1\n"]
        os.kill(child.pid, signal.SIGKILL)
    with start() as child:
        assert child.communicate()[0] == "2\n1 2\n"
    assert_same_run(finished, out)


def test_an_epoch_that_was_cut_off_is_learnt_again(finished: Path, source, target, settings, tmp_path):
    said: list[str] = []

    def stop_in_the_second_epoch(done: int, total: int) -> None:
        if done > total / 2:
            raise CutOffError

    with pytest.raises(CutOffError):
        adapt_into(tmp_path / "out", source, target, settings, progress=stop_in_the_second_epoch)
    outcome = adapt_into(tmp_path / "out", source, target, settings, say=said.append)
    assert "going on after epoch 1" in said
    assert (outcome.resumed_after, outcome.best.epoch) == (1, 2)
    assert_same_run(finished, tmp_path / "out")


def test_another_way_of_adapting_does_not_go_on(source, target, settings, tmp_path):
    with pytest.raises(CutOffError):
        adapt_into(tmp_path / "out", source, target, settings, progress=cut_off_at(1))
    state = (tmp_path / "out" / "last.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match=r"differs: mode was joint, is mixed; eps was 0.5, is 0.3; give"):
        adapt_into(tmp_path / "out", source, target, settings, replace(HOW, mode="mixed", eps=0.3))
    fewer = replace(target, pictures=replace(target.pictures, pixels=target.pictures.pixels[:-1]))
    with pytest.raises(OutputExistsError, match="the images of source or target, or the source's pids, are not those"):
        adapt_into(tmp_path / "out", source, fewer, settings)
    assert (tmp_path / "out" / "last.safetensors").read_bytes() == state


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (1e-6, "32 target images fall into 0 clusters, 100% of them into none, .*give a higher eps, or fewer min_samp"),
        (
            1.9,
            "32 target images fall into 1 clusters, 0% of them into none, by cosine .*two are needed; give a lower eps",
        ),
    ],
)
def test_where_no_two_clusters_are_left_it_is_said_what_to_change(source, target, settings, tmp_path, eps, message):
    with pytest.raises(ExportError, match=f"epoch 1: {message}"):
        adapt_into(tmp_path / "out", source, target, settings, replace(HOW, distance="cosine", eps=eps))
    assert [line["epoch"] for line in log_of(tmp_path / "out")] == [0]


def test_a_loss_that_is_no_number_is_named_with_its_images_and_the_last_state_kept(source, target, settings, tmp_path):
    wild = change(settings, ["optim.lr=10", "stages.1.lr=1e6"])
    with pytest.raises(ExportError, match=r"the loss is nan at epoch 1, step \d \(8 images, with /.*jpg, .*--force"):
        adapt_into(tmp_path / "out", source, target, wild)
    assert [line["epoch"] for line in log_of(tmp_path / "out")] == [0]
    assert read_state(tmp_path / "out" / "last.safetensors").epoch == 0


@pytest.mark.parametrize("mode", ["target", "mixed"])
def test_the_other_modes_run_to_their_end(source, target, settings, tmp_path, mode):
    adapt_into(tmp_path / "out", source, target, change(settings, ["stages.1.epochs=1"]), replace(HOW, mode=mode))
    *_, last = log_of(tmp_path / "out")
    assert last["source_loss"] is None
    assert last["target_loss"] == (last["loss"] if mode == "target" else None)
    assert last["epoch"] == 1
