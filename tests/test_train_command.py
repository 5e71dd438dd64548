import json
import re
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cyclopts import CycloptsError  # noqa: E402

from reidserve.commands.train import app  # noqa: E402
from reidserve.commands.train.training import print_outcome  # noqa: E402
from reidserve.errors import DatasetError, UsageError  # noqa: E402
from reidserve.export.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402
from reidserve.export.model import build_network, parse_architecture  # noqa: E402
from reidserve.export.train import Outcome, Record, read_material  # noqa: E402
from reidserve.export.train.recipes import change, read_recipe, recipe_names, recipe_path  # noqa: E402
from tests.conftest import run_command, write_crops  # noqa: E402
from tests.runs import log_of, train_into, write_data  # noqa: E402

TINY = ["--arch", "resnet18", "--size", "32x32", "--set", "batch.identities=4"]


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def reid_train(*arguments: object) -> Result:
    """The command without the cost of a process; what `run` of commands/console.py makes of errors is tested there."""
    out, errors = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = app([*map(str, arguments)])
    return Result(code, out.getvalue(), errors.getvalue())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches as small as these are not worth a second thread, and where others compute it waits for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("command") / "data")


def bad(root: Path, *, pids: int) -> Path:
    write_crops(root / "bounding_box_train", pids=pids)
    for part in ("query", "bounding_box_test"):
        write_crops(root / part, pids=2)
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of a user's recipe with flags and settings of all kinds: its folder and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    write_checkpoint(folder / "begin.safetensors", build_network(parse_architecture("resnet18", classes=3), seed=5), {})
    (folder / "mine.toml").write_text("[optim]\nlr = 1e-3\n[loss]\nmargin = 0.25\n[[stages]]\nlr = 0.5\n")
    result = train_all_kinds(data, folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def train_all_kinds(data: Path, folder: Path) -> Result:
    return reid_train(
        *(data, "--recipe", folder / "mine.toml", "--out", folder / "run", *TINY, "--epochs", 1, "--seed", 7),
        *("--set", "optim.lr=0.00123456789", "--set", "evaluation.every=1", "--set", "input.statistics=dataset"),
        *("--pretrained", folder / "begin.safetensors", "--precision", "bf16", "--device", "cpu", "--json"),
    )


def test_a_recipe_settings_and_flags_make_the_settings_of_a_run(trained, data: Path):
    folder, _ = trained
    written = read_recipe(folder / "run" / "settings.toml")
    stats = json.loads(reid_train("--stats", data, *TINY, "--json").stdout)
    expected = change(
        read_recipe(folder / "mine.toml"),
        [
            *("network.arch=resnet18", "input.height=32", "input.width=32", "batch.identities=4", "stages.1.epochs=1"),
            *("seed=7", "precision=bf16", "device=cpu", "optim.lr=0.00123456789", "evaluation.every=1"),
            *(f"init.pretrained={folder / 'begin.safetensors'}", f"input.mean={stats['mean']}"),
            f"input.std={stats['std']}",
        ],
    )
    assert written == expected
    assert written.loss.margin == 0.25
    assert written.stages[0].lr == 0.5


def test_a_run_is_told_to_machines_and_people(trained):
    folder, result = trained
    facts = json.loads(result.stdout)
    best = max(log_of(folder / "run")[1:], key=lambda line: line["mAP"])
    assert (facts["model"], facts["classes"], facts["images"]) == (str(folder / "run" / "model.safetensors"), 12, 48)
    assert (facts["best"]["epoch"], facts["best"]["mAP"]) == (best["epoch"], best["mAP"])
    assert facts["failures"] == []
    assert re.search(r"^epoch 0/1  before training  Rank-1 .*mAP", result.stderr, re.M)
    assert re.search(r"^epoch 1/1  loss [\d.]+  accuracy [\d.]+  images/s \d+  lr .*Rank-1 .*mAP", result.stderr, re.M)


def test_a_result_is_told_to_people_in_lines(trained, data: Path, tmp_path: Path, capsys):
    folder, _ = trained
    settings = read_recipe(folder / "run" / "settings.toml")
    material = read_material(data, settings, scratch=tmp_path)
    best = Record(epoch=1, rank1=0.5, rank5=0.625, mAP=0.25)
    outcome = Outcome(model=tmp_path / "model.safetensors", best=best, classes=12, resumed_after=0)
    print_outcome(outcome, material, settings, json=False)
    assert capsys.readouterr().out.splitlines() == [
        f"wrote        {tmp_path}/model.safetensors",
        "network      resnet18 at 32x32",
        "learnt from  48 images of 12 identities",
        "epoch        1 of 1 (best by mAP)",
        "Rank-1       0.5000",
        "Rank-5       0.6250",
        "mAP          0.2500",
    ]


def test_a_run_is_shown_beside_its_result(trained):
    folder, _ = trained
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        *("curves.png", "first-batch.png", "last.safetensors", "log.jsonl", "model.safetensors", "predictions.png"),
        *("rankings.png", "run.html", "settings.toml"),
    ]


