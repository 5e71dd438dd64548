"""A run: epochs from the first, or from where it was cut off, to the last; what is best is kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from reidserve.errors import DeviceError, ExportError
from reidserve.export.checkpoints import load_pretrained, write_checkpoint
from reidserve.export.files import write_whole
from reidserve.export.model import build_network, check_stripes
from reidserve.export.train import initialise
from reidserve.export.train.description import describe
from reidserve.export.train.epoch import learn_epoch, prepare
from reidserve.export.train.folder import RunFolder, refuse_differences
from reidserve.export.train.learner import Learner, architecture_of, begin_afresh, make_learner, restore, tensors_of
from reidserve.export.train.material import Material
from reidserve.export.train.recipes import write_recipe
from reidserve.export.train.record import Record, best
from reidserve.export.train.settings import Settings
from reidserve.export.train.stages import count_frozen, place_of
from reidserve.export.train.state import Machine, State, read_state, read_tensors, write_state
from reidserve.export.train.statistics import resolve
from reidserve.export.train.validation import judge, validate


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has come to.

    Attributes:
        model: the best checkpoint by mAP, or where nothing was evaluated the last.
        best: the record of its epoch.
        classes: identities it was trained to tell apart.
        resumed_after: epochs that an earlier process had done.
    """

    model: Path
    best: Record
    classes: int
    resumed_after: int


