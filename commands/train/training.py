"""Training a network, and the statistics of what it would learn from."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.console import (
    DONE,
    FAILED,
    Force,
    Json,
    Pattern,
    print_facts,
    print_json,
    progress,
    warn_failures,
)
from reidserve.commands.train.live import line_of, watch
from reidserve.commands.train.options import Chosen
from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.export.train import Material, Outcome, Record, RunFolder, Settings


def train(
    *data: Path,
    out: Path = Path("run"),
    pattern: Pattern = None,
    chosen: Chosen = Chosen(),  # noqa: B008
    stats: Annotated[bool, Parameter(negative="")] = False,
    force: Force = False,
    json: Json = False,
) -> int:
    """Train a network by a recipe, and by what you change of it.

    OUT/model.safetensors is the best epoch by mAP, for reid-export --checkpoint; OUT/settings.toml is the recipe of
    this very run, OUT/run.html shows it, OUT/log.jsonl has a line an epoch. A run that was cut off goes on after its
    last whole epoch when it is started again, and comes to the same weights; --force starts over. An image that cannot
    be read is reported and left out; the exit code is then 1.

    Args:
        data: Datasets in the layout of Market-1501, DukeMTMC-reID, MSMT17, CUHK03-NP, VeRi-776 or VehicleID, train/,
            query/ and gallery/ with a folder per identity, a .csv with the columns path, pid, camid and split, or any
            folder with --pattern. Several are joined.
        out: The folder of the run.
        stats: Train nothing: print mean and standard deviation of the training images' pixels.
    """
    if not data:
        raise UsageError("name a dataset to learn from, or `recipes` to list the recipes")
    settings = chosen.settings()
    if stats:
        return _print_statistics(data, settings, pattern, json=json)
    return _train(data, settings, out, pattern, force=force, json=json)


def _train(
    data: tuple[Path, ...], settings: "Settings", out: Path, pattern: str | None, *, force: bool, json: bool
) -> int:
    from reidserve.export.train import check_start, claim_folder, read_material

    with claim_folder(out, settings, force=force) as folder:
        with progress("fetching") as advance:
            check_start(settings, folder, progress=advance)
        with progress("reading") as advance:
            material = read_material(data, settings, scratch=folder.path, pattern=pattern, progress=advance)
        if folder.team.leads:
            for note in material.notes:
                say(f"note: {note}")
        outcome = train_shown(material, folder, settings, tell=say)
        if folder.team.leads:
            print_outcome(outcome, material, settings, json=json)
    return FAILED if material.failures else DONE


def train_shown(
    material: "Material", folder: "RunFolder", settings: "Settings", *, tell: Callable[[str], None]
) -> "Outcome":
    """Train with all that shows a run: lines, what follows it on a terminal, and its page and pictures."""
    from reidserve.export.train import train as run_epochs
    from reidserve.export.train.report import RunReport
    from reidserve.export.train.statistics import resolve

    report = RunReport(folder, resolve(settings, material), material)

    def on_epoch(record: "Record") -> None:
        tell(line_of(record, settings))
        # The folder is a run's by then: what is cut off here goes on.
        if record.epoch:
            report.epoch()
        else:
            report.begin()

    with watch(settings) as watched:
        outcome = run_epochs(
            *(material, folder, settings),
            say=tell,
            on_epoch=on_epoch,
            on_step=watched.on_step,
            progress=watched.progress,
        )
    if folder.team.leads:
        with progress("drawing"):
            report.finish(outcome)
    return outcome


def print_outcome(outcome: "Outcome", material: "Material", settings: "Settings", *, json: bool) -> None:
    """Print what a run has come to."""
    best = outcome.best
    if json:
        print_json(
            {
                "model": str(outcome.model),
                "best": asdict(best),
                "classes": outcome.classes,
                "images": len(material.train),
                "resumed_after": outcome.resumed_after,
                "failures": material.failures,
            }
        )
        return
    warn_failures(material.failures)
    scores = {"Rank-1": best.rank1, "Rank-5": best.rank5, "Rank-10": best.rank10, "mAP": best.mAP}
    print_facts(
        {
            "wrote": outcome.model,
            "network": f"{settings.network.arch} at {settings.input.height}x{settings.input.width}",
            "learnt from": f"{len(material.train)} images of {outcome.classes} identities",
            "epoch": f"{best.epoch} of {settings.epochs}{' (best by mAP)' if settings.evaluation.every else ''}",
            **{name: f"{score:.4f}" for name, score in scores.items() if score is not None},
        }
    )


def _print_statistics(data: tuple[Path, ...], settings: "Settings", pattern: str | None, *, json: bool) -> int:
    from reidserve.export.train import read_material
    from reidserve.export.train.recipes import change
    from reidserve.export.train.statistics import pixel_statistics

    # Nothing is scored and no batch is drawn: the training images are enough.
    settings = change(settings, ["evaluation.every=0", "batch.identities=2"])
    with TemporaryDirectory() as scratch, progress("reading") as advance:
        material = read_material(data, settings, scratch=Path(scratch), pattern=pattern, progress=advance)
        mean, std = pixel_statistics(material.train.pixels)
    if json:
        print_json({"mean": mean, "std": std, "images": len(material.train), "failures": material.failures})
    else:
        warn_failures(material.failures)
        print_facts(
            {
                "images": len(material.train),
                "mean": ", ".join(f"{value:.4f}" for value in mean),
                "std": ", ".join(f"{value:.4f}" for value in std),
                "to use them": "--set input.statistics=dataset",
            }
        )
    return FAILED if material.failures else DONE


def say(line: str) -> None:
    """Print a line for people who watch."""
    print(line, file=sys.stderr, flush=True)
