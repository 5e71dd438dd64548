"""Running a study: each variant and repeat once, whatever cuts it off meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from reidserve.errors import OutputExistsError
from reidserve.export.adapt import adapt, read_target
from reidserve.export.files import write_whole
from reidserve.export.study.figures import trained_figures, untrained_figures
from reidserve.export.study.material import forget, set_scene
from reidserve.export.study.plan import Run, plan_pretraining, plan_runs
from reidserve.export.study.results import Row, write_rows
from reidserve.export.study.sources import Sources
from reidserve.export.study.study import Study
from reidserve.export.train import Material, Record, RunFolder, claim_folder, read_material, train
from reidserve.export.train.parallel import ALONE
from reidserve.export.train.state import read_state

RESULT = "result.json"
"""What stands in a run's folder when nothing of it is left to do."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears how far a study is.

    Attributes:
        say: lines for people.
        on_epoch: each record.
        progress: batches that are done, and all of the run.
    """

    say: Callable[[str], None] = lambda line: None
    on_epoch: Callable[[Record], None] = lambda record: None
    progress: Callable[[int, int], None] = lambda done, total: None


class _Result(msgspec.Struct, frozen=True):
    digest: str
    rows: list[Row]


def run_study(
    study: Study,
    sources: Sources,
    out: Path,
    *,
    repeats: int,
    variants: Sequence[str] = (),
    changes: Sequence[str] = (),
    listener: Listener = Listener(),
) -> list[Row]:
    """Make the runs of a study that are not made yet, and write all their figures to `out`/results.csv.

    `changes` are made to every variant, but for what it changes itself. What was cut off goes on, what is finished
    stays.

    Raises:
        UsageError: there is no such variant, or a change is none.
        OutputExistsError: a finished run was made with other settings.
        ReidError: a run cannot be made; those before it stay.
    """
    runs = [
        run
        for repeat in range(1, repeats + 1)
        for run in plan_runs(study, sources, out, repeat=repeat, variants=variants, changes=changes)
    ]
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        for run in plan_pretraining(runs, sources, out):
            _pretrain(run, sources, listener)
        for run in runs:
            listener.say(f"{study.name}: {run.variant}, run {run.repeat} of {repeats}")
            rows += _finish(run, study, sources, changes, listener)
            write_whole(out / "results.csv", write_rows(rows).encode())
    finally:
        forget()
    return rows


def _pretrain(run: Run, sources: Sources, listener: Listener) -> None:
    assert sources.pretraining is not None, "weights that are given are not made"
    if not _is_trained(run):
        listener.say(f"pretraining a {run.variant} on {sources.pretraining}")
        run.path.mkdir(parents=True, exist_ok=True)
        material = read_material(sources.pretraining, run.settings, scratch=run.path.parent)
        _train(run, material, sources, listener)


def _finish(run: Run, study: Study, sources: Sources, changes: Sequence[str], listener: Listener) -> list[Row]:
    """The rows of a run: as they were written, or of what is left to do."""
    result, digest = run.path / RESULT, run.digest
    if result.exists():
        found = msgspec.json.decode(result.read_bytes(), type=_Result)
        if found.digest != digest:
            raise OutputExistsError(
                f"{run.path} holds a finished run of other settings or weights than are asked for now: choose another "
                "--out, or remove it"
            )
        return found.rows
    run.path.mkdir(parents=True, exist_ok=True)
    scene = set_scene(run, study, sources, run.path.parent)
    common = Row(
        study=study.name,
        scale=", ".join([sources.scale, *changes]),
        data=sources.names,
        network=f"{run.settings.network.arch} at {run.settings.input.height}x{run.settings.input.width}",
        start=run.start,
        variant=run.variant,
        repeat=run.repeat,
        seed=run.settings.seed,
        tested="other" if run.adaptation else "ordinary",
        epoch=0,
        epochs=run.settings.epochs,
        digest=digest,
    )
    if run.training is None:
        rows = untrained_figures(common, run, scene)
    else:
        rows = trained_figures(common, run, _train(run, scene.material, sources, listener), scene)
    write_whole(result, msgspec.json.encode(_Result(digest, rows)))
    return rows


def _train(run: Run, material: Material, sources: Sources, listener: Listener) -> RunFolder:
    """The folder of a run whose last epoch is done."""
    if _is_trained(run):
        return RunFolder(run.path, None, ALONE)
    say, on_epoch, progress = listener.say, listener.on_epoch, listener.progress
    with claim_folder(run.path, run.settings) as folder:
        if run.adaptation is None or sources.other is None:
            train(material, folder, run.settings, say=say, on_epoch=on_epoch, progress=progress)
        else:
            target = read_target(sources.other, run.settings, scratch=run.path)
            adapt(
                *(material, target, folder, run.settings, run.adaptation),
                say=say,
                on_epoch=on_epoch,
                progress=progress,
            )
        return folder


def _is_trained(run: Run) -> bool:
    state = RunFolder(run.path, None, ALONE).state
    if not state.exists():
        return False
    found = read_state(state)
    return found.epoch == run.settings.epochs and not run.settings.differences(found.settings)
