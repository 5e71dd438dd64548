"""A run as a terminal shows it: how far it is, how it learns, how fast, and how long it will take."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from reidserve.export.train import Record, Settings

_RECENT = 20
"""Batches that loss, accuracy and speed are means of."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a run stands after a batch.

    Attributes:
        epoch: counted from 1, through all stages.
        stage: counted from 1.
        batch: of the epoch, counted from 1.
        batches: in an epoch.
        loss: the mean of the last few batches.
        accuracy: likewise, from 0 to 1.
        images_per_second: likewise, of this epoch; None at its first batch.
        seconds_left: of the whole run, if what is left is as slow as what is done, evaluations included.
    """

    epoch: int
    stage: int
    batch: int
    batches: int
    loss: float
    accuracy: float
    images_per_second: float | None
    seconds_left: float


class Meter:
    """Takes what a run tells of each batch, its loss and accuracy and then how many are done, for readings."""

    def __init__(self, settings: "Settings", *, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._begun = clock()
        self._before: int | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self._times: deque[float] = deque(maxlen=_RECENT)

    def step(self, loss: float, accuracy: float) -> None:
        """Hear of a batch."""
        self._recent.append((loss, accuracy))

    def read(self, done: int, total: int) -> Reading:
        """How the run stands when `done` of `total` batches are done, of which the last one was heard of."""
        now = self._clock()
        if self._before is None:
            self._before = done - 1
        batches = total // self._settings.epochs
        epoch, batch = (done - 1) // batches + 1, (done - 1) % batches + 1
        if batch == 1:
            self._times.clear()
        self._times.append(now)
        passed = now - self._times[0]
        loss, accuracy = (sum(values) / len(self._recent) for values in zip(*self._recent, strict=True))
        return Reading(
            epoch=epoch,
            stage=self._stage_of(epoch),
            batch=batch,
            batches=batches,
            loss=loss,
            accuracy=accuracy,
            images_per_second=(len(self._times) - 1) * self._settings.batch.size / passed if passed > 0 else None,
            seconds_left=(now - self._begun) / (done - self._before) * (total - done),
        )

    def _stage_of(self, epoch: int) -> int:
        ends = accumulate(stage.epochs for stage in self._settings.stages)
        return next(number for number, end in enumerate(ends, start=1) if epoch <= end)


class _TwoLines(Progress):
    """A bar, and numbers below it: side by side they are wider than a terminal of 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["numbers"], no_wrap=True) for task in self.tasks)


class Watch:
    """What follows a run on a terminal; without one, nothing."""

    def __init__(self, bar: Progress, task: TaskID, settings: "Settings") -> None:
        self._bar, self._task, self._settings = bar, task, settings
        self._meter = Meter(settings)

    def on_step(self, loss: float, accuracy: float) -> None:
        """Hear of a batch."""
        self._meter.step(loss, accuracy)

    def progress(self, done: int, total: int) -> None:
        """Show how the run stands when so many of all batches are done."""
        reading = self._meter.read(done, total)
        self._bar.update(
            self._task,
            description=place_of(reading, self._settings),
            completed=reading.batch,
            total=reading.batches,
            numbers=numbers_of(reading),
        )


@contextmanager
def watch(settings: "Settings", *, console: Console | None = None) -> Iterator[Watch]:
    """Two lines on standard error that follow a run, only where a person watches; what is printed stands above."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn())
    with _TwoLines(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Watch(bar, bar.add_task("training", total=None, numbers=""), settings)


def place_of(reading: Reading, settings: "Settings") -> str:
    """Where a run stands, in words."""
    stage = f", stage {reading.stage}/{len(settings.stages)}" if len(settings.stages) > 1 else ""
    return f"epoch {reading.epoch}/{settings.epochs}{stage}, batch {reading.batch}/{reading.batches}"


def numbers_of(reading: Reading) -> str:
    """How it goes, in numbers."""
    speed = "–" if reading.images_per_second is None else f"{reading.images_per_second:.0f}"
    left = timedelta(seconds=round(reading.seconds_left))
    return f"loss {reading.loss:.3f}  accuracy {100 * reading.accuracy:.0f} %  {speed} images/s  {left} left"


def line_of(record: "Record", settings: "Settings") -> str:
    """An epoch's record as a line."""
    parts = [f"epoch {record.epoch:>{len(str(settings.epochs))}}/{settings.epochs}"]
    if record.epoch == 0:
        parts.append("before training")
    elif len(settings.stages) > 1:
        parts.append(f"stage {record.stage}")
    for name, value, form in (
        ("loss", record.loss, ".3f"),
        ("accuracy", record.accuracy, ".3f"),
        ("held-out loss", record.val_loss, ".3f"),
        ("held-out accuracy", record.val_accuracy, ".3f"),
        ("images/s", record.images_per_second, ".0f"),
        ("lr", record.lr, ".2e"),
        ("Rank-1", record.rank1, ".4f"),
        ("mAP", record.mAP, ".4f"),
    ):
        if value is not None:
            parts.append(f"{name} {value:{form}}")
    return "  ".join(parts)
