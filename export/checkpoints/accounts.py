"""The accounts: every tensor of a file is used, known dead, or named in a refusal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reidserve.errors import CheckpointError
from reidserve.export.checkpoints.dialects import classifier_names, expected_shapes, why_dead
from reidserve.export.checkpoints.files import Contents, name_some
from reidserve.export.checkpoints.own import OWN
from reidserve.export.checkpoints.projects import Dialect
from reidserve.export.model.architecture import Architecture

_COUNTER = "num_batches_tracked"
_EXACT_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Accounts:
    """A file's tensors, each in its place.

    Attributes:
        state: the whole network's tensors by our names, float32 but for the counters; without a classifier if the
            file has none.
        dead: tensors of the file that the feature does not read, by the file's names, with the reason.
        absent: tensors that the file lacks without harm, by the dialect's names, with the reason.
    """

    state: Mapping[str, Tensor]
    dead: Mapping[str, str]
    absent: Mapping[str, str]


def account(contents: Contents, dialect: Dialect, architecture: Architecture) -> Accounts:
    """Put every tensor of a file in its place in a network of this architecture.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape or type, or not finite; all are named.
    """
    shapes = expected_shapes(architecture)
    foreign = {dialect.foreign(name): name for name in shapes}
    there = contents.tensors.keys()
    dead = {name: why for name in there - foreign.keys() if (why := why_dead(name, dialect, architecture)) is not None}
    absent = _absent(contents, dialect, architecture)
    expected = {name: _foreign_shape(dialect, own, shapes[own]) for name, own in foreign.items()}
    wrong = {
        "missing": [name for name in foreign if name not in there and name not in absent],
        "left over": [name for name in contents.tensors if name not in foreign and name not in dead],
        "of another shape": [
            f"{name} (expected {_shape(shape)}, got {_shape(contents.tensors[name].shape)})"
            for name, shape in expected.items()
            if name in there and contents.tensors[name].shape != shape
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{what}: {name_some(names)}" for what, names in wrong.items() if names)
        raise CheckpointError(f"{contents.path} is no {architecture.name} of {dialect.name}: {found}")
    state = {own: _take(contents, name, own).view(shapes[own]) for name, own in foreign.items() if name in there}
    state |= {own: _start(own, shapes[own]) for name, own in foreign.items() if name in absent and own not in state}
    dead = {name: dead[name] for name in contents.tensors if name in dead}
    dead |= {name: _COUNTED for name in contents.tensors if name.endswith(_COUNTER)}
    dead |= {name: _CLASSIFIES for name, own in foreign.items() if own.startswith("classifier.")}
    return Accounts(state, dead, absent)


_COUNTED = "counts training batches, which the feature does not read"
_CLASSIFIES = "tells training identities apart, which the feature does not read"


def _absent(contents: Contents, dialect: Dialect, architecture: Architecture) -> dict[str, str]:
    names = expected_shapes(architecture)
    absent = {dialect.foreign(name): _COUNTED for name in names if name.endswith(_COUNTER)}
    if not architecture.classes:
        absent |= {dialect.foreign(name): _CLASSIFIES for name in classifier_names(dialect, architecture)}
    if architecture.pooling == "gem" and dialect.name != OWN:
        absent[dialect.foreign("pooling.p")] = "GeM's exponent, then fixed at the usual 3"
    if dialect.conv_embedding:
        absent[dialect.foreign("embedding.bias")] = "the embedding layer of this project has none"
    return {name: reason for name, reason in absent.items() if name not in contents.tensors}


def _foreign_shape(dialect: Dialect, own: str, shape: torch.Size) -> torch.Size:
    return torch.Size([*shape, 1, 1]) if dialect.conv_embedding and own == "embedding.weight" else shape


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _start(own: str, shape: torch.Size) -> Tensor:
    """What the network holds where the file has nothing: no steps counted, no bias, the usual exponent."""
    if own.endswith(_COUNTER):
        return torch.zeros((), dtype=torch.int64)
    return torch.full(shape, 3.0 if own == "pooling.p" else 0.0)


def _take(contents: Contents, name: str, own: str) -> Tensor:
    """A tensor as the network holds it, checked.

    Raises:
        CheckpointError: it is of another type, or its values cannot be a network's.
    """
    tensor = contents.tensors[name]
    if own.endswith(_COUNTER):
        return tensor.to(torch.int64, copy=True)
    if tensor.dtype not in _EXACT_IN_FLOAT32:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{contents.path}: {name} is {kind}, float32, float16 or bfloat16 was expected")
    values = tensor.to(torch.float32, copy=True).contiguous()
    if not bool(values.isfinite().all()):
        raise CheckpointError(f"{contents.path}: {name} holds NaN or infinity: did its training diverge?")
    if own.endswith("running_var") and bool((values < 0).any()):
        raise CheckpointError(f"{contents.path}: {name} holds a negative variance")
    if own == "pooling.p" and not bool((values > 0).all()):
        raise CheckpointError(f"{contents.path}: {name} must be above 0, got {values.item():g}")
    return values