def test_a_run_that_was_killed_while_its_page_was_drawn_is_drawn_when_it_is_started_again(trained, data: Path):
    folder, result = trained
    drawn = [folder / "run" / name for name in ("run.html", "curves.png", "predictions.png", "rankings.png")]
    pictures = [path.read_bytes() for path in drawn]
    for path in drawn:
        path.unlink()
    again = train_all_kinds(data, folder)
    assert again.stderr == "all 1 epochs are done (--force starts over)\n"
    assert json.loads(again.stdout) == {**json.loads(result.stdout), "resumed_after": 1}
    assert [path.read_bytes() for path in drawn] == pictures


def test_the_datasets_own_statistics_stand_in_the_checkpoint(trained, data: Path):
    folder, _ = trained
    feeding = read_checkpoint(folder / "run" / "model.safetensors").feeding
    written = read_recipe(folder / "run" / "settings.toml").input
    assert feeding is not None
    assert (feeding.mean, feeding.std) == (written.mean, written.std)
    assert written.mean != (0.485, 0.456, 0.406)


def test_a_run_is_repeated_by_its_own_settings(trained, data: Path, tmp_path: Path):
    folder, _ = trained
    settings = read_recipe(folder / "run" / "settings.toml")
    train_into(tmp_path / "run", read_material(data, settings, scratch=tmp_path), settings)
    for name in ("settings.toml", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (folder / "run" / name).read_bytes()


def test_statistics_are_those_of_the_training_images(data: Path):
    from PIL import Image

    shown = reid_train("--stats", data, "--size", "128x64", "--json")
    facts = json.loads(shown.stdout)
    paths = sorted((data / "bounding_box_train").glob("[0-9]*.jpg"))
    assert facts["images"] == len(paths) == 48
    # As drawn they are larger: a resize moves the mean hardly, and the deviation by little.
    pixels = np.concatenate([np.asarray(Image.open(path)).reshape(-1, 3) for path in paths]) / 255
    np.testing.assert_allclose(facts["mean"], pixels.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(facts["std"], pixels.std(axis=0), atol=0.05)
    people = reid_train("--stats", data, "--size", "128x64").stdout
    assert ", ".join(f"{value:.4f}" for value in facts["mean"]) in people
    assert "--set input.statistics=dataset" in people


def test_several_datasets_are_joined(data: Path, tmp_path: Path):
    other = write_data(tmp_path / "other")
    assert json.loads(reid_train("--stats", data, other, *TINY, "--json").stdout)["images"] == 2 * 48


def test_recipes_are_listed_and_printed_as_they_are_to_be_copied():
    listed = reid_train("recipes")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == recipe_names()
    assert "Bag of Tricks and a Strong Baseline" in listed.stdout
    for name in recipe_names():
        assert reid_train("recipes", name).stdout == recipe_path(name).read_text()
    assert json.loads(reid_train("recipes", "pcb", "--json").stdout)["network.parts"] == 6
    assert sorted(json.loads(reid_train("recipes", "--json").stdout)) == recipe_names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a dataset to learn from"),
        (["data", "--recipe", "strong-base"], "did you mean strong-baseline?"),
        (["data", "--recipe", "none.toml"], "the recipe none.toml cannot be read"),
        (["data", "--set", "lr=1"], "there is no setting lr; did you mean optim.lr?"),
        (["data", "--set", "optim.lr=1", "--set", "optim.lr=2"], "optim.lr is set twice, to 1 and 2"),
        (["data", "--seed", "1", "--set", "seed=2"], "seed is set twice, to 1 and 2"),
        (["data", "--set", "optim.lr=fast"], "optim.lr must be a number such as 0.5, got 'fast'"),
        (["data", "--size", "64"], "size"),
        (
            ["data", "--recipe", "sbs", "--epochs", "3"],
            "--epochs is of runs of one stage, this one has 2: give --set stages.1.epochs= --set stages.2.epochs=",
        ),
        (["data", "--freeze-backbone", "3"], "--freeze-backbone"),
        (["recipes", "pbc"], "did you mean pcb?"),
    ],
)
def test_what_is_none_is_refused_before_anything_is_read_or_written(arguments, message: str, tmp_path: Path):
    with chdir(tmp_path), pytest.raises((UsageError, CycloptsError), match=re.escape(message)):
        reid_train(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_what_it_left_out_and_exits_with_1(tmp_path: Path):
    root = bad(tmp_path / "data", pids=12)
    (root / "bounding_box_train" / "0007_c1s1_000000_00.png").write_text("no image")
    result = reid_train("--stats", root, *TINY)
    assert result.returncode == 1
    assert re.search(r"^left out .*0007_c1s1_000000_00.png: ", result.stderr, re.M)
    assert re.search(r"^images +23$", result.stdout, re.M)


def test_the_command_refuses_bad_data_and_leaves_nothing(tmp_path: Path):
    root = bad(tmp_path / "data", pids=1)
    with pytest.raises(DatasetError, match="at least two identities"):
        reid_train(root, "--out", tmp_path / "run", *TINY)
    assert not (tmp_path / "run").exists()


def test_a_wrong_setting_is_one_line_and_exits_with_2(tmp_path: Path):
    result = run_command("reid-train", "data", "--set", "lr=1", "--json", cwd=tmp_path)
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["reason"] == "USAGE_WRONG"
    assert result.stderr == "error: there is no setting lr; did you mean optim.lr?\n"
    assert list(tmp_path.iterdir()) == []
