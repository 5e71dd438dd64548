import math
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from reidserve.errors import CheckpointError, DeviceError, ExportError  # noqa: E402
from reidserve.export.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.model import build_network, parse_architecture  # noqa: E402
from reidserve.export.train import Material, Settings, check_start, claim_folder  # noqa: E402
from reidserve.export.train.learner import make_learner  # noqa: E402
from reidserve.export.train.recipes import change, read_recipe  # noqa: E402
from reidserve.export.train.record import Record, best  # noqa: E402
from reidserve.export.train.statistics import pixel_statistics  # noqa: E402
from reidserve.export.train.validation import judge, validate  # noqa: E402
from tests.runs import SMALL, CutOffError, cut_off_at, log_of, read_small, train_into  # noqa: E402

HEAD = change(SMALL, ["stages.1.epochs=1", 'stages.1.learns=["head"]'])
"""An epoch of little that learns: a state without the backbone's moments is soon written."""

FEED = {"mean": SMALL.input.mean, "std": SMALL.input.std}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches as small as these are not worth a second thread, and where others compute it waits for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return read_small(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that was not cut off."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train_into(out, material)
    return out


def test_a_run_learns_and_logs_every_epoch(finished: Path):
    before, *epochs = log_of(finished)
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert before["epoch"] == 0
    assert before["loss"] is None
    losses = [line["loss"] for line in epochs]
    assert losses == sorted(losses, reverse=True)
    # 12 classes by chance, and a triplet violated by its margin.
    assert losses[-1] < losses[0] - 0.5
    assert losses[0] > math.log(12) + SMALL.loss.margin > losses[-1] - 0.5
    for line in epochs:
        assert line["loss"] == pytest.approx(np.mean(line["step_losses"]))
        assert 0 <= line["accuracy"] <= 1
        assert line["rank1"] <= line["rank5"] <= line["rank10"]


def test_the_checkpoint_is_the_best_epoch_and_says_what_it_is(finished: Path, material: Material):
    checkpoint = read_checkpoint(finished / "model.safetensors")
    top = max(log_of(finished)[1:], key=lambda line: line["mAP"])
    assert checkpoint.architecture == parse_architecture("resnet18_ibn_a", classes=12)
    assert checkpoint.feeding is not None
    assert (checkpoint.feeding.height, checkpoint.feeding.width, checkpoint.feeding.resize) == (64, 32, "bilinear")
    assert (checkpoint.feeding.mean, checkpoint.feeding.std) == (SMALL.input.mean, SMALL.input.std)
    facts = checkpoint.metadata
    assert (facts["dataset"], facts["training_images"], facts["epochs"], facts["seed"]) == ("data", "48", "3", "0")
    assert (facts["torch"], facts["threads"]) == (torch.__version__, "1")
    assert (facts["epoch"], float(facts["mAP"]), float(facts["rank1"])) == (str(top["epoch"]), top["mAP"], top["rank1"])
    assert material.trial is not None
    report = validate(checkpoint.network, material.trial, **FEED)
    assert (report.rank1, report.mAP) == (top["rank1"], top["mAP"])


def test_the_settings_are_written_beside_the_result(finished: Path):
    assert read_recipe(finished / "settings.toml") == SMALL


def test_another_seed_gives_other_weights():
    networks = [make_learner(replace(SMALL, seed=seed), 12).network for seed in (0, 1)]
    assert (networks[0].backbone.conv1.weight != networks[1].backbone.conv1.weight).all()


def test_the_best_record_is_the_first_of_the_highest_map_and_else_the_last():
    def records(*values: float | None) -> list[Record]:
        return [Record(epoch=epoch, mAP=value) for epoch, value in enumerate(values)]

    assert best(records(0.9, 0.1, 0.3, None, 0.3, 0.2)).epoch == 2
    assert best(records(0.9, None, None)).epoch == 2


# Stages


THREE = (
    *("stages.1.epochs=1", 'stages.1.learns=["head"]'),
    *("stages.2.epochs=1", 'stages.2.learns=["layer4", "head"]', "stages.2.lr=0.1"),
    *("stages.3.epochs=1", "stages.3.lr=0.1", "stages.3.start=1"),
)


def test_each_stage_begins_with_the_weights_its_settings_name_and_a_fresh_optimiser(material: Material, tmp_path: Path):
    said: list[str] = []
    with pytest.raises(CutOffError):
        train_into(tmp_path, material, change(SMALL, THREE), say=said.append, progress=cut_off_at(7))
    state = load_file(tmp_path / "last.safetensors")
    first, second = (load_file(tmp_path / f"stage-{number}.safetensors") for number in (1, 2))
    assert {name: tensor for name, tensor in state.items() if name.startswith("optimiser/")} == {}
    assert all(torch.equal(state[f"network/{name}"], tensor) for name, tensor in first.items())
    moved = {name for name, tensor in second.items() if not torch.equal(tensor, first[name])}
    assert moved
    assert all(name.startswith(("backbone.layer4", "neck", "classifier")) for name in moved)
    assert [line["stage"] for line in log_of(tmp_path)] == [1, 1, 2]
    head = 512 * 2 + 512 * 12
    assert said[0] == (
        f"stage 1 of 3, 1 epochs: head learns; frozen / total parameters: {11_176_512:,} / {11_176_512 + head:,}"
    )
    assert said[3] == "starting from stage-1.safetensors"


def test_a_stage_may_begin_with_the_best_weights_so_far(material: Material, tmp_path: Path):
    wrecking = ["stages.1.epochs=1", "stages.2.epochs=1", "stages.2.lr=1e4", "stages.3.epochs=1", "stages.3.start=best"]
    with pytest.raises(CutOffError):
        train_into(tmp_path, material, change(SMALL, wrecking), progress=cut_off_at(7))
    _, first, second = log_of(tmp_path)
    assert first["mAP"] > second["mAP"], "the test is of a run whose best epoch is not its last"
    state, model = (load_file(tmp_path / f"{name}.safetensors") for name in ("last", "stage-1"))
    assert all(torch.equal(state[f"network/{name}"], tensor) for name, tensor in model.items())


# What is scored and written


def test_without_evaluation_the_checkpoint_is_the_last_epoch(material: Material, tmp_path: Path):
    outcome = train_into(tmp_path, material, change(HEAD, ["stages.1.epochs=2", "evaluation.every=0"]))
    assert (outcome.best.epoch, outcome.best.mAP) == (2, None)
    last = load_file(tmp_path / "last.safetensors")
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, last[f"network/{name}"])
    assert "mAP" not in read_checkpoint(tmp_path / "model.safetensors").metadata