def check_start(
    settings: Settings, folder: RunFolder, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Refuse, before images are read, what would be refused after.

    `progress` hears of the bytes of pretrained weights that are fetched.

    Raises:
        DeviceError: the device is not there.
        CheckpointError: the pretrained file is not what the architecture needs.
        ExportError: the network's parts do not divide its last map, which no export would compute.
        UsageError: a batch does not split among the processes that learn together.
    """
    folder.team.check(settings.batch)
    architecture = architecture_of(settings.network, classes=0)
    check_stripes(architecture, height=settings.input.height, width=settings.input.width)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("asked for cuda, torch finds none: give --device cpu, or install torch for CUDA")
    if settings.init.pretrained and folder.begun is None:
        network = build_network(architecture)
        load_pretrained(network, settings.init.pretrained, progress=progress)


def train(
    material: Material,
    folder: RunFolder,
    settings: Settings,
    *,
    say: Callable[[str], None] = lambda line: None,
    on_epoch: Callable[[Record], None] = lambda record: None,
    on_step: Callable[[float, float], None] = lambda loss, accuracy: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Train a network, from the start or from where the folder's run was cut off; a finished one is left as it is.

    `say` hears lines for people, `on_epoch` each epoch's record, `on_step` each batch's loss and accuracy, `progress`
    the batches of all epochs; of a team's processes only the leader speaks. On one CPU and number of threads the
    weights depend on the data and the settings alone, however often the run was cut off.

    Raises:
        ExportError: the loss is no finite number, or the folder cannot be written to; the last good state is kept.
        OutputExistsError: the run began on other data.
    """
    if not folder.team.leads:
        say, on_epoch, on_step, progress = (_listen_to_nobody,) * 4
    run = _Run(material, folder, settings, resolve(settings, material), say)
    with telling_way_on(folder, say):
        learner, records = run.begin() if folder.begun is None else run.go_on(folder.begun)
        resumed_after = len(records) - 1
        if not resumed_after:
            on_epoch(records[0])
        for epoch in range(len(records), settings.epochs + 1):
            record = learn_epoch(learner, material, epoch, before=records, progress=progress, on_step=on_step)
            records.append(run.score(learner, record))
            learner = run.keep(learner, records)
            on_epoch(records[-1])
    return Outcome(folder.model, best(records), material.classes, resumed_after)


@dataclass(frozen=True, slots=True)
class _Run:
    """What stays the same through a run; `asked` are the settings as given, `settings` those computed with."""

    material: Material
    folder: RunFolder
    asked: Settings
    settings: Settings
    say: Callable[[str], None]

    def begin(self) -> tuple[Learner, list[Record]]:
        """The network before training, and its record; nothing of an earlier run is left."""
        if self.folder.team.leads:
            self.folder.clear()
            write_whole(self.folder.settings, write_recipe(self.settings).encode())
        learner = make_learner(self.settings, self.material.classes, team=self.folder.team)
        prepare(learner, 1)
        for line in initialise.begin(learner.network, self.material, self.settings):
            self.say(line)
        self._say_stage(learner, 1)
        learner = begin_afresh(learner)
        records = [self.score(learner, Record(epoch=0))]
        self._write(learner, records)
        return learner, records

    def go_on(self, state: State) -> tuple[Learner, list[Record]]:
        """The learner of a run that is there, and its records."""
        if state.fingerprint != self.material.fingerprint:
            refuse_differences(
                self.folder.path, state, ["the training images or their pids are not those it began with"]
            )
        here = Machine.here(processes=self.folder.team.size)
        if state.machine != here and not state.finished:
            self.say(
                f"the run was cut off with {state.machine}, goes on with {here}: the weights will differ in their last "
                "digits from those of a run that was not cut off"
            )
        learner = make_learner(self.settings, self.material.classes, team=self.folder.team)
        restore(learner, read_tensors(self.folder.state))
        self.say(going_on(state))
        records = self.folder.rewind(state.epoch, Record) if self.folder.team.leads else []
        return learner, self.folder.team.tell(records)

    def score(self, learner: Learner, record: Record) -> Record:
        """The record with what the leader finds on held-out images, and where due on query and gallery."""
        return learner.team.tell(self._scored(learner, record) if learner.team.leads else record)

    def keep(self, learner: Learner, records: Sequence[Record]) -> Learner:
        """Write what an epoch came to; the learner that the next one begins with."""
        place = place_of(self.settings, records[-1].epoch)
        if learner.team.leads:
            metadata = describe(records[-1], self.settings, self.material)
            if best(records) is records[-1]:
                write_checkpoint(self.folder.model, learner.result, metadata)
            if place.is_last and len(self.settings.stages) > 1:
                write_checkpoint(self.folder.stage(place.number), learner.result, metadata)
        if place.is_last and place.number < len(self.settings.stages):
            learner = self._enter(learner, place.number + 1)
        self._write(learner, records)
        return learner

    def _write(self, learner: Learner, records: Sequence[Record]) -> None:
        if learner.team.leads:
            self.folder.append(records[-1])
            machine = Machine.here(processes=learner.team.size)
            state = State(records[-1].epoch, self.material.fingerprint, self.asked, machine)
            write_state(self.folder.state, state, tensors_of(learner))

    def _enter(self, learner: Learner, number: int) -> Learner:
        """The learner at the start of a later stage, once the weights it starts from are written."""
        start = self.settings.stages[number - 1].start
        path = self.folder.model if start == "best" else self.folder.stage(number - 1 if start == "previous" else start)
        learner.team.tell(None)
        learner.network.load_state_dict(load_file(path))
        self.say(f"starting from {path.name}")
        self._say_stage(learner, number)
        return begin_afresh(learner)

    def _say_stage(self, learner: Learner, number: int) -> None:
        stage = self.settings.stages[number - 1]
        frozen, total = count_frozen(learner.network, stage.learns)
        self.say(
            f"stage {number} of {len(self.settings.stages)}, {stage.epochs} epochs: {' '.join(stage.learns)} learns; "
            f"frozen / total parameters: {frozen:,} / {total:,}"
        )

    def _scored(self, learner: Learner, record: Record) -> Record:
        material, settings, network = self.material, self.settings, learner.result
        feed = {"mean": settings.input.mean, "std": settings.input.std}
        if material.held_out is not None and material.held_out_labels is not None:
            verdict = judge(network, material.held_out.pixels, material.held_out_labels, **feed)
            record = replace(record, val_loss=verdict.loss, val_accuracy=verdict.accuracy)
        every = settings.evaluation.every
        due = every and (record.epoch % every == 0 or place_of(settings, record.epoch).is_last)
        if material.trial is not None and due:
            metrics = validate(network, material.trial, **feed)
            record = replace(
                record, rank1=metrics.rank1, rank5=metrics.rank(5), rank10=metrics.rank(10), mAP=metrics.mAP
            )
        return record


def going_on(state: State) -> str:
    """Where a run goes on, in words."""
    if state.finished:
        return f"all {state.epoch} epochs are done (--force starts over)"
    return f"going on after epoch {state.epoch}"


@contextmanager
def telling_way_on(folder: RunFolder, say: Callable[[str], None]) -> Iterator[None]:
    """Say what to do where an interrupt, or a folder that cannot be written to, ends the block.

    Raises:
        ExportError: the folder cannot be written to.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped: {_way_on(folder)}")
        raise
    except OSError as error:
        raise ExportError(f"{folder.path} cannot be written to ({error.strerror}): {_way_on(folder)}") from error


def _way_on(folder: RunFolder) -> str:
    if not folder.state.exists():
        return "no epoch is kept yet, and the same command starts over"
    return f"the state after epoch {read_state(folder.state).epoch} is kept, and the same command goes on from it"


def _listen_to_nobody(*_: object) -> None:
    pass
