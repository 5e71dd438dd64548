"""The state of a run between two epochs, whole or not there: tensors, settings, and how far it has come."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reidserve.errors import ExportError, UsageError
from reidserve.export.files import write_whole
from reidserve.export.train.settings import Settings

FORMAT = "reidserve.train 2"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the last digits of a sum depend on.

    Attributes:
        threads: of the processor.
        processes: that learn together.
        torch: its version.
    """

    threads: int
    processes: int
    torch: str

    @classmethod
    def here(cls, *, processes: int) -> "Machine":
        """That of this process."""
        return cls(torch.get_num_threads(), processes, str(torch.__version__))

    def __str__(self) -> str:
        return f"{self.processes} processes of {self.threads} threads and torch {self.torch}"


@dataclass(frozen=True, slots=True)
class State:
    """What a run has come to.

    Attributes:
        epoch: epochs that are done.
        fingerprint: the sha256 of the training set.
        settings: what it began with.
        machine: what it was computed with.
    """

    epoch: int
    fingerprint: str
    settings: Settings
    machine: Machine

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.settings.epochs


def write_state(path: Path, state: State, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and state, so that there is the old file or the new one, whatever ends the process."""
    # safetensors knows one memory format.
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Written here: the library's own writer leaves a file of a name nobody knows when it is cut off.
    write_whole(path, save(contiguous, {"format": FORMAT, "state": msgspec.json.encode(state).decode()}))


def read_state(path: Path) -> State:
    """The state alone, quickly.

    Raises:
        ExportError: it is damaged, or of another format.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ExportError(f"{path} is no state of a run of this version ({FORMAT}): start over with --force")
        try:
            return msgspec.json.decode(metadata["state"], type=State)
        except (msgspec.DecodeError, UsageError) as error:
            raise ExportError(f"{path} does not read: {error}; start over with --force") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state, by name.

    Raises:
        ExportError: it is damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping


def _opened(path: Path) -> Any:  # noqa: ANN401  # safetensors has no types
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} cannot be read ({error}): start over with --force") from error