def test_the_end_of_a_stage_is_evaluated_whatever_the_interval(material: Material, tmp_path: Path):
    train_into(
        tmp_path, material, change(HEAD, ["stages.2.epochs=3", 'stages.2.learns=["head"]', "evaluation.every=3"])
    )
    assert [line["epoch"] for line in log_of(tmp_path) if line["mAP"] is not None] == [0, 1, 3, 4]


def test_averaged_weights_are_what_is_scored_and_written(material: Material, tmp_path: Path):
    train_into(tmp_path, material, change(HEAD, ["optim.ema=0.9"]))
    state, model = (load_file(tmp_path / f"{name}.safetensors") for name in ("last", "model"))
    assert all(torch.equal(state[f"average/module.{name}"], tensor) for name, tensor in model.items())
    assert not torch.equal(state["network/classifier.weight"], model["classifier.weight"])
    assert material.trial is not None
    scored = validate(read_checkpoint(tmp_path / "model.safetensors").network, material.trial, **FEED)
    assert scored.mAP == log_of(tmp_path)[1]["mAP"]


def test_held_out_images_are_judged_before_training_and_after_each_epoch(tmp_path: Path):
    changes = ["evaluation.held_out=0.25", "evaluation.every=0"]
    material = read_small(tmp_path, *changes)
    train_into(tmp_path / "run", material, change(HEAD, changes))
    network = read_checkpoint(tmp_path / "run" / "model.safetensors").network
    assert material.held_out is not None
    assert material.held_out_labels is not None
    verdict = judge(network, material.held_out.pixels, material.held_out_labels, **FEED)
    before, after = log_of(tmp_path / "run")
    assert (after["val_loss"], after["val_accuracy"]) == (verdict.loss, verdict.accuracy)
    assert before["val_loss"] == pytest.approx(math.log(12), abs=0.05)


