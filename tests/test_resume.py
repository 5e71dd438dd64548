import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from reidserve.errors import ExportError, OutputExistsError  # noqa: E402
from reidserve.export.train import Material, Settings, claim_folder, run  # noqa: E402
from reidserve.export.train.learner import begin_afresh  # noqa: E402
from reidserve.export.train.recipes import change, write_recipe  # noqa: E402
from reidserve.export.train.state import read_state  # noqa: E402
from tests.runs import (  # noqa: E402
    SMALL,
    CutOffError,
    assert_same_run,
    cut_off_at,
    log_of,
    read_small,
    start_child,
    train_into,
)

RICH = change(
    SMALL,
    [
        *("stages.1.epochs=2", 'stages.1.learns=["layer2", "head"]', "stages.2.epochs=2", "stages.2.start=best"),
        'stages.2.learns=["layer1", "layer2", "layer3", "head"]',
        *("optim.ema=0.9", "batch.accumulate=2", "loss.centre_weight=0.01", "optim.clip=5"),
        *("schedule.name=plateau", "schedule.patience=0", "evaluation.held_out=0.25", "head.temperature=0.5"),
        *("head.temperature_schedule=growing", "optim.head_lr=2.0"),
    ],
)
"""Two stages of two epochs with two batches each, and everything that a run has to remember, but few moments."""

