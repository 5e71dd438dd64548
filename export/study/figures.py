"""The figures of a run: what its log has of each epoch, and what its checkpoint comes to on each test."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reidserve.export.checkpoints import read_checkpoint
from reidserve.export.model import Network
from reidserve.export.study.material import Scene
from reidserve.export.study.plan import Run
from reidserve.export.study.results import Row
from reidserve.export.study.study import Tested
from reidserve.export.train import Record, RunFolder
from reidserve.export.train.learner import make_learner
from reidserve.export.train.material import Trial
from reidserve.export.train.stages import count_frozen, place_of
from reidserve.export.train.validation import judge, validate

_LOGGED = ("loss", "accuracy", "val_loss", "val_accuracy", "rank1", "rank5", "rank10", "mAP", "lr")
_Statistics = Mapping[str, tuple[float, float, float]]


def untrained_figures(common: Row, run: Run, scene: Scene) -> list[Row]:
    """The rows of a network as it is drawn."""
    network = make_learner(run.settings, scene.material.classes).network
    statistics = {"mean": run.settings.input.mean, "std": run.settings.input.std}
    row = replace(common, parameters=count_frozen(network, ("all",))[1])
    held_out, labels = scene.material.held_out, scene.material.held_out_labels
    if held_out is not None and labels is not None:
        verdict = judge(network, held_out.pixels, labels, **statistics)
        row = replace(row, val_loss=verdict.loss, val_accuracy=verdict.accuracy)
    row = _classified(row, network, scene, statistics)
    tests = _ranked(row, network, scene.trials, statistics)
    return tests if tests else [row]


def trained_figures(common: Row, run: Run, folder: RunFolder, scene: Scene) -> list[Row]:
    """A row for each epoch in the log of a run that is through, and one for each test beside its own."""
    checkpoint = read_checkpoint(folder.model)
    assert checkpoint.feeding is not None, "our own checkpoints say how they are fed"
    network = checkpoint.network.to(run.settings.device)
    statistics = {"mean": checkpoint.feeding.mean, "std": checkpoint.feeding.std}
    rows, seconds = [], 0.0
    for record in folder.records():
        seconds += _seconds(record, run)
        rows.append(replace(_logged(common, record, run, network), seconds=seconds))
    last = _classified(rows[-1], network, scene, statistics)
    others = {tested: trial for tested, trial in scene.trials.items() if tested != common.tested}
    return [*rows[:-1], last, *_ranked(last, network, others, statistics)]


def _logged(common: Row, record: Record, run: Run, network: Network) -> Row:
    learns = place_of(run.settings, record.epoch).stage.learns if record.epoch else ("all",)
    frozen, parameters = count_frozen(network, learns)
    return replace(
        common,
        epoch=record.epoch,
        stage=record.stage if record.epoch else None,
        frozen=frozen,
        parameters=parameters,
        **{name: getattr(record, name) for name in _LOGGED},
    )


def _classified(row: Row, network: Network, scene: Scene, statistics: _Statistics) -> Row:
    if scene.test is None:
        return row
    pictures, labels = scene.test
    return replace(row, test_accuracy=judge(network, pictures.pixels, labels, **statistics).accuracy)


def _ranked(row: Row, network: Network, trials: Mapping[Tested, Trial], statistics: _Statistics) -> list[Row]:
    """A row for each trial; what has nothing to do with it stands in the row of the log alone."""
    plain: dict[str, Any] = {} if not row.epoch else dict.fromkeys((*_LOGGED, "test_accuracy"))
    rows = []
    for tested, trial in trials.items():
        found = validate(network, trial, **statistics)
        ranks = {"rank1": found.rank1, "rank5": found.rank(5), "rank10": found.rank(10), "mAP": found.mAP}
        rows.append(replace(row, tested=tested, **{**plain, **ranks}))
    return rows


def _seconds(record: Record, run: Run) -> float:
    if not record.images_per_second:
        return 0.0
    # A step of an adaptation has a batch of the target beside the source's.
    batches = 2 if run.adaptation is not None and run.adaptation.mode != "target" else 1
    return len(record.step_losses) * batches * run.settings.batch.size / record.images_per_second