def test_the_datasets_own_statistics_feed_the_network_and_are_recorded(material: Material, tmp_path: Path):
    settings = change(HEAD, ["input.statistics=dataset", "evaluation.every=0"])
    with pytest.raises(CutOffError):
        train_into(tmp_path, material, settings, progress=cut_off_at(1))
    train_into(tmp_path, material, settings)
    mean, std = pixel_statistics(material.train.pixels)
    feeding = read_checkpoint(tmp_path / "model.safetensors").feeding
    assert feeding is not None
    assert (feeding.mean, feeding.std) == (mean, std)
    recorded = tomllib.loads((tmp_path / "settings.toml").read_text())
    assert recorded["input"]["mean"] == list(mean)


# What a run begins with


def test_pretrained_weights_are_taken_but_for_the_classifier(material: Material, tmp_path: Path):
    trained = build_network(parse_architecture("resnet18_ibn_a", classes=5), seed=9)
    path = tmp_path / "pretrained.safetensors"
    write_checkpoint(path, trained, {})
    settings = change(HEAD, [f"init.pretrained={path}", "evaluation.every=0"])
    with pytest.raises(CutOffError):
        train_into(tmp_path / "run", material, settings, progress=cut_off_at(1))
    started, drawn = load_file(tmp_path / "run" / "last.safetensors"), make_learner(settings, 12).network.state_dict()
    for name, tensor in trained.state_dict().items():
        expected = drawn[name] if name.startswith("classifier.") else tensor
        assert torch.equal(started[f"network/{name}"], expected), name
    # A run that goes on needs the file no more.
    path.unlink()
    assert train_into(tmp_path / "run", material, settings).resumed_after == 0


def test_a_pretrained_file_of_another_network_and_a_missing_device_are_refused_before_images_are_read(tmp_path: Path):
    path = tmp_path / "pretrained.safetensors"
    write_checkpoint(path, build_network(parse_architecture("resnet18", classes=5)), {})
    with claim_folder(tmp_path / "run", SMALL) as folder:
        for pretrained in (path, tmp_path / "none.safetensors"):
            with pytest.raises(CheckpointError, match=pretrained.name):
                check_start(change(SMALL, [f"init.pretrained={pretrained}"]), folder)
        if not torch.cuda.is_available():
            with pytest.raises(DeviceError, match="--device cpu"):
                check_start(replace(SMALL, device="cuda"), folder)


def test_parts_that_no_export_would_take_are_refused_before_an_hour_is_lost(tmp_path: Path):
    settings = change(SMALL, ["network.parts=3", "loss.metric=none"])
    with claim_folder(tmp_path / "run", settings) as folder, pytest.raises(ExportError, match="a height of 48, 96"):
        check_start(settings, folder)


@pytest.mark.parametrize(
    "changes",
    [
        ("network.parts=2", "loss.metric=none", "optim.name=sgd"),
        ("network.neck=no", "network.embedding_dim=16", "network.pooling=gem"),
        ("head.unit_rows=true", "head.unit_features=true", "head.temperature=0.05"),
    ],
    ids=["parts", "embedding", "unit"],
)
def test_networks_of_every_kind_are_trained_and_read_back(material: Material, tmp_path: Path, changes):
    settings: Settings = change(HEAD, changes)
    train_into(tmp_path, material, settings)
    assert material.trial is not None
    read = read_checkpoint(tmp_path / "model.safetensors").network
    assert validate(read, material.trial, **FEED).mAP == log_of(tmp_path)[1]["mAP"]
