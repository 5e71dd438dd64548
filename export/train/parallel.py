"""Several processes that learn as one, started by torchrun: each computes its share of every batch.

Every process holds the whole network and computes the loss of the whole batch on gathered scores and features, so that
losses which compare images, and the sum of all gradients, are those of a single process.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from reidserve.errors import DeviceError, ExportError, UsageError
from reidserve.export.train.settings import BatchSettings, Device

_LONGEST_WAIT = timedelta(hours=12)
"""The others wait while the leader reads, scores and writes."""
_SAID = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process, beside how many there are."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Team:
    """A process among those that learn together; the first leads: it alone writes, scores and speaks.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the first."""
        return self.rank == 0

    def check(self, batch: BatchSettings) -> None:
        """Refuse a batch that does not split into equal shares of whole identities.

        Raises:
            UsageError: it does not.
        """
        if batch.identities % self.size:
            raise UsageError(
                f"batch.identities must be a multiple of the {self.size} processes that share a batch, got "
                f"{batch.identities}"
            )

    def share(self, batch: int) -> slice:
        """The rows of a batch of so many that are this process's."""
        each = batch // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, (N, ...) to (N * size, ...); gradients flow back to the own ones."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        with _together():
            dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1 or not gradients:
            return
        total = torch.cat([gradient.flatten() for gradient in gradients])
        with _together():
            dist.all_reduce(total)
        parts = torch.split(total, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def align(self, network: nn.Module) -> None:
        """Give all processes the leader's weights and statistics."""
        if self.size > 1:
            with _together():
                for tensor in network.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def tell(self, value: _Value) -> _Value:
        """What the leader says, once it has come here."""
        if self.size == 1:
            return value
        said = [value]
        with _together():
            dist.broadcast_object_list(said, src=0)
        return said[0]


ALONE = Team()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ExportError("a process that learns with this one has ended: the cause is what it says") from error


@contextmanager
def join(device: Device) -> Iterator[Team]:
    """The team of a process: those that torchrun started, or itself alone.

    Raises:
        DeviceError: there is no GPU for this process.
        UsageError: what torchrun says in the environment is there in part.
    """
    said = os.environ.get("WORLD_SIZE", "1")
    if said == "1":
        yield ALONE
        return
    missing = [name for name in _SAID if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={said} in the environment says that processes learn together, but {', '.join(missing)} are "
            "not set: start with torchrun, or unset WORLD_SIZE"
        )
    if device == "cuda":
        number, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= found:
            raise DeviceError(f"each process needs a GPU of its own, torch finds {found}: start {found}, or use cpu")
        torch.cuda.set_device(number)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
