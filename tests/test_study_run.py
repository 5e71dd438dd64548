"""Studies in miniature: what they measure, and that nothing is measured twice or lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reidserve.datasets.synth import SynthSpec, write_dataset
from reidserve.errors import CheckpointError, OutputExistsError, UsageError
from reidserve.export.checkpoints import read_checkpoint, write_checkpoint
from reidserve.export.model import build_network, parse_architecture
from reidserve.export.study import Line, Row, Sources, Study, Variant, find_sources, read_rows, run_study, write_page
from reidserve.export.study.run import Listener
from reidserve.export.study.studies import STUDIES
from reidserve.export.study.table import entries
from reidserve.export.train import read_material
from reidserve.export.train.recipes import read_recipe
from reidserve.export.train.swap import swapped
from reidserve.export.train.validation import judge, validate

SPEC = SynthSpec(train_identities=6, test_identities=4, cameras=2, images_per_camera=3, junk=0, distractors=0)
SMALL = Study(
    name="small",
    title="Whether a background matters",
    base=(
        *("network.arch=resnet18", "input.height=32", "input.width=32", "batch.identities=4", "batch.images=2"),
        *("evaluation.held_out=0.5", "stages.1.epochs=2", "evaluation.every=2"),
    ),
    # Without moments, a state is soon written.
    quick=("optim.name=sgd", "optim.momentum=0", "optim.lr=0.01"),
    variants=(
        Variant(name="control"),
        Variant(name="swapped", training="swapped", changes=("head.temperature=0.5",)),
    ),
    lines=(
        Line(name="control", variant="control"),
        Line(name="swapped, test swapped", variant="swapped", tested="swapped"),
        Line(name="swapped, test on the other", variant="swapped", tested="other"),
    ),
    figures=("mAP", "test_accuracy"),
    seed=3,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, as in the child process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "here", SPEC)
    write_dataset(folder / "there", replace(SPEC, domain="b"))
    return Sources("quick", folder / "here", folder / "there", (), None)


@pytest.fixture(scope="module")
def out(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was never cut off."""
    folder = tmp_path_factory.mktemp("study") / "small"
    run_study(SMALL, sources, folder, repeats=1)
    return folder


@pytest.fixture(scope="module")
def rows(out: Path) -> list[Row]:
    return read_rows(out / "results.csv")


def timeless(rows: list[Row]) -> list[Row]:
    return [replace(row, seconds=None) for row in rows]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_every_run_has_its_epochs_and_every_test_its_figures(rows: list[Row]):
    assert [(row.variant, row.tested, row.epoch) for row in rows] == [
        *(("untrained", tested, 0) for tested in ("ordinary", "swapped", "other")),
        *(
            (variant, tested, epoch)
            for variant in ("control", "swapped")
            for tested, epoch in (("ordinary", 0), ("ordinary", 1), ("ordinary", 2), ("swapped", 2), ("other", 2))
        ),
    ]
    assert {(row.seed, row.repeat, row.scale, row.data, row.network) for row in rows} == {
        (3, 1, "quick", "here + there", "resnet18 at 32x32")
    }
    assert all(row.mAP is not None for row in rows if row.epoch != 1)
    assert all((row.val_loss is None) == (row.tested != "ordinary") for row in rows if row.epoch)


def test_figures_are_those_of_the_checkpoint_on_each_test(sources: Sources, out: Path, rows: list[Row], tmp_path: Path):
    run = out / "runs" / "swapped.1"
    settings, network = read_recipe(run / "settings.toml"), read_checkpoint(run / "model.safetensors").network
    here, there = (
        read_material(data, settings, scratch=tmp_path, masks=True)
        for data in (sources.data, sources.other)
        if data is not None
    )
    assert here.trial is not None
    assert there.trial is not None
    parts = [swapped(part, there.train, 3, scratch=tmp_path) for part in (here.trial.query, here.trial.gallery)]
    statistics = {"mean": settings.input.mean, "std": settings.input.std}
    expected = {
        "ordinary": validate(network, here.trial, **statistics),
        "swapped": validate(network, type(here.trial)(*parts), **statistics),
        "other": validate(network, there.trial, **statistics),
    }
    found = {row.tested: row for row in rows if row.variant == "swapped" and row.epoch == 2}
    for tested, metrics in expected.items():
        assert found[tested].mAP == pytest.approx(metrics.mAP, rel=1e-5)
        assert found[tested].rank5 == pytest.approx(metrics.rank(5), rel=1e-5)
    assert here.held_out is not None
    assert here.held_out_labels is not None
    halves = [
        judge(network, here.held_out.pixels[start::2], here.held_out_labels[start::2], **statistics) for start in (0, 1)
    ]
    assert found["ordinary"].val_accuracy == pytest.approx(halves[0].accuracy, rel=1e-5)
    assert found["ordinary"].test_accuracy == pytest.approx(halves[1].accuracy, rel=1e-5)


