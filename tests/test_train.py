import json
import math
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from reidserve.datasets import Crop  # noqa: E402
from reidserve.datasets.layouts import read_training  # noqa: E402
from reidserve.datasets.synth import SynthSpec, write_dataset  # noqa: E402
from reidserve.embed import decode, read_image, resize  # noqa: E402
from reidserve.errors import (  # noqa: E402
    CheckpointError,
    DatasetError,
    DeviceError,
    EvaluationError,
    ExportError,
    OutputExistsError,
    UsageError,
)
from reidserve.export.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.model import build_network, parse_architecture  # noqa: E402
from reidserve.export.train import (  # noqa: E402
    Material,
    Outcome,
    Settings,
    check_start,
    claim_folder,
    epoch,
    read_material,
    train,
)
from reidserve.export.train.augmentation import ERASED_AREA, augment, erase, move  # noqa: E402
from reidserve.export.train.epoch import Learner, learn_epoch, set_modes  # noqa: E402
from reidserve.export.train.losses import make_loss  # noqa: E402
from reidserve.export.train.run import make_learner  # noqa: E402
from reidserve.export.train.sampler import draw_batches  # noqa: E402
from reidserve.export.train.schedule import learning_rate  # noqa: E402
from reidserve.export.train.state import read_state  # noqa: E402
from reidserve.export.train.validation import embed, normalise, validate  # noqa: E402
from tests.conftest import BIN, run_command, write_crops  # noqa: E402
from tests.test_folders import touch  # noqa: E402

