"""An adaptation: epochs from the first, or from where it was cut off, to the last, whose network is the result."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from reidserve.errors import UsageError
from reidserve.export.adapt.epoch import Adaptation, learn_epoch
from reidserve.export.adapt.record import AdaptRecord
from reidserve.export.adapt.settings import AdaptSettings, check_settings
from reidserve.export.adapt.target import Target
from reidserve.export.checkpoints import write_checkpoint
from reidserve.export.files import write_whole
from reidserve.export.train import Material, Outcome, RunFolder, Settings
from reidserve.export.train.description import describe
from reidserve.export.train.epoch import prepare
from reidserve.export.train.folder import refuse_differences
from reidserve.export.train.initialise import begin
from reidserve.export.train.learner import make_learner, restore, tensors_of
from reidserve.export.train.recipes import write_recipe
from reidserve.export.train.run import going_on, telling_way_on
from reidserve.export.train.state import Machine, State, read_tensors, write_state
from reidserve.export.train.statistics import resolve
from reidserve.export.train.validation import validate

HOW = "adaptation.json"
"""What an adaptation's own settings lie in, beside those of its training."""


def check_adaptation(settings: Settings, folder: RunFolder) -> None:
    """Refuse, before images are read or a source is learnt, what an adaptation cannot follow.

    Raises:
        UsageError: settings that mean nothing where classes change, or several processes.
    """
    check_settings(settings)
    if folder.team.size > 1:
        raise UsageError(f"an adaptation is computed by one process, torchrun started {folder.team.size}")


def adapt(
    source: Material,
    target: Target,
    folder: RunFolder,
    settings: Settings,
    how: AdaptSettings,
    *,
    say: Callable[[str], None] = lambda line: None,
    on_epoch: Callable[[AdaptRecord], None] = lambda record: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Adapt a checkpoint trained on the source, `settings.init.pretrained`, to a target without labels.

    `how.training(settings, start=...)` makes the settings from those that the source was learnt with. The outcome is
    the last epoch's network, never one chosen by the target's labels, which nothing but the reported scores reads.
    `say` hears lines for people, `on_epoch` each epoch's record, `progress` the steps. On one CPU and number of
    threads the weights depend on pixels, source labels and settings alone, however often the run was cut off.

    Raises:
        UsageError: settings that an adaptation cannot follow.
        CheckpointError: the checkpoint is not what the architecture needs.
        ExportError: the target falls into fewer than two clusters, or the loss is no finite number; the last good
            state is kept.
        OutputExistsError: the run began on other data or with other settings.
    """
    check_adaptation(settings, folder)
    learner = make_learner(resolve(settings, source), source.classes)
    fingerprint = hashlib.sha256(f"{source.fingerprint} {target.fingerprint}".encode()).hexdigest()
    run = _Run(Adaptation(learner, source, target, how), fingerprint, folder, settings)
    with telling_way_on(folder, say):
        record = run.begin(say) if folder.begun is None else run.go_on(folder.begun, say)
        resumed_after = record.epoch
        if folder.begun is None:
            on_epoch(record)
        for epoch in range(record.epoch + 1, settings.epochs + 1):
            record = run.keep(learn_epoch(run.adaptation, epoch, progress=progress))
            on_epoch(record)
    return Outcome(folder.model, record, source.classes, resumed_after)


@dataclass(frozen=True, slots=True)
class _Run:
    """What stays the same through an adaptation; `asked` are the settings of its training as given."""

    adaptation: Adaptation
    fingerprint: str
    folder: RunFolder
    asked: Settings

    @property
    def how_path(self) -> Path:
        return self.folder.path / HOW

    def begin(self, say: Callable[[str], None]) -> AdaptRecord:
        """The record of the network as the source left it; nothing of an earlier run is left."""
        learner = self.adaptation.learner
        self.folder.clear()
        write_whole(self.folder.settings, write_recipe(learner.settings).encode())
        write_whole(self.how_path, msgspec.json.format(msgspec.json.encode(self.adaptation.how)) + b"\n")
        prepare(learner, 1)
        for line in begin(learner.network, self.adaptation.source, learner.settings):
            say(line)
        record = self._scored(AdaptRecord(epoch=0))
        self._write(record)
        return record

    def go_on(self, state: State, say: Callable[[str], None]) -> AdaptRecord:
        """The last record of a run that is there, its network restored."""
        differences = self.adaptation.how.differences(
            msgspec.json.decode(self.how_path.read_bytes(), type=AdaptSettings)
        )
        if state.fingerprint != self.fingerprint:
            differences.append("the images of source or target, or the source's pids, are not those it began with")
        refuse_differences(self.folder.path, state, differences)
        here = Machine.here(processes=1)
        if state.machine != here and not state.finished:
            say(
                f"the run was cut off with {state.machine}, goes on with {here}: the weights will differ in their last "
                "digits from those of a run that was not cut off"
            )
        restore(self.adaptation.learner, read_tensors(self.folder.state))
        say(going_on(state))
        return self.folder.rewind(state.epoch, AdaptRecord)[-1]

    def keep(self, record: AdaptRecord) -> AdaptRecord:
        """Score and write what an epoch came to."""
        record = self._scored(record)
        write_checkpoint(self.folder.model, self.adaptation.learner.network, self._describe(record))
        self._write(record)
        return record

    def _write(self, record: AdaptRecord) -> None:
        self.folder.append(record)
        state = State(record.epoch, self.fingerprint, self.asked, Machine.here(processes=1))
        write_state(self.folder.state, state, tensors_of(self.adaptation.learner))

    def _scored(self, record: AdaptRecord) -> AdaptRecord:
        """The record with the target's ranks, where its epoch is one that is scored."""
        learner, trial = self.adaptation.learner, self.adaptation.target.trial
        every = learner.settings.evaluation.every
        if trial is None or not every or (record.epoch % every and record.epoch < learner.settings.epochs):
            return record
        feed = learner.settings.input
        metrics = validate(learner.network, trial, mean=feed.mean, std=feed.std)
        return replace(record, rank1=metrics.rank1, rank5=metrics.rank(5), rank10=metrics.rank(10), mAP=metrics.mAP)

    def _describe(self, record: AdaptRecord) -> dict[str, str]:
        target = self.adaptation.target
        adapted = {"target": target.name, "target_images": len(target.pictures)}
        adapted |= {f"adapt.{name}": value for name, value in asdict(self.adaptation.how).items()}
        known = describe(record, self.adaptation.learner.settings, self.adaptation.source)
        return {**known, **{name: str(value) for name, value in adapted.items()}}
