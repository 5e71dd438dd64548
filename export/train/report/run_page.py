"""The page of a run, rewritten while it trains, and the pictures beside it."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

from PIL import Image as Pillow

from reidserve.evaluate.report.canvas import draw_svg
from reidserve.evaluate.report.template import data_uri, fill
from reidserve.export.checkpoints import Checkpoint, Feed, read_checkpoint
from reidserve.export.files import write_whole
from reidserve.export.train.epoch import set_head
from reidserve.export.train.folder import RunFolder
from reidserve.export.train.material import Material
from reidserve.export.train.record import Record
from reidserve.export.train.report.cells import to_png
from reidserve.export.train.report.curves import draw_curves, run_panels
from reidserve.export.train.report.first_batch import draw_first_batch
from reidserve.export.train.report.predictions import draw_predictions, draw_trial
from reidserve.export.train.run import Outcome
from reidserve.export.train.settings import Settings

PAGE_FILE, CURVES_FILE = "run.html", "curves.png"
FIRST_BATCH_FILE, PREDICTIONS_FILE, RANKINGS_FILE = "first-batch.png", "predictions.png", "rankings.png"

_SHARE = 0.02
"""Of a run's time, spent on drawing while it trains."""
_PICTURES = {
    FIRST_BATCH_FILE: (
        "The first batch",
        "As the network sees it, after augmentation: each row an identity. Black is where a crop was moved, a plain "
        "rectangle what was erased.",
    ),
    PREDICTIONS_FILE: (
        "Predictions",
        "What the classifier of the kept checkpoint says, framed right (green, a tick) or wrong (red, a cross).",
    ),
    RANKINGS_FILE: (
        "Ranked gallery",
        "Queries, from the best found to the worst, with the best of the gallery for each.",
    ),
}
_COLUMNS: Mapping[str, tuple[str, str]] = {
    "stage": ("stage", "{:d}"),
    "loss": ("loss", "{:.4f}"),
    "accuracy": ("accuracy", "{:.2%}"),
    "val_loss": ("held-out loss", "{:.4f}"),
    "val_accuracy": ("held-out accuracy", "{:.2%}"),
    "lr": ("learning rate", "{:.2e}"),
    "images_per_second": ("images/s", "{:.0f}"),
    "rank1": ("Rank-1", "{:.2%}"),
    "rank5": ("Rank-5", "{:.2%}"),
    "rank10": ("Rank-10", "{:.2%}"),
    "mAP": ("mAP", "{:.2%}"),
}


class RunReport:
    """What a run shows to people in its folder, brought up to date while it trains.

    Attributes:
        folder: of the run, whose log says how far it is.
        settings: of the run.
        material: what it learns from.
    """

    def __init__(self, folder: RunFolder, settings: Settings, material: Material) -> None:
        self.folder, self.settings, self.material = folder, settings, material
        self._due = monotonic()

    def begin(self) -> None:
        """Show the first batch, before anything is learnt from it, and nothing that an earlier run left.

        Raises:
            OSError: it cannot be written.
        """
        for name in (PAGE_FILE, CURVES_FILE, *_PICTURES):
            (self.folder.path / name).unlink(missing_ok=True)
        self._write(FIRST_BATCH_FILE, draw_first_batch(self.material, self.settings))

    def epoch(self) -> None:
        """Bring curves and page up to date, if drawing has not taken more than its share of the time.

        Raises:
            OSError: they cannot be written.
        """
        start = monotonic()
        if start >= self._due:
            self._draw(kept=None)
            self._due = monotonic() + (monotonic() - start) / _SHARE

    def finish(self, outcome: Outcome) -> None:
        """Show what the kept checkpoint predicts, then the page as it stays.

        Raises:
            ImageError: an image of the ranked gallery cannot be read any more.
            OSError: they cannot be written.
        """
        checkpoint = read_checkpoint(outcome.model)
        feed = checkpoint.feeding or Feed()
        set_head(checkpoint.network, self.settings.head, outcome.best.epoch)
        self._write(PREDICTIONS_FILE, draw_predictions(checkpoint.network, self.material, feed))
        if self.material.trial is not None:
            network = checkpoint.network.to(self.settings.device)
            draw_trial(network, self.material.trial, feed, self.folder.path / RANKINGS_FILE)
        self._draw(kept=checkpoint)

    def _write(self, name: str, picture: Pillow.Image) -> None:
        write_whole(self.folder.path / name, to_png(picture))

    def _draw(self, *, kept: Checkpoint | None) -> None:
        records = self.folder.records()
        if run_panels(records):
            draw_curves({"": records}, self.folder.path / CURVES_FILE)
        page = render_run(records, self.settings, self.material, folder=self.folder.path, kept=kept)
        write_whole(self.folder.path / PAGE_FILE, page.encode())


