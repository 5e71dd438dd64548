"""The folder of a run: who may write to it, and what lies where."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from reidserve.errors import ExportError, OutputExistsError
from reidserve.export.train.record import Record
from reidserve.export.train.settings import Settings
from reidserve.export.train.state import State, read_state


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that this process alone writes to.

    Attributes:
        path: the folder.
        unfinished: the state of a run that was cut off and is to go on; None for a new one.
    """

    path: Path
    unfinished: State | None

    @property
    def state(self) -> Path:
        """What a run goes on from."""
        return self.path / "last.safetensors"

    @property
    def model(self) -> Path:
        """The best checkpoint."""
        return self.path / "model.safetensors"

    @property
    def log(self) -> Path:
        """A JSON object for each epoch."""
        return self.path / "log.jsonl"

    def records(self) -> list[Record]:
        """What the log holds; a line that was cut off, and what follows, is not in it."""
        records = []
        if self.log.exists():
            for line in self.log.read_bytes().splitlines():
                try:
                    records.append(msgspec.json.decode(line, type=Record))
                except msgspec.DecodeError:
                    break
        return records

    def rewind(self, epoch: int) -> None:
        """Forget what was logged after an epoch."""
        kept = [record for record in self.records() if record.epoch <= epoch]
        partial = self.log.with_name(f".{self.log.name}.partial")
        partial.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in kept))
        partial.replace(self.log)

    def append(self, record: Record) -> None:
        """Log an epoch."""
        with self.log.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")


@contextmanager
def claim_folder(out: Path, settings: Settings, *, force: bool = False) -> Iterator[RunFolder]:
    """Hold the folder of a run: a new one, one that was cut off, or with `force` any, which then starts over.

    Raises:
        OutputExistsError: a finished run, one of other settings, or something else is there.
        ExportError: another process is training there, or the state is damaged.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is there already and is no folder: choose another --out")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        _lock(handle, out)
        try:
            folder = RunFolder(out, _unfinished(out, settings, force=force))
            for own in (folder.state, folder.model, folder.log):
                for cut_off in out.glob(f".{own.name}.*partial"):
                    cut_off.unlink()
            yield folder
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


def _unfinished(out: Path, settings: Settings, *, force: bool) -> State | None:
    path = RunFolder(out, None).state
    if not path.exists():
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise OutputExistsError(f"{out} is there already and holds no run: choose another --out")
        return None
    if force:
        return None
    state = read_state(path)
    if state.epoch >= state.settings.epochs:
        raise OutputExistsError(
            f"{out} holds a finished run of {state.epoch} epochs: choose another --out, or start over with --force"
        )
    refuse_differences(out, state, settings.differences(state.settings))
    return state


def refuse_differences(out: Path, state: State, differences: Sequence[str]) -> None:
    """Refuse to go on with a run that began otherwise.

    Raises:
        OutputExistsError: there is a difference; all are named.
    """
    if differences:
        raise OutputExistsError(
            f"{out} holds a run that was cut off after epoch {state.epoch} and differs: {'; '.join(differences)}; give "
            "what it began with to go on, choose another --out, or start over with --force"
        )
