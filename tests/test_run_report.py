import hashlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from reidserve.datasets.synth import SynthSpec, write_dataset  # noqa: E402
from reidserve.export.train import Material, Outcome, Record, RunFolder, Settings, claim_folder, read_material, train  # noqa: E402
from reidserve.export.train.report import Row, RunReport, Study, write_study  # noqa: E402
from reidserve.export.train.report.run_page import render_run  # noqa: E402
from reidserve.export.train.report.study_page import render_study  # noqa: E402
from reidserve.export.train.settings import (  # noqa: E402
    BatchSettings,
    EvaluationSettings,
    InputSettings,
    NetworkSettings,
    OptimSettings,
    Stage,
)

SETTINGS = Settings(
    network=NetworkSettings(arch="resnet18"),
    input=InputSettings(height=64, width=32),
    batch=BatchSettings(identities=4, images=2),
    optim=OptimSettings(lr=1e-3),
    evaluation=EvaluationSettings(every=1),
    stages=(Stage(epochs=1),),
)
SHOWN = {"run.html", "curves.png", "first-batch.png", "predictions.png", "rankings.png"}


class Page(HTMLParser):
    """What a browser would make of a page: its elements, its text, and the cells of its tables row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data.strip()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("reported")
    spec = SynthSpec(train_identities=8, test_identities=4, cameras=2, images_per_camera=2, junk=2, distractors=2)
    write_dataset(root / "data", spec)
    return read_material(root / "data", SETTINGS, scratch=root)


@pytest.fixture(scope="module")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Outcome]:
    """A run that was reported from its beginning to its end."""
    with claim_folder(tmp_path_factory.mktemp("runs") / "first <run>", SETTINGS) as folder:
        report = RunReport(folder, SETTINGS, material)
        report.begin()
        assert {path.name for path in folder.path.iterdir()} == {"first-batch.png"}
        outcome = train(material, folder, SETTINGS, on_epoch=lambda record: report.epoch())
        report.finish(outcome)
    return folder, outcome


@pytest.fixture(scope="module")
def page(finished: tuple[RunFolder, Outcome]) -> Page:
    return Page((finished[0].path / "run.html").read_text(encoding="utf-8"))


def assert_needs_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("data:image/jpeg;base64,", "#"))
    assert "url(http" not in page.text


def test_a_run_leaves_a_page_and_pictures_and_nothing_half_written(finished: tuple[RunFolder, Outcome]):
    files = {path.name for path in finished[0].path.iterdir()}
    assert files >= SHOWN
    assert not [name for name in files if name.startswith(".")]


def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing(page: Page):
    assert_needs_nothing(page)
    assert sum(tag == "img" for tag, _ in page.elements) == 3
    assert sum(tag == "svg" for tag, _ in page.elements) == 5


def test_a_page_says_what_was_trained_and_how_it_ended(page: Page, finished: tuple[RunFolder, Outcome]):
    folder, outcome = finished
    assert "Training run: first <run>" in page.text
    assert "resnet18 · data · finished, 1 epoch" in page.text
    assert hashlib.sha256(folder.model.read_bytes()).hexdigest() in page.text
    assert f"{100 * (outcome.best.mAP or 0):.2f}\N{NO-BREAK SPACE}%" in page.text
    assert "32 of 8 identities" in page.text
    assert f"torch{torch.__version__}" in "".join(page.text.split())


def test_a_page_has_a_row_for_each_epoch(page: Page, finished: tuple[RunFolder, Outcome]):
    folder, outcome = finished
    header = page.rows[0]
    assert header[:3] == ["epoch", "loss", "accuracy"]
    assert header[-4:] == ["Rank-1", "Rank-5", "Rank-10", "mAP"]
    for row, record in zip(page.rows[1:3], folder.records(), strict=True):
        assert row[0] == f"{record.epoch}, kept" if record == outcome.best else str(record.epoch)
        assert row[1] == ("" if record.loss is None else f"{record.loss:.4f}")
        assert row[-1] == f"{record.mAP:.2%}"


def test_settings_that_are_not_the_defaults_stand_first_and_all_below(page: Page):
    changed = {row[0]: row[1:] for row in page.rows[4:]}
    assert changed == {
        "network.arch": ["resnet18", "resnet50_ibn_a"],
        "input.height": ["64", "256"],
        "input.width": ["32", "128"],
        "batch.identities": ["4", "16"],
        "batch.images": ["2", "4"],
        "optim.lr": ["0.001", "0.00035"],
        "evaluation.every": ["1", "10"],
        "stages.1.epochs": ["1", "120"],
    }
    assert all(name in page.text for name in SETTINGS.values())


def test_while_a_run_goes_on_its_page_says_how_far_it_is(material: Material, tmp_path: Path):
    odd = replace(material, notes=["one <b>camera</b>"])
    settings = replace(SETTINGS, stages=(Stage(epochs=1), Stage(epochs=3)))
    records = [
        Record(epoch=0),
        Record(epoch=1, loss=2.0, accuracy=0.25, val_loss=3.0, val_accuracy=0.125, lr=1e-3),
        Record(epoch=2, stage=2, loss=1.0, accuracy=0.5, val_loss=2.5, val_accuracy=0.375, lr=1e-3),
    ]
    text = render_run(records, settings, odd, folder=tmp_path, kept=None)
    page = Page(text)
    assert "as of epoch 2 of 4" in page.text
    assert "finished" not in page.text
    assert "sha256 of the checkpoint" not in page.text
    assert "one <b>camera</b>" in page.text
    assert page.rows[0] == ["epoch", "stage", "loss", "accuracy", "held-out loss", "held-out accuracy", "learning rate"]
    assert page.rows[3] == ["2, kept", "2", "1.0000", "50.00%", "2.5000", "37.50%", "1.00e-03"]
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_before_anything_is_measured_there_is_a_page_without_curves(material: Material, tmp_path: Path):
    page = Page(render_run([Record(epoch=0)], SETTINGS, material, folder=tmp_path, kept=None))
    assert "as of epoch 0 of 1" in page.text
    assert not [tag for tag, _ in page.elements if tag == "svg"]


def test_drawing_takes_little_of_the_time_of_a_run(material: Material, tmp_path: Path):
    with claim_folder(tmp_path / "run", SETTINGS) as folder:
        report = RunReport(folder, SETTINGS, material)
        folder.append(Record(epoch=0, rank1=0.5, mAP=0.5))
        report.epoch()
        first = (folder.path / "run.html").read_bytes()
        folder.append(Record(epoch=1, loss=1.0, accuracy=0.5, rank1=0.6, mAP=0.6))
        report.epoch()
        assert (folder.path / "run.html").read_bytes() == first


def test_a_run_that_starts_over_shows_nothing_of_the_one_before(material: Material, tmp_path: Path):
    with claim_folder(tmp_path / "run", SETTINGS) as folder:
        for name in SHOWN:
            (folder.path / name).write_bytes(b"old")
        RunReport(folder, SETTINGS, material).begin()
        assert [path.name for path in folder.path.iterdir()] == ["first-batch.png"]


STUDY = Study(
    title="Tricks, one at a time",
    about=["Does <it> help?"],
    measures=["Rank-1, %", "mAP, %"],
    published_measures=["mAP, %"],
    source="Market-1501, ResNet-50",
    rows=[
        Row(variant="control", ours=["60.0 ± 1.0", "50.0 ± 0.5"], published=["83.5; 83.2"]),
        Row(
            variant="temperature .05",
            changes=["head.temperature=0.05"],
            ours=["61.0 ± 1.0", ""],
            published=["81.1"],
            remark="better here, worse there",
        ),
        Row(variant="untrained", ours=["10.0", "5.0"]),
    ],
    runs={
        "control 1": [Record(epoch=1, loss=2.0, rank1=0.5)],
        "temperature 1": [Record(epoch=1, loss=1.0, rank1=0.6)],
    },
    notes=["two repeats say little"],
    facts={"data": "synthetic"},
)


def test_a_study_shows_its_figures_beside_those_of_others_which_are_marked(tmp_path: Path):
    write_study(tmp_path / "study.html", STUDY)
    page = Page((tmp_path / "study.html").read_text(encoding="utf-8"))
    assert_needs_nothing(page)
    assert page.rows == [
        ["", "measured here", "published by others", ""],
        ["variant", "Rank-1, %", "mAP, %", "mAP, %", "remark"],
        ["control", "60.0 ± 1.0", "50.0 ± 0.5", "83.5; 83.2", ""],
        ["temperature .05head.temperature=0.05", "61.0 ± 1.0", "–", "81.1", "better here, worse there"],
        ["untrained", "10.0", "5.0", "–", ""],
    ]
    assert "Does <it> help?" in page.text
    assert "the authors' figures, not ours (Market-1501, ResNet-50)" in page.text
    assert "two repeats say little" in page.text
    theirs = [tag for tag, attributes in page.elements if attributes.get("class") == "theirs"]
    assert theirs == ["th", "th", "td", "td", "td"]


def test_the_curves_of_a_study_say_whose_they_are():
    page = Page(render_study(STUDY))
    assert sum(tag == "svg" for tag, _ in page.elements) == 3
    assert "control 1" in page.text
    assert "temperature 1" in page.text


def test_a_study_can_be_shown_before_any_run_is_done():
    page = Page(render_study(replace(STUDY, runs={}, rows=[], published_measures=[])))
    assert not [tag for tag, _ in page.elements if tag == "svg"]
    assert "published" not in page.text