def render_run(
    records: Sequence[Record], settings: Settings, material: Material, *, folder: Path, kept: Checkpoint | None
) -> str:
    """The page as HTML, with those pictures that are in the folder; all that is not ours is escaped.

    `kept` is the checkpoint that has come of it; None while the run goes on.
    """
    last = records[-1].epoch if records else 0
    return fill(
        "reidserve.export.train.report",
        "run.html.jinja",
        name=folder.absolute().name,
        dataset=material.name,
        arch=settings.network.arch,
        epoch=last,
        epochs=settings.epochs,
        digest=None if kept is None else kept.sha256,
        best=_best(records),
        figures=[(panel.title, draw_svg(panel)) for panel in run_panels(records)],
        columns=_columns(records),
        records=records,
        cell=_cell,
        pictures=[
            (title, said, _uri(folder / name)) for name, (title, said) in _PICTURES.items() if (folder / name).exists()
        ],
        facts=_facts(material),
        notes=material.notes,
        failures=material.failures,
        values={name: _text(value) for name, value in settings.values().items()},
        changed=_changed(settings),
        origin=_origin(settings, {} if kept is None else kept.metadata),
    )


def _uri(path: Path) -> str:
    with Pillow.open(path) as picture:
        return data_uri(picture)


def _best(records: Sequence[Record]) -> Record | None:
    """The epoch whose weights are kept: of the highest mAP or, where none was evaluated, the last."""
    learnt = [record for record in records if record.epoch]
    scored = [record for record in learnt if record.mAP is not None]
    return max(scored, key=lambda record: record.mAP or 0) if scored else learnt[-1] if learnt else None


def _columns(records: Sequence[Record]) -> dict[str, tuple[str, str]]:
    """What the table of epochs has to say."""
    stages = {record.stage for record in records}
    return {
        name: column
        for name, column in _COLUMNS.items()
        if (len(stages) > 1 if name == "stage" else any(getattr(record, name) is not None for record in records))
    }


def _cell(record: Record, name: str, form: str) -> str:
    value = getattr(record, name)
    return "" if value is None else form.format(value)


def _facts(material: Material) -> dict[str, str]:
    facts = {
        "dataset": material.name,
        "training images": f"{len(material.train):,} of {material.classes:,} identities",
        "training cameras": f"{len({crop.camid for crop in material.train.crops}):,}",
    }
    if material.held_out is not None:
        facts["held-out images"] = f"{len(material.held_out):,} of the training identities"
    if material.trial is not None:
        facts["queries, gallery"] = f"{len(material.trial.query):,}, {len(material.trial.gallery):,}"
    return facts


def _changed(settings: Settings) -> list[tuple[str, str, str]]:
    """Each setting that is not the default, its value and the default's."""
    usual = Settings().values()
    return [
        (name, _text(value), _text(usual.get(name, "–")))
        for name, value in settings.values().items()
        if name not in usual or value != usual[name]
    ]


def _origin(settings: Settings, metadata: Mapping[str, str]) -> dict[str, str]:
    packages = {name: version(name) for name in ("reidserve", "torch", "numpy", "pillow")}
    return {
        "seed": str(settings.seed),
        "device": settings.device,
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        **packages,
        **({"sha256 of the training data": metadata["fingerprint"]} if "fingerprint" in metadata else {}),
    }


def _text(value: Any) -> str:  # noqa: ANN401  # any value of a setting
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "none"
