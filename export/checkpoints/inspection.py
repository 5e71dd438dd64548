"""Inspecting a checkpoint: what its tensors tell, what they do not, and whether it could be exported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from reidserve.errors import CheckpointError
from reidserve.export.checkpoints.accounts import account
from reidserve.export.checkpoints.dialects import Reading, recognise
from reidserve.export.checkpoints.feed import Feed
from reidserve.export.checkpoints.files import read_contents
from reidserve.export.checkpoints.own import OWN, OWN_NAMES
from reidserve.export.checkpoints.read import open_questions, usually_answered
from reidserve.export.model.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor that a file holds.

    Attributes:
        name: without what wrappers put before it.
        shape: of the tensor.
        dtype: of its numbers, such as "float32".
        numbers: how many there are.
        size: bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    numbers: int
    size: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What could be read of a checkpoint.

    Attributes:
        path: the file.
        sha256: of its bytes.
        tensors: all that it holds.
        metadata: as in Contents; of our own file, what it was given for people.
        dialects: whose names the tensors have, several where the names do not tell which; none where nobody's.
        sizes: what each of these projects usually brings crops to.
        architecture: what the tensors tell and, where they do not, what is usual in the first of the dialects; None
            where there is none.
        questions: what the tensors do not tell and must be said, with the candidates, by the names of
            `read_checkpoint`.
        answered: which of these need no answer once the dialect is said.
        feed: how the network is fed, as the file says or as is usual in the first of the dialects.
        feed_told: whether the file itself says so.
        dead: tensors that the feature does not read, with the reason.
        absent: tensors that the file lacks without harm, with the reason.
        refusal: why it cannot be exported, whatever is said; None where it can.
    """

    path: Path
    sha256: str
    tensors: Sequence[Held]
    metadata: Mapping[str, str]
    dialects: Sequence[str] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)
    architecture: Architecture | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    answered: Sequence[str] = ()
    feed: Feed | None = None
    feed_told: bool = False
    dead: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    refusal: str | None = None


def inspect_checkpoint(path: Path) -> Inspection:
    """Read what can be read of a checkpoint, also of one that would be refused.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and numbers: nothing could be read.
    """
    contents = read_contents(path)
    found = Inspection(
        path=path,
        sha256=contents.sha256,
        tensors=[_held(name, tensor) for name, tensor in contents.tensors.items()],
        metadata=contents.metadata,
    )
    try:
        reading = recognise(contents)
    except CheckpointError as error:
        return replace(found, refusal=str(error))
    questions = open_questions(reading)
    found = replace(
        found,
        dialects=list(dict.fromkeys(dialect.name for dialect in reading.fitting)),
        sizes={dialect.name: dialect.size for dialect in reading.fitting},
        architecture=reading.architecture,
        questions=questions,
        answered=[name for name in questions if name in usually_answered(reading)],
        feed=reading.feed or reading.dialect.feed,
        feed_told=reading.feed is not None,
        metadata=_for_people(reading),
    )
    try:
        accounts = account(contents, reading.dialect, reading.architecture)
    except CheckpointError as error:
        return replace(found, refusal=str(error))
    return replace(found, dead=accounts.dead, absent=accounts.absent)


def _for_people(reading: Reading) -> Mapping[str, str]:
    metadata = reading.contents.metadata
    if reading.dialect.name != OWN:
        return metadata
    return {name: text for name, text in metadata.items() if name not in OWN_NAMES}


def _held(name: str, tensor: Tensor) -> Held:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Held(name, tuple(tensor.shape), dtype, tensor.numel(), tensor.numel() * tensor.element_size())