def test_variants_begin_with_the_control_s_weights_and_differ_in_what_they_learn(out: Path, rows: list[Row]):
    before = {(row.variant, row.mAP) for row in rows if row.epoch == 0 and row.tested == "ordinary"}
    assert len({ap for _, ap in before}) == 1
    ends = [row for row in rows if row.epoch == 2 and row.tested == "ordinary"]
    assert len({row.loss for row in ends}) == len({row.digest for row in ends}) == 2
    control, other = (read_recipe(out / "runs" / name / "settings.toml") for name in ("control.1", "swapped.1"))
    assert other.differences(control) == ["head.temperature was 1.0, is 0.5"]


def test_a_second_repeat_has_the_next_seed_and_what_is_finished_is_not_made_again(sources: Sources, out: Path):
    before = {run.name: files(run) for run in (out / "runs").iterdir()}
    said: list[str] = []
    rows = run_study(SMALL, sources, out, repeats=2, variants=["control"], listener=Listener(say=said.append))
    assert {(row.variant, row.repeat, row.seed) for row in rows} == {
        (variant, repeat, 2 + repeat) for variant in ("untrained", "control") for repeat in (1, 2)
    }
    assert {name: files(out / "runs" / name) for name in before} == before
    runs = [line for line in said if line.startswith("small: ")]
    assert runs == [f"small: {name}, run {repeat} of 2" for repeat in (1, 2) for name in ("untrained", "control")]
    losses = [row.loss for row in rows if row.variant == "control" and row.epoch == 2 and row.tested == "ordinary"]
    assert losses[0] != losses[1]


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from reidserve.export.study import Sources, run_study
sys.path.insert(0, sys.argv[4])
from tests.test_study_run import SMALL
run_study(SMALL, Sources("quick", Path(sys.argv[1]), Path(sys.argv[2]), (), None), Path(sys.argv[3]), repeats=1)
"""


def test_a_study_that_was_killed_goes_on_and_comes_to_the_same_figures(
    sources: Sources, rows: list[Row], tmp_path: Path
):
    root, out = Path(__file__).parents[1], tmp_path / "small"
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD, str(sources.data), str(sources.other), str(out), str(root)]
    )
    log = out / "runs" / "swapped.1" / "log.jsonl"
    deadline = time.monotonic() + 300
    # In the second variant, after its first epoch.
    while not (log.exists() and log.read_bytes().count(b"\n") >= 2):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / "runs" / "swapped.1" / "result.json").exists()
    control = files(out / "runs" / "control.1")
    found = run_study(SMALL, sources, out, repeats=1)
    assert files(out / "runs" / "control.1") == control
    assert timeless(read_rows(out / "results.csv")) == timeless(rows)
    assert len(found) == len(rows)


def test_a_run_that_was_trained_and_not_yet_scored_is_scored_without_being_trained_again(
    sources: Sources, out: Path, rows: list[Row]
):
    run = out / "runs" / "swapped.1"
    (run / "result.json").unlink()
    state = (run / "last.safetensors").stat().st_mtime_ns
    run_study(SMALL, sources, out, repeats=1)
    assert (run / "last.safetensors").stat().st_mtime_ns == state
    assert read_rows(out / "results.csv") == rows


def test_other_settings_than_a_finished_run_s_are_refused(sources: Sources, out: Path):
    with pytest.raises(OutputExistsError, match="finished run of other settings or weights"):
        run_study(SMALL, sources, out, repeats=1, changes=["optim.lr=0.002"])


def test_an_unknown_variant_is_refused_with_the_nearest_name(sources: Sources, tmp_path: Path):
    with pytest.raises(UsageError, match="no variant of small is called 'swap': did you mean 'swapped'"):
        run_study(SMALL, sources, tmp_path, repeats=1, variants=["swap"])


STARTING = replace(
    SMALL,
    base=("init.pretrained=given", *SMALL.base[:-2], "stages.1.epochs=1", "evaluation.every=1"),
    variants=SMALL.variants[:1],
    lines=SMALL.lines[:1],
)


def test_given_weights_are_taken_by_backbone(sources: Sources, out: Path, tmp_path: Path):
    weights = out / "runs" / "control.1" / "model.safetensors"
    given = replace(sources, given=(weights,))
    untrained, before, _ = run_study(STARTING, given, tmp_path / "small", repeats=1)
    assert [untrained.start, before.start] == ["drawn", "model.safetensors"]
    (expected,) = [row for row in read_rows(out / "results.csv") if row.variant == "control" and row.epoch == 2][:1]
    assert untrained.mAP != before.mAP == pytest.approx(expected.mAP, rel=1e-5)
    ibn = replace(STARTING, base=("network.arch=resnet18_ibn_a", "init.pretrained=given"), quick=())
    with pytest.raises(CheckpointError, match="a resnet18_ibn_a, --pretrained gives resnet18"):
        run_study(ibn, given, tmp_path / "ibn", repeats=1)


ADAPTING = replace(
    SMALL,
    base=(*SMALL.base[:-3], "stages.1.epochs=2", "evaluation.every=2"),
    variants=(
        SMALL.control,
        Variant(
            name="joint",
            changes=("init.pretrained=control", "adapt.mode=joint", "adapt.epochs=2"),
            # Of 36 images, six of an identity.
            quick=("adapt.k1=4", "adapt.k2=2", "adapt.eps=0.5", "adapt.min_samples=2"),
        ),
    ),
    lines=(Line(name="source", variant="control", tested="other"), Line(name="joint", variant="joint", tested="other")),
    figures=("mAP",),
)


def test_an_adaptation_begins_with_the_control_and_is_scored_on_the_other_data(sources: Sources, tmp_path: Path):
    rows = run_study(ADAPTING, sources, tmp_path / "small", repeats=1)
    assert [(row.variant, row.tested, row.epoch) for row in rows] == [
        ("untrained", "other", 0),
        *(
            ("control", tested, epoch)
            for tested, epoch in (("ordinary", 0), ("ordinary", 1), ("ordinary", 2), ("other", 2))
        ),
        *(("joint", "other", epoch) for epoch in range(3)),
    ]
    control, before, _, after = rows[-4:]
    assert before.mAP == control.mAP
    assert after.loss is not None
    assert [entry.ours[0] for entry in entries(ADAPTING, rows)][1:] == [
        *(f"{100 * row.mAP:.1f}" for row in (control, after) if row.mAP is not None)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_each_study_runs_and_fills_its_table(name: str, sources: Sources, tmp_path: Path):
    weights = []
    for architecture in ("resnet18", "resnet18_ibn_a"):
        weights.append(tmp_path / f"{architecture}.safetensors")
        # A backbone alone, as ImageNet's weights are.
        write_checkpoint(weights[-1], build_network(replace(parse_architecture(architecture), neck="no"), seed=0), {})
    changes = [
        *("batch.identities=4", "batch.images=2", "optim.name=sgd", "optim.momentum=0", "optim.lr=0.01"),
        *("evaluation.every=1", "stages.1.epochs=2", "adapt.epochs=1"),
        *("adapt.k1=4", "adapt.k2=2", "adapt.eps=0.5", "adapt.min_samples=2"),
    ]
    if name in ("unfreeze", "freeze"):
        changes.remove("evaluation.every=1")
    study = STUDIES[name]
    rows = run_study(study, replace(sources, given=tuple(weights)), tmp_path / name, repeats=1, changes=changes)
    filled = [entry for entry in entries(study, rows) if not entry.name.startswith(("untrained", "before"))]
    assert [entry.name for entry in filled] == [line.name for line in study.lines]
    assert all(entry.ours[study.figures.index(study.metric)] != "-" for entry in filled)
    write_page(tmp_path / "study.html", study, rows)


@pytest.mark.slow
def test_weights_are_pretrained_once_and_taken_as_given_ones_are(sources: Sources, tmp_path: Path):
    drawn = tmp_path / "data"
    write_dataset(drawn, replace(SPEC, seed=1, train_identities=8))
    rows = run_study(STARTING, replace(sources, pretraining=drawn), tmp_path / "small", repeats=1)
    assert [row.start for row in rows] == ["drawn", *["pretrained on 160 synthetic vehicles"] * 2]
    pretrained = tmp_path / "pretrained" / "resnet18" / "model.safetensors"
    assert read_checkpoint(pretrained).architecture.neck == "no"
    made = pretrained.stat().st_mtime_ns
    run_study(STARTING, replace(sources, pretraining=drawn), tmp_path / "other", repeats=1)
    assert pretrained.stat().st_mtime_ns == made
    again = run_study(STARTING, replace(sources, given=(pretrained,)), tmp_path / "again", repeats=1)
    assert [(row.loss, row.mAP, row.digest) for row in again] == [(row.loss, row.mAP, row.digest) for row in rows]


def test_what_is_missing_is_asked_for_before_anything_is_drawn(tmp_path: Path):
    swap, tricks = STUDIES["swap"], STUDIES["tricks"]

    def ask(studies: list[Study], data: Path | None) -> None:
        find_sources(studies, tmp_path, scale="full", data=data, other=None, pretrained=())

    with pytest.raises(UsageError, match="give --data"):
        ask([tricks], None)
    with pytest.raises(UsageError, match="swap compares two datasets: give the second one with --other"):
        ask([tricks, swap], tmp_path / "market")
    with pytest.raises(UsageError, match="give a checkpoint of the study's backbone with --pretrained"):
        ask([tricks], tmp_path / "market")
    assert list(tmp_path.iterdir()) == []
