"""The state of a run between two epochs, whole or not there: weights, the optimiser's moments, settings, the best."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from reidserve.errors import ExportError, UsageError
from reidserve.export.checkpoints.files import write_whole
from reidserve.export.model import Network
from reidserve.export.train.record import Record
from reidserve.export.train.settings import Settings

FORMAT = "reidserve.train 1"

_NETWORK, _OPTIMISER = "network/", "optimiser/"


@dataclass(frozen=True, slots=True)
class State:
    """What a run has come to.

    Attributes:
        epoch: epochs that are done.
        best: the record of the epoch whose checkpoint is kept; None where none was evaluated.
        fingerprint: the sha256 of the training set.
        settings: what it began with.
        threads: processor threads it was computed with: another number rounds sums in another order.
    """

    epoch: int
    best: Record | None
    fingerprint: str
    settings: Settings
    threads: int


def write_state(path: Path, state: State, network: Network, optimiser: Optimizer) -> None:
    """Write weights, moments and state, so that there is the old file or the new one, whatever ends the process."""
    tensors = {_NETWORK + name: tensor for name, tensor in network.state_dict().items()}
    tensors |= {_OPTIMISER + name: tensor for name, tensor in _moments(network, optimiser)}
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


def restore(path: Path, network: Network, optimiser: Optimizer) -> None:
    """Put weights and moments back, bit by bit.

    Raises:
        ExportError: it is damaged.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    network.load_state_dict(
        {name.removeprefix(_NETWORK): tensor for name, tensor in tensors.items() if name.startswith(_NETWORK)}
    )
    for name, parameter in network.named_parameters():
        prefix = f"{_OPTIMISER}{name}/"
        kept = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if kept:
            optimiser.state[parameter] = {key: _like(tensor, parameter) for key, tensor in kept.items()}


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    # In the memory format of its parameter: another one would be summed in another order.
    return tensor.clone() if tensor.ndim == 0 else torch.empty_like(parameter).copy_(tensor)


def _moments(network: Network, optimiser: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in network.named_parameters():
        for key, tensor in optimiser.state.get(parameter, {}).items():
            yield f"{name}/{key}", tensor


def _opened(path: Path) -> Any:  # noqa: ANN401  # safetensors has no types
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} cannot be read ({error}): start over with --force") from error
