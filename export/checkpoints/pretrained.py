"""Starting from another network's weights: everything of a checkpoint but its classifier."""

from collections.abc import Callable
from pathlib import Path

import torch

from reidserve.errors import CheckpointError
from reidserve.export.checkpoints.accounts import account
from reidserve.export.checkpoints.dialects import recognise
from reidserve.export.checkpoints.fetch import fetch
from reidserve.export.checkpoints.files import name_some, read_contents
from reidserve.export.model.network import Network


def load_pretrained(
    network: Network, source: str | Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """Copy every tensor of a checkpoint but the classifier into a network; returns what was left out, with reasons.

    `source` is a file or a URL#sha256=HEX, `progress` hears of bytes as they are fetched.

    The backbone is always taken whole. Embedding layer, neck and pooling are taken where both networks have them;
    where only the new one has, it stays as initialised and is said. Strides, stem and pools are the new network's.

    Raises:
        CheckpointError: the file cannot be fetched, is not accounted for to the last tensor, or its backbone is
            another.
        UsageError: a URL without a sha256.
    """
    path = fetch(str(source), progress=progress)
    reading = recognise(read_contents(path))
    theirs, ours = reading.architecture, network.architecture
    if theirs.name != ours.name:
        raise CheckpointError(f"{path} is a {theirs.name}, the network to start is a {ours.name}")
    accounts = account(reading.contents, reading.dialect, theirs)
    state = network.state_dict()
    left = [f"{name}: {reason}" for name, reason in accounts.dead.items() if not name.endswith("num_batches_tracked")]
    taken = {}
    for name, tensor in accounts.state.items():
        if name.startswith("classifier."):
            continue
        if name not in state:
            left.append(f"{reading.dialect.foreign(name)}: the network to start has none")
        elif state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {reading.dialect.foreign(name)} is {tuple(tensor.shape)}, the network to start has "
                f"{tuple(state[name].shape)}"
            )
        else:
            taken[name] = tensor
    fresh = [name for name in state if name not in taken and not name.startswith("classifier.")]
    if fresh:
        left.append(f"{name_some(fresh)}: not in the file, stays as initialised")
    with torch.no_grad():
        for name, tensor in taken.items():
            state[name].copy_(tensor)
    return left