SMALL = Settings(
    arch="resnet18_ibn_a",
    height=64,
    width=32,
    epochs=3,
    batch_identities=4,
    batch_images=4,
    lr=1e-3,
    eval_every=1,
)
FLAGS = [
    *("--arch", "resnet18_ibn_a", "--size", "64x32", "--epochs", "3", "--batch-identities", "4", "--lr", "1e-3"),
    *("--eval-every", "1"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches as small as these are not worth a second thread, and where others compute it waits for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training identities with 4 images each, 6 others to score on."""
    root = tmp_path_factory.mktemp("train") / "data"
    spec = SynthSpec(train_identities=12, test_identities=6, cameras=2, images_per_camera=2, junk=2, distractors=2)
    write_dataset(root, spec)
    return root


@pytest.fixture(scope="module")
def material(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return read_material(data, SMALL, scratch=tmp_path_factory.mktemp("scratch"))


def train_into(out: Path, material: Material, settings: Settings = SMALL, *, force: bool = False, **hooks) -> Outcome:
    with claim_folder(out, settings, force=force) as folder:
        return train(material, folder, settings, **hooks)


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that was not cut off."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    train_into(out, material)
    return out


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """The same tensors bit by bit, moments of the optimiser too; the same checkpoint; the same log but for times."""
    first, second = load_file(one / "last.safetensors"), load_file(other / "last.safetensors")
    assert first.keys() == second.keys()
    different = [name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()]
    assert different == []
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    logs = [[{**line, "images_per_second": None} for line in log_of(out)] for out in (one, other)]
    assert logs[0] == logs[1]


# Reading what is learnt from


@pytest.mark.parametrize(
    ("folder", "names", "labels"),
    [
        ("bounding_box_train", ("0002_c1s1_000451_03.jpg", "-1_c6s4_012345_00.jpg"), [("-1", "6"), ("0002", "1")]),
        ("bounding_box_train", ("0001_c2_f0046182.jpg", "7140_c8_f0000001.jpg"), [("0001", "2"), ("7140", "8")]),
        ("image_train", ("0002_c002_00030600_0.jpg", "0776_c020_00000001_12.jpg"), [("0002", "002"), ("0776", "020")]),
        ("train", ("anna/1.jpg", "red car 7/2.jpg"), [("anna", None), ("red car 7", None)]),
    ],
    ids=["market1501", "dukemtmc", "veri776", "folders"],
)
def test_the_training_part_of_each_layout_is_read_without_the_others(tmp_path: Path, folder, names, labels):
    touch(tmp_path / folder, *names)
    assert [(crop.pid, crop.camid) for crop in read_training(tmp_path)] == labels


def test_the_training_part_of_a_table_is_read_without_the_others(tmp_path: Path):
    table = tmp_path / "all.csv"
    table.write_text("path,pid,split\na.jpg,7,train\nb.jpg,8,train\n")
    assert read_training(table) == [Crop(tmp_path / "a.jpg", pid="7"), Crop(tmp_path / "b.jpg", pid="8")]
    table.write_text("path,pid,split\na.jpg,7,query\nb.jpg,8,gallery\n")
    with pytest.raises(DatasetError, match="no row whose split is 'train'"):
        read_training(table)


def test_a_dataset_without_a_training_part_is_refused_with_the_folders_known(tmp_path: Path):
    touch(tmp_path / "query", "0002_c1s1_000451_03.jpg")
    with pytest.raises(DatasetError, match=r"no training set .*market1501: bounding_box_train/.*veri776: image_train/"):
        read_training(tmp_path)
    with pytest.raises(DatasetError, match="neither"):
        read_training(tmp_path / "nowhere")


def test_material_holds_the_pixels_that_serving_would_make_and_classes_in_the_order_of_pids(material: Material):
    assert (len(material.train), material.classes, material.failures) == (48, 12, [])
    pids = sorted({crop.pid for crop in material.train.crops if crop.pid})
    for row in (0, 17, 47):
        crop = material.train.crops[row]
        assert pids[material.labels[row]] == crop.pid
        expected = resize(decode(read_image(crop.path)), height=64, width=32, resize_filter="bilinear")
        np.testing.assert_array_equal(material.train.pixels[row], expected)
    assert material.trial is not None
    assert len(material.trial.query) == 12


# Batches


def test_every_batch_holds_k_different_images_of_each_of_p_identities():
    labels = np.repeat(np.arange(10), np.arange(4, 14))
    batches = draw_batches(labels, batch_identities=3, batch_images=4, seed=0, epoch=1)
    assert len(batches) == len(labels) // 12
    for rows in batches:
        assert len(set(rows.tolist())) == 12
        groups = labels[rows].reshape(3, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == 3


def test_identities_and_their_images_come_up_equally_often():
    labels = np.repeat(np.arange(8), 8)
    batches = [draw_batches(labels, batch_identities=4, batch_images=4, seed=0, epoch=one) for one in (1, 2)]
    for rows in batches:
        assert set(Counter(np.concatenate(rows).tolist()).values()) == {1}
    assert [rows.tolist() for rows in batches[0]] != [rows.tolist() for rows in batches[1]]


def test_an_identity_of_few_images_repeats_them():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    (rows,) = draw_batches(labels, batch_identities=3, batch_images=4, seed=0, epoch=1)
    assert sorted(Counter(labels[rows]).items()) == [(0, 4), (1, 4), (2, 4)]
    assert sorted(Counter(rows.tolist()).values(), reverse=True) == [4, 2, 1, 1, 1, 1, 1, 1]


def test_seed_and_epoch_decide_the_batches():
    labels = np.repeat(np.arange(12), 4)

    def draw(seed: int, epoch: int) -> list[list[int]]:
        drawn = draw_batches(labels, batch_identities=4, batch_images=4, seed=seed, epoch=epoch)
        return [rows.tolist() for rows in drawn]

    assert draw(0, 1) == draw(0, 1)
    assert draw(0, 1) != draw(1, 1)
    assert draw(0, 1) != draw(1, 0)


# Augmentation


def noise(count: int = 16, height: int = 64, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)


def test_a_flip_mirrors_left_and_right_and_changes_nothing_else():
    batch = noise()
    always = augment(batch, replace(SMALL, flip=1, pad=0, erase=0), epoch=1, step=0)
    np.testing.assert_array_equal(always, batch[:, :, ::-1])
    never = augment(batch, replace(SMALL, flip=0, pad=0, erase=0), epoch=1, step=0)
    np.testing.assert_array_equal(never, batch)
    sometimes = augment(batch, replace(SMALL, flip=0.5, pad=0, erase=0), epoch=1, step=0)
    mirrored = [(after == before[:, ::-1]).all() for after, before in zip(sometimes, batch, strict=True)]
    assert 0 < sum(mirrored) < 16
    assert all(
        flipped or (after == before).all() for flipped, after, before in zip(mirrored, sometimes, batch, strict=True)
    )


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (-3, 0), (0, 2), (0, -2), (3, -2), (-3, 2)])
def test_a_moved_image_is_a_crop_of_the_padded_one(down: int, right: int):
    image = noise(1)[0]
    moved = np.full_like(image, 7)
    move(image, moved, down=down, right=right)
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
    np.testing.assert_array_equal(moved, padded[3 - down : 67 - down, 3 - right : 35 - right])


def test_images_move_within_the_padding():
    batch = noise(200)
    moved = augment(batch, replace(SMALL, flip=0, pad=3 / 64, erase=0), epoch=1, step=0)
    black_rows = (moved == 0).all(axis=(2, 3)).sum(axis=1)
    black_columns = (moved == 0).all(axis=(1, 3)).sum(axis=1)
    assert set(black_rows) == set(black_columns) == {0, 1, 2, 3}


def test_erasing_fills_one_rectangle_of_the_share_and_the_aspect_asked_for():
    rng = np.random.default_rng(0)
    fill = np.array([0, 0, 0], np.uint8)
    shares = []
    for image in noise(300):
        erase(image, fill, rng)
        rows, columns = np.nonzero((image == 0).all(axis=2))
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == high * wide
        shares.append(len(rows) / (64 * 32))
    low, high = ERASED_AREA
    assert low * 0.8 <= min(shares) < low + 0.03
    assert high - 0.06 < max(shares) <= high * 1.05


def test_erased_is_the_mean_pixel_which_the_network_sees_as_zero():
    batch = noise()
    erased = augment(batch, replace(SMALL, flip=0, pad=0, erase=1), epoch=1, step=0)
    changed = (erased != batch).any(axis=3)
    assert changed.any(axis=(1, 2)).all()
    seen = normalise(torch.from_numpy(erased), mean=SMALL.mean, std=SMALL.std).permute(0, 2, 3, 1).numpy()
    assert np.abs(seen[changed]).max() < 0.01


def test_seed_epoch_and_step_decide_the_augmentation():
    batch = noise()
    first = augment(batch, SMALL, epoch=1, step=0)
    np.testing.assert_array_equal(first, augment(batch, SMALL, epoch=1, step=0))
    others = [
        augment(batch, SMALL, epoch=1, step=1),
        augment(batch, SMALL, epoch=2, step=0),
        augment(batch, replace(SMALL, seed=1), epoch=1, step=0),
    ]
    assert all((first != other).any() for other in others)


# Losses and the learning rate


def plain_loss(scores, features, labels, smoothing: float, margin: float) -> float:
    """The two losses as their papers write them, in NumPy."""
    log_share = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    classes = scores.shape[1]
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    cross_entropy = -(target * log_share).sum(axis=1).mean()
    distances = np.sqrt(((features[:, None] - features[None]) ** 2).sum(axis=2))
    same = labels[:, None] == labels[None]
    farthest = np.where(same, distances, -np.inf).max(axis=1)
    nearest = np.where(same, np.inf, distances).min(axis=1)
    return cross_entropy + np.maximum(farthest - nearest + margin, 0).mean()


@pytest.mark.parametrize(("smoothing", "margin", "spread"), [(0.1, 0.3, 1.0), (0.0, 0.3, 8.0), (0.3, 0.0, 0.1)])
def test_the_loss_is_that_of_the_papers(smoothing: float, margin: float, spread: float):
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 4)
    scores = rng.standard_normal((16, 7))
    features = spread * rng.standard_normal((4, 24))[labels] + rng.standard_normal((16, 24))
    loss = make_loss(replace(SMALL, label_smoothing=smoothing, margin=margin))
    value = loss(torch.tensor(scores), torch.tensor(features), torch.tensor(labels)).item()
    assert value == pytest.approx(plain_loss(scores, features, labels, smoothing, margin), abs=1e-6)


def test_the_learning_rate_warms_up_and_steps_down():
    settings = replace(SMALL, lr=1.0, warm_up=0.1, milestones=(0.5, 0.8), decay=0.1)
    rates = [learning_rate(step, steps=100, settings=settings) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:50], 1)
    np.testing.assert_allclose(rates[50:80], 0.1)
    np.testing.assert_allclose(rates[80:], 0.01)
    assert learning_rate(0, steps=100, settings=replace(settings, warm_up=0)) == 1


# A run


def test_a_run_learns_and_logs_every_epoch(finished: Path, material: Material):
    before, *epochs = log_of(finished)
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert before["epoch"] == 0
    assert before["loss"] is None
    losses = [line["loss"] for line in epochs]
    assert losses == sorted(losses, reverse=True)
    # 12 classes by chance, and a triplet violated by its margin.
    assert losses[-1] < losses[0] - 0.5
    assert losses[0] > math.log(12) + SMALL.margin > losses[-1] - 0.5
    for line in epochs:
        assert 0 <= line["accuracy"] <= 1
        assert line["images_per_second"] > 0
        assert line["lr"] == learning_rate(line["epoch"] * 3 - 1, steps=9, settings=SMALL)


def test_the_checkpoint_is_the_best_epoch_and_says_what_it_is(finished: Path, material: Material):
    checkpoint = read_checkpoint(finished / "model.safetensors")
    best = max(log_of(finished)[1:], key=lambda line: line["mAP"])
    assert checkpoint.architecture == parse_architecture("resnet18_ibn_a", classes=12)
    assert checkpoint.feeding is not None
    assert (checkpoint.feeding.height, checkpoint.feeding.width, checkpoint.feeding.resize) == (64, 32, "bilinear")
    assert (checkpoint.feeding.mean, checkpoint.feeding.std) == (SMALL.mean, SMALL.std)
    facts = checkpoint.metadata
    assert (facts["dataset"], facts["training_images"], facts["epochs"], facts["seed"]) == ("data", "48", "3", "0")
    assert (facts["epoch"], float(facts["mAP"]), float(facts["rank1"])) == (
        str(best["epoch"]),
        best["mAP"],
        best["rank1"],
    )
    assert material.trial is not None
    report = validate(checkpoint.network, material.trial, mean=SMALL.mean, std=SMALL.std)
    assert (report.rank1, report.mAP) == (best["rank1"], best["mAP"])


def test_embeddings_are_the_evaluation_features_at_unit_length_whatever_the_mode(material: Material):
    network = build_network(parse_architecture("resnet18_ibn_a", classes=12), seed=0)
    set_modes(network, frozen=True)
    modes = [module.training for module in network.modules()]
    pixels = material.train.pixels[:5]
    rows = embed(network, pixels, mean=SMALL.mean, std=SMALL.std)
    assert [module.training for module in network.modules()] == modes
    network.eval()
    with torch.no_grad():
        seen = (pixels / 255 - np.array(SMALL.mean)) / np.array(SMALL.std)
    with torch.no_grad():
        plain = network(torch.tensor(seen.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    plain = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, plain, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished: Path, material: Material, tmp_path):
    train_into(tmp_path / "again", material)
    assert_same_run(finished, tmp_path / "again")
    networks = [make_learner(replace(SMALL, seed=seed), 12).network for seed in (0, 1)]
    assert (networks[0].backbone.conv1.weight != networks[1].backbone.conv1.weight).all()


def start(data: Path, out: Path) -> subprocess.Popen[str]:
    command = [BIN / "reid-train", data, "--out", out, *FLAGS, "--json"]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_that_was_cut_off_and_goes_on_comes_to_the_same_bits(
    data: Path, finished: Path, tmp_path: Path, number, code
):
    out = tmp_path / "run"
    training = start(data, out)
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() or len(log_of(out)) < 2:
        assert time.monotonic() < deadline, "the run never came to epoch 1"
        time.sleep(0.01)
    training.send_signal(number)
    _, errors = training.communicate(timeout=60)
    assert training.returncode == code, errors
    assert "Traceback" not in errors
    done = read_state(out / "last.safetensors").epoch
    assert done < 3, "the run was not cut off half-way"

    result = run_command("reid-train", data, "--out", out, *FLAGS, "--json", env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["resumed_after"] == done
    assert f"going on after epoch {done}" in result.stderr
    assert_same_run(out, finished)
    assert sorted(path.name for path in out.iterdir()) == ["last.safetensors", "log.jsonl", "model.safetensors"]


class CutOffError(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_cut_off_in_any_epoch_frozen_or_not_comes_to_the_same_bits(material: Material, tmp_path, precision):
    settings = replace(SMALL, epochs=2, freeze_backbone=1, precision=precision)
    train_into(tmp_path / "whole", material, settings)

    for batch in (2, 4):

        def cut_off(done: int, total: int, batch: int = batch) -> None:
            if done == batch:
                raise CutOffError

        with pytest.raises(CutOffError):
            train_into(tmp_path / "run", material, settings, progress=cut_off)
    assert train_into(tmp_path / "run", material, settings).resumed_after == 1
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_log_line_that_the_state_does_not_know_is_forgotten(finished: Path, material: Material, tmp_path: Path):
    def cut_off(done: int, total: int) -> None:
        if done == 4:
            raise CutOffError

    with pytest.raises(CutOffError):
        train_into(tmp_path, material, progress=cut_off)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"epoch":2,"loss":1.0}\n{"epoch":3,"lo')
    train_into(tmp_path, material)
    assert_same_run(tmp_path, finished)


def test_a_frozen_backbone_does_not_move_while_neck_and_classifier_learn(material: Material):
    learner = make_learner(replace(SMALL, freeze_backbone=1), material.classes)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    learn_epoch(learner, material, 1)
    moved = {name for name, tensor in learner.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {
        "neck.weight",
        "neck.running_mean",
        "neck.running_var",
        "neck.num_batches_tracked",
        "classifier.weight",
    }
    learn_epoch(learner, material, 2)
    moved = {name for name, tensor in learner.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert before.keys() - moved == {"neck.bias"}


def test_the_count_of_frozen_parameters_is_said(material: Material, tmp_path: Path):
    said: list[str] = []
    train_into(tmp_path, material, replace(SMALL, epochs=2, freeze_backbone=1, eval_every=0), say=said.append)
    network = build_network(parse_architecture("resnet18_ibn_a", classes=12))
    frozen = sum(parameter.numel() for parameter in network.backbone.parameters())
    assert said == [f"the backbone is frozen for 1 epochs: {frozen:,} of {frozen + 512 * 2 + 512 * 12:,} parameters"]


def test_pretrained_weights_are_taken_but_for_the_classifier(material: Material, tmp_path: Path):
    trained = build_network(parse_architecture("resnet18_ibn_a", classes=5), seed=9)
    path = tmp_path / "pretrained.safetensors"
    write_checkpoint(path, trained, {})
    settings = replace(SMALL, pretrained=str(path))

    def cut_off(done: int, total: int) -> None:
        raise CutOffError

    with pytest.raises(CutOffError):
        train_into(tmp_path / "run", material, settings, progress=cut_off)
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
                check_start(replace(SMALL, pretrained=str(pretrained)), folder)
        if not torch.cuda.is_available():
            with pytest.raises(DeviceError, match="--device cpu"):
                check_start(replace(SMALL, device="cuda"), folder)


def test_without_evaluation_the_checkpoint_is_the_last_epoch(material: Material, tmp_path: Path):
    outcome = train_into(tmp_path, material, replace(SMALL, epochs=2, eval_every=0))
    assert (outcome.best.epoch, outcome.best.mAP) == (2, None)
    last = load_file(tmp_path / "last.safetensors")
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, last[f"network/{name}"])
    assert "mAP" not in read_checkpoint(tmp_path / "model.safetensors").metadata


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_state(
    finished: Path, material: Material, tmp_path: Path, monkeypatch
):
    real, calls = epoch._learn_batch, 0

    def fail_late(learner: Learner, pixels, labels, lr):
        nonlocal calls
        calls += 1
        if calls == 5:
            broken = replace(learner, loss=lambda *_: torch.tensor(float("nan"), requires_grad=True))
            return real(broken, pixels, labels, lr)
        return real(learner, pixels, labels, lr)

    monkeypatch.setattr(epoch, "_learn_batch", fail_late)
    with pytest.raises(ExportError, match=r"the loss is nan at epoch 2, step 2: the state after epoch 1 is kept"):
        train_into(tmp_path, material)
    assert read_state(tmp_path / "last.safetensors").epoch == 1
    monkeypatch.undo()
    train_into(tmp_path, material)
    assert_same_run(tmp_path, finished)


def test_weights_that_are_no_numbers_after_the_last_step_are_not_kept(material: Material, tmp_path: Path, monkeypatch):
    real = epoch._learn_batch

    def spoil(learner: Learner, pixels, labels, lr):
        answer = real(learner, pixels, labels, lr)
        with torch.no_grad():
            learner.network.state_dict()["classifier.weight"][0, 0] = float("inf")
        return answer

    monkeypatch.setattr(epoch, "draw_batches", lambda *a, **k: draw_batches(*a, **k)[:1])
    monkeypatch.setattr(epoch, "_learn_batch", spoil)
    with pytest.raises(ExportError, match=r"classifier.weight is not finite at epoch 1, step 1"):
        train_into(tmp_path, material)
    assert read_state(tmp_path / "last.safetensors").epoch == 0
    assert not (tmp_path / "model.safetensors").exists()


# Refusals


def test_a_finished_run_is_refused_and_starts_over_with_force(finished: Path, material: Material, tmp_path: Path):
    settings = replace(SMALL, epochs=1)
    train_into(tmp_path, material, settings)
    kept = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match=r"a finished run of 1 epochs: .*--force"):
        train_into(tmp_path, material, settings)
    assert (tmp_path / "model.safetensors").read_bytes() == kept
    train_into(tmp_path, material, replace(settings, seed=1), force=True)
    assert (tmp_path / "model.safetensors").read_bytes() != kept
    assert [line["epoch"] for line in log_of(tmp_path)] == [0, 1]


@pytest.fixture
def unfinished(material: Material, tmp_path: Path) -> Path:
    def cut_off(done: int, total: int) -> None:
        raise CutOffError

    with pytest.raises(CutOffError):
        train_into(tmp_path / "unfinished", material, progress=cut_off)
    return tmp_path / "unfinished"


def test_a_run_that_was_cut_off_is_refused_to_other_settings_by_name(unfinished: Path, material: Material):
    with pytest.raises(OutputExistsError, match=r"lr was 0.001, is 0.002; .*--force") as refusal:
        train_into(unfinished, material, replace(SMALL, lr=2e-3, epochs=4))
    assert "epochs was 3, is 4" in str(refusal.value)


def test_a_run_that_was_cut_off_is_refused_to_other_images(unfinished: Path, material: Material):
    pixels = material.train.pixels.copy()
    pixels[3, 2, 1, 0] ^= 1
    other = replace(material, train=replace(material.train, pixels=pixels))
    with pytest.raises(OutputExistsError, match="the training images or their pids are not those it began with"):
        train_into(unfinished, other)


@pytest.mark.parametrize("damage", [b"", b"nonsense" * 99, None], ids=["empty", "nonsense", "truncated"])
def test_a_damaged_state_is_refused(unfinished: Path, material: Material, damage):
    state = unfinished / "last.safetensors"
    state.write_bytes(state.read_bytes()[:-1000] if damage is None else damage)
    with pytest.raises(ExportError, match=r"last.safetensors .*--force"):
        train_into(unfinished, material)


def test_a_foreign_folder_a_file_and_a_second_writer_are_refused(material: Material, tmp_path: Path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".precious.partial").write_text("also precious")
    for place in (tmp_path, tmp_path / "precious"):
        with pytest.raises(OutputExistsError, match="choose another --out"):
            train_into(place, material, force=True)
    assert (tmp_path / ".precious.partial").read_text() == "also precious"
    with (
        claim_folder(tmp_path / "run", SMALL),
        pytest.raises(ExportError, match="another process is training in"),
        claim_folder(tmp_path / "run", SMALL),
    ):
        pass
    assert not (tmp_path / "run").exists()


def bad(root: Path, *, pids: int, frames: int = 1, camids: int = 2) -> Path:
    write_crops(root / "bounding_box_train", pids=pids, camids=camids, frames=frames)
    for part in ("query", "bounding_box_test"):
        write_crops(root / part, pids=2)
    return root


def test_a_training_set_that_nothing_can_be_learnt_from_is_refused(tmp_path: Path):
    def read(name: str, settings: Settings = SMALL, **shape) -> Material:
        return read_material(bad(tmp_path / name, **shape), settings, scratch=tmp_path)

    with pytest.raises(DatasetError, match="at least two identities to tell apart, got 1"):
        read("one identity", pids=1)
    with pytest.raises(DatasetError, match=r"each of 5 training identities has one image: the batch-hard triplet"):
        read("one image each", pids=5, camids=1)
    with pytest.raises(DatasetError, match=r"hold 4 identities, the training set has 3: give --batch-identities 3"):
        read("few", pids=3)
    material = read("one camera", pids=4, camids=1, frames=2)
    assert material.notes == ["all 8 training images are from one camera, 1: expect little on other cameras"]


def test_lone_images_junk_and_missing_pids_are_said(tmp_path: Path):
    root = bad(tmp_path / "data", pids=4)
    train_folder = root / "bounding_box_train"
    (train_folder / "0001_c2s1_000000_00.png").unlink()
    (train_folder / "0002_c2s1_000000_00.png").rename(train_folder / "-1_c2s1_000000_00.png")
    material = read_material(root, SMALL, scratch=tmp_path)
    assert material.notes == [
        "1 training images of junk (pid -1) are left out",
        "2 of 4 training identities have one image, which is compared with itself",
    ]
    table = tmp_path / "table.csv"
    table.write_text("path,split\na.png,train\n")
    with pytest.raises(DatasetError, match="1 of 1 training images have no pid"):
        read_material(table, SMALL, scratch=tmp_path)


def test_few_unreadable_images_are_named_and_left_out_and_many_are_refused(tmp_path: Path):
    root = bad(tmp_path / "data", pids=12)
    train_folder = root / "bounding_box_train"
    (train_folder / "0007_c1s1_000000_00.png").write_text("no image")
    material = read_material(root, SMALL, scratch=tmp_path)
    assert (len(material.train), len(material.labels), material.classes) == (23, 23, 12)
    ((name, reason),) = material.failures
    assert name.endswith("0007_c1s1_000000_00.png")
    assert "expected a JPEG" in reason
    (train_folder / "0008_c1s1_000000_00.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"2 of 24 training images cannot be read, more than 5%: .*0007_c1.*0008_c1"):
        read_material(root, SMALL, scratch=tmp_path)


def test_a_dataset_without_query_and_gallery_is_refused_with_the_way_out(tmp_path: Path):
    write_crops(tmp_path / "bounding_box_train", pids=4)
    with pytest.raises(DatasetError, match=r"to train without evaluation, give --eval-every 0"):
        read_material(tmp_path, SMALL, scratch=tmp_path)
    assert read_material(tmp_path, replace(SMALL, eval_every=0), scratch=tmp_path).trial is None


def test_a_dataset_that_cannot_be_scored_is_refused_before_it_is_trained_on(tmp_path: Path):
    root = bad(tmp_path / "data", pids=4)
    for path in (root / "bounding_box_test").glob("*_c2s1*"):
        path.unlink()
    for path in (root / "query").glob("*_c2s1*"):
        path.unlink()
    with pytest.raises(EvaluationError, match="none of 2 queries has a right entry"):
        read_material(root, SMALL, scratch=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 to"),
        ({"batch_images": 1}, "batch images must be 2 to"),
        ({"batch_identities": 1}, "batch identities must be 2 to"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"seed": -1}, "seed must be"),
        ({"freeze_backbone": 3}, "0 to 2 of 3 epochs"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16"),
        ({"height": 8}, "height must be"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        replace(SMALL, **change)


def test_an_architecture_that_is_not_there_is_refused():
    with pytest.raises(ExportError, match="resnet18"):
        replace(SMALL, arch="resnet19")


# The command


def test_the_command_names_what_it_left_out_and_exits_with_1(tmp_path: Path):
    root = bad(tmp_path / "data", pids=12)
    (root / "bounding_box_train" / "0007_c1s1_000000_00.png").write_text("no image")
    flags = [{"3": "1"}.get(flag, flag) for flag in FLAGS]
    result = run_command("reid-train", root, "--out", tmp_path / "run", *flags, env=ENVIRONMENT)
    assert result.returncode == 1
    assert "left out" in result.stderr
    assert re.search(r"^epoch 1/1  loss [\d.]+  accuracy [\d.]+  \d+ images/s  lr .*Rank-1 .*mAP", result.stderr, re.M)
    assert re.search(r"^learnt from +23 images of 12 identities$", result.stdout, re.M)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_command_refuses_bad_data_in_one_line_and_leaves_nothing(tmp_path: Path):
    root = bad(tmp_path / "data", pids=1)
    result = run_command("reid-train", root, "--out", tmp_path / "run", *FLAGS, "--json", env=ENVIRONMENT)
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["reason"] == "DATASET_INVALID"
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
    result = run_command("reid-train", root, "--out", tmp_path / "run", "--size", "64")
    assert result.returncode == 2