TWO = change(SMALL, ["stages.1.epochs=2", 'stages.1.learns=["head"]', "evaluation.every=0"])
"""Two epochs of two batches, of little that learns: a state without the backbone's moments is soon written."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches as small as these are not worth a second thread, and where others compute it waits for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def material(scratch: Path) -> Material:
    return read_small(scratch, "evaluation.held_out=0.25")


@pytest.fixture(scope="module")
def finished(material: Material, scratch: Path) -> Path:
    """A run with everything in it that was not cut off."""
    train_into(scratch / "finished", material, RICH)
    return scratch / "finished"


@pytest.fixture
def unfinished(material: Material, tmp_path: Path) -> Path:
    with pytest.raises(CutOffError):
        train_into(tmp_path / "unfinished", material, TWO, progress=cut_off_at(1))
    return tmp_path / "unfinished"


def test_a_process_that_was_killed_and_goes_on_comes_to_the_same_bits(
    scratch: Path, material: Material, finished: Path, tmp_path: Path
):
    out, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    recipe.write_text(write_recipe(RICH))
    training = start_child(scratch / "data", out, recipe)
    deadline = time.monotonic() + 180
    while not (out / "log.jsonl").exists() or len(log_of(out)) < 3:
        assert time.monotonic() < deadline, "the run never came to epoch 2"
        time.sleep(0.01)
    training.kill()
    training.communicate(timeout=60)
    done = read_state(out / "last.safetensors").epoch
    assert done < 4, "the run was not cut off half-way"
    said: list[str] = []
    assert train_into(out, material, RICH, say=said.append).resumed_after == done
    assert said[0] == f"going on after epoch {done}"
    assert_same_run(out, finished)


def test_a_run_interrupted_in_each_stage_says_how_to_go_on_and_comes_to_the_same_bits(
    finished: Path, material: Material, tmp_path: Path
):
    for done in (1, 3):

        def interrupt(batch: int, total: int, last: int = 2 * done + 1) -> None:
            if batch == last:
                raise KeyboardInterrupt

        said: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            train_into(tmp_path / "run", material, RICH, progress=interrupt, say=said.append)
        assert said[-1] == f"stopped: the state after epoch {done} is kept, and the same command goes on from it"
    assert train_into(tmp_path / "run", material, RICH).resumed_after == 3
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.slow
def test_a_run_in_mixed_precision_that_was_cut_off_comes_to_the_same_bits(material: Material, tmp_path: Path):
    settings = change(TWO, ['stages.1.learns=["layer4", "head"]', "precision=bf16", "optim.name=sgd"])
    train_into(tmp_path / "whole", material, settings)
    with pytest.raises(CutOffError):
        train_into(tmp_path / "run", material, settings, progress=cut_off_at(3))
    assert train_into(tmp_path / "run", material, settings).resumed_after == 1
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_log_line_that_the_state_does_not_know_is_forgotten(unfinished: Path, material: Material):
    with (unfinished / "log.jsonl").open("a") as log:
        log.write('{"epoch":1,"loss":1.0}\n{"epoch":2,"lo')
    train_into(unfinished, material, TWO)
    assert [line["epoch"] for line in log_of(unfinished)] == [0, 1, 2]
    assert log_of(unfinished)[1]["loss"] != 1


def test_a_log_that_lacks_what_the_state_has_done_is_refused(unfinished: Path, material: Material):
    (unfinished / "log.jsonl").write_text("")
    with pytest.raises(ExportError, match=r"lacks epochs that last.safetensors has done, 0 to 0: .*--force"):
        train_into(unfinished, material, TWO)


# What ends a run


class Full:
    """A disk on which no file may grow beyond so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_keeps_the_last_good_state_and_says_how_to_go_on(material: Material, tmp_path: Path):
    with pytest.raises(CutOffError):
        train_into(tmp_path, material, TWO, progress=cut_off_at(3))
    state = (tmp_path / "last.safetensors").read_bytes()
    with (
        Full(len(state) // 2),
        pytest.raises(ExportError, match=r"cannot be written to \(File too large\): the state after epoch 1 is kept"),
    ):
        train_into(tmp_path, material, TWO)
    assert (tmp_path / "last.safetensors").read_bytes() == state
    assert train_into(tmp_path, material, TWO).resumed_after == 1


def test_a_disk_that_is_full_from_the_first_is_named_with_the_folder(material: Material, tmp_path: Path):
    with Full(1000), pytest.raises(ExportError, match=r"run cannot be written to \(File too large\): no epoch is kept"):
        train_into(tmp_path / "run", material, TWO)
    assert train_into(tmp_path / "run", material, TWO).resumed_after == 0


class Broken(nn.Module):
    """A loss that is no number from a call on."""

    def __init__(self, loss: nn.Module, *, since: int) -> None:
        super().__init__()
        self.loss, self.left = loss, since

    def forward(self, *arguments: Tensor) -> Tensor:
        self.left -= 1
        return self.loss(*arguments) * (float("nan") if self.left <= 0 else 1)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_state(
    material: Material, tmp_path: Path, monkeypatch
):
    def begin_broken(learner):
        return replace(begin_afresh(learner), loss=Broken(learner.loss, since=4))

    monkeypatch.setattr(run, "begin_afresh", begin_broken)
    with pytest.raises(
        ExportError, match=r"the loss is nan at epoch 2, step 2 \(.*\): the state after epoch 1 is kept"
    ):
        train_into(tmp_path / "run", material, TWO)
    assert read_state(tmp_path / "run" / "last.safetensors").epoch == 1


# Refusals


def test_a_finished_run_is_left_as_it_is_and_starts_over_with_force(material: Material, tmp_path: Path):
    settings = change(TWO, ["stages.1.epochs=1", "stages.2.epochs=1"])
    outcome = train_into(tmp_path, material, settings)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix == ".safetensors"}
    said: list[str] = []
    again = train_into(tmp_path, material, settings, say=said.append)
    assert said == ["all 2 epochs are done (--force starts over)"]
    assert (again.best, again.resumed_after) == (outcome.best, 2)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    other = change(TWO, ["stages.1.epochs=1", "seed=1"])
    with pytest.raises(OutputExistsError, match=r"a finished run of 2 epochs and differs: .*seed was 0, is 1.*--force"):
        train_into(tmp_path, material, other)
    model = (tmp_path / "model.safetensors").read_bytes()
    train_into(tmp_path, material, other, force=True)
    assert (tmp_path / "model.safetensors").read_bytes() != model
    assert [line["epoch"] for line in log_of(tmp_path)] == [0, 1]
    names = ["last.safetensors", "log.jsonl", "model.safetensors", "settings.toml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_run_that_was_cut_off_before_its_first_state_begins_anew(unfinished: Path, material: Material):
    (unfinished / "last.safetensors").unlink()
    assert train_into(unfinished, material, TWO).resumed_after == 0
    assert [line["epoch"] for line in log_of(unfinished)] == [0, 1, 2]


def test_a_run_that_was_cut_off_is_refused_to_other_settings_by_name(unfinished: Path, material: Material):
    other: Settings = change(TWO, ["optim.lr=2e-3", "stages.1.epochs=4"])
    with pytest.raises(OutputExistsError, match=r"optim.lr was 0.001, is 0.002; .*--force") as refusal:
        train_into(unfinished, material, other)
    assert "stages.1.epochs was 2, is 4" in str(refusal.value)


def test_a_run_that_was_cut_off_is_refused_to_other_images(unfinished: Path, material: Material):
    pixels = material.train.pixels.copy()
    pixels[3, 2, 1, 0] ^= 1
    other = replace(material, train=replace(material.train, pixels=pixels))
    with pytest.raises(OutputExistsError, match="the training images or their pids are not those it began with"):
        train_into(unfinished, other, TWO)


def test_a_damaged_state_is_refused(unfinished: Path, material: Material):
    state = unfinished / "last.safetensors"
    for damaged in (state.read_bytes()[:-1000], b"nonsense" * 99, b""):
        state.write_bytes(damaged)
        with pytest.raises(ExportError, match=r"last.safetensors .*--force"):
            train_into(unfinished, material, TWO)


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


def test_another_number_of_threads_is_said(unfinished: Path, material: Material):
    def stop(line: str) -> None:
        raise CutOffError(line)

    torch.set_num_threads(2)
    try:
        with pytest.raises(CutOffError, match=r"1 processes of 1 threads .*, goes on with 1 processes of 2 threads"):
            train_into(unfinished, material, TWO, say=stop)
    finally:
        torch.set_num_threads(1)
