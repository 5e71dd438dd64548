"""The folder of a run: who may write to it, and what lies where."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from reidserve.errors import ExportError, OutputExistsError
from reidserve.export.files import write_whole
from reidserve.export.train.parallel import Team, join
from reidserve.export.train.record import Record
from reidserve.export.train.settings import Settings
from reidserve.export.train.state import State, read_state

SETTINGS, STATE = "settings.toml", "last.safetensors"

_Record = TypeVar("_Record", bound=Record)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that this process alone writes to, or the leader of its team does.

    Attributes:
        path: the folder.
        begun: the state of a run that is there and goes on, if only to be shown; None for a new one.
        team: the processes that learn together.
    """

    path: Path
    begun: State | None
    team: Team

    @property
    def settings(self) -> Path:
        """The settings that the run was computed with, as a recipe."""
        return self.path / SETTINGS

    @property
    def state(self) -> Path:
        """What a run goes on from."""
        return self.path / STATE

    @property
    def model(self) -> Path:
        """The best checkpoint."""
        return self.path / "model.safetensors"

    @property
    def log(self) -> Path:
        """A JSON object for each epoch."""
        return self.path / "log.jsonl"

    def stage(self, number: int) -> Path:
        """The checkpoint that a stage, counted from 1, ended with."""
        return self.path / f"stage-{number}.safetensors"

    def records(self) -> list[Record]:
        """What the log holds; a line that was cut off, and what follows, is not in it."""
        return [record for record, _ in self._lines(Record)]

    def rewind(self, epoch: int, kind: type[_Record]) -> list[_Record]:
        """Forget what was logged after an epoch; returns what was logged up to it, in records of a kind.

        Raises:
            ExportError: some of that is not there.
        """
        kept = [(record, line) for record, line in self._lines(kind) if record.epoch <= epoch]
        if [record.epoch for record, _ in kept] != [*range(epoch + 1)]:
            raise ExportError(
                f"{self.log} lacks epochs that {self.state.name} has done, 0 to {epoch}: start over with --force"
            )
        write_whole(self.log, b"".join(line + b"\n" for _, line in kept))
        return [record for record, _ in kept]

    def _lines(self, kind: type[_Record]) -> list[tuple[_Record, bytes]]:
        # A line may hold more than a record of this kind.
        lines = []
        if self.log.exists():
            for line in self.log.read_bytes().splitlines():
                try:
                    lines.append((msgspec.json.decode(line, type=kind), line))
                except msgspec.DecodeError:
                    break
        return lines

    def append(self, record: Record) -> None:
        """Log an epoch, durably."""
        with self.log.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Remove what an earlier run left; its state goes last."""
        for path in (self.log, self.model, *self.path.glob("stage-*.safetensors"), self.state):
            path.unlink(missing_ok=True)


@contextmanager
def claim_folder(out: Path, settings: Settings, *, force: bool = False) -> Iterator[RunFolder]:
    """Hold the folder of a run: a new one, one that these settings began, or with `force` any, which then starts over.

    Of processes that torchrun started the leader holds it, for all; they are a team as long as it is held.

    Raises:
        OutputExistsError: a run of other settings, or something else is there.
        ExportError: another process is training there, or the state is damaged.
    """
    with join(settings.device) as team:
        if team.leads:
            with _held(out, settings, force=force) as begun:
                yield RunFolder(out, team.tell(begun), team)
        else:
            yield RunFolder(out, team.tell(None), team)


@contextmanager
def _held(out: Path, settings: Settings, *, force: bool) -> Iterator[State | None]:
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is there already and is no folder: choose another --out")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        _lock(handle, out)
        try:
            begun = _begun(out, settings, force=force)
            for cut_off in out.glob(".*.partial*"):
                cut_off.unlink()
            yield begun
        finally:
            for folder_made in made:  # what was made for nothing goes again
                with suppress(OSError):
                    folder_made.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ExportError(f"another process is training in {out}") from error


def _begun(out: Path, settings: Settings, *, force: bool) -> State | None:
    path = out / STATE
    if not path.exists():
        # The settings are written first: a run that was cut off before its first state has left them.
        if not (out / SETTINGS).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise OutputExistsError(f"{out} is there already and holds no run: choose another --out")
        return None
    if force:
        return None
    state = read_state(path)
    refuse_differences(out, state, settings.differences(state.settings))
    return state


def refuse_differences(out: Path, state: State, differences: Sequence[str]) -> None:
    """Refuse to go on with a run that began otherwise.

    Raises:
        OutputExistsError: there is a difference; all are named.
    """
    if differences:
        held, way = f"run that was cut off after epoch {state.epoch}", "give what it began with to go on, "
        if state.finished:
            held, way = f"finished run of {state.epoch} epochs", ""
        raise OutputExistsError(
            f"{out} holds a {held} and differs: {'; '.join(differences)}; {way}choose another --out, or start over "
            "with --force"
        )
