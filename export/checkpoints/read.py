"""Reading a checkpoint: the network that a file holds, or a refusal that says what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from reidserve.errors import CheckpointError
from reidserve.export.checkpoints.accounts import account
from reidserve.export.checkpoints.dialects import DIALECTS, Reading, recognise
from reidserve.export.checkpoints.feed import Feed
from reidserve.export.checkpoints.files import name_some, read_contents
from reidserve.export.checkpoints.own import OWN
from reidserve.export.model.architecture import Architecture, LastStride, Pooling, StemPool, parse_architecture
from reidserve.export.model.network import Network


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read whole.

    Attributes:
        network: in evaluation mode, with the file's weights.
        dialect: whose names the file uses.
        architecture: the network's.
        feeding: how the network was fed in training; None where neither the file nor a dialect that was asked for
            says it.
        sha256: of the file.
        dead: tensors of the file that the feature does not read, with the reason.
        absent: tensors that the file lacks without harm, with the reason.
        metadata: of our own file, as they were given to `write_checkpoint`; of a foreign safetensors, its own.
    """

    network: Network
    dialect: str
    architecture: Architecture
    feeding: Feed | None
    sha256: str
    dead: Mapping[str, str]
    absent: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def remarks(self) -> list[str]:
        """What a person should know of the file: its dead and absent tensors, one line for each reason."""
        lines = []
        for title, tensors in (("not read", self.dead), ("not in the file", self.absent)):
            for reason in dict.fromkeys(tensors.values()):
                names = [name for name, why in tensors.items() if why == reason]
                lines.append(f"{title}: {name_some(names, most=2)}: {reason}")
        return lines


def read_checkpoint(
    path: Path,
    *,
    dialect: str | None = None,
    last_stride: LastStride | None = None,
    stem_pool: StemPool | None = None,
    pooling: Pooling | None = None,
    arch: str | None = None,
) -> Checkpoint:
    """Read the network in a checkpoint: every tensor of the file is used, known to be dead, or the file is refused.

    What a foreign file's tensors do not tell must be said, one by one or by its `dialect`, which stands for what
    that project does. What the tensors or our own metadata do tell may be said too, and must then agree.

    Raises:
        CheckpointError: the file is damaged, of no known dialect, not accounted for to the last tensor, or does not
            tell all that must be known; or what was said contradicts it.
        ExportError: what was said is no such thing, whatever the file.
    """
    reading = recognise(read_contents(path))
    if dialect is not None and dialect != reading.dialect.name:
        known = "" if dialect in DIALECTS else f" (the dialects are {', '.join(DIALECTS)})"
        raise CheckpointError(f"{path}: {dialect} was asked for, the tensors are {reading.dialect.name}'s{known}")
    if arch is not None and parse_architecture(arch).name != reading.architecture.name:
        raise CheckpointError(f"{path}: {arch} was asked for, the tensors are a {reading.architecture.name}'s")
    said = {
        name: value
        for name, value in (("last_stride", last_stride), ("stem_pool", stem_pool), ("pooling", pooling))
        if value is not None
    }
    if reading.dialect.name == OWN:
        _check_agreement(reading, said)
    elif dialect is None:
        _check_told(reading, said)
    architecture = replace(
        reading.architecture,
        last_stride=last_stride or reading.architecture.last_stride,
        stem_pool=stem_pool or reading.architecture.stem_pool,
        pooling=pooling or reading.architecture.pooling,
    )
    accounts = account(reading.contents, reading.dialect, architecture)
    with torch.device("meta"):
        network = Network(architecture)
    network.load_state_dict(accounts.state, assign=True)
    return Checkpoint(
        network=network.eval(),
        dialect=reading.dialect.name,
        architecture=architecture,
        feeding=reading.feed if dialect in (None, OWN) else reading.dialect.feed,
        sha256=reading.contents.sha256,
        dead=accounts.dead,
        absent=accounts.absent,
        metadata=reading.contents.metadata,
    )


def _check_agreement(reading: Reading, said: Mapping[str, object]) -> None:
    for name, value in said.items():
        told = getattr(reading.architecture, name)
        if value != told:
            raise CheckpointError(
                f"{reading.contents.path}: {name} {value} was asked for, its own metadata say {name} {told}"
            )


def _check_told(reading: Reading, said: Mapping[str, object]) -> None:
    """See that everything is said that a foreign file's tensors do not tell.

    Raises:
        CheckpointError: something is not; the candidates are listed.
    """
    dialect, usual = reading.dialect, reading.architecture
    questions = {"last_stride": f"1 or 2 ({dialect.name}: {dialect.last_stride})"}
    if usual.ibn == "none" and len(dialect.plain_stems) > 1:
        questions["stem_pool"] = " or ".join(f"{pool} ({whose})" for pool, whose in dialect.plain_stems.items())
    if "gap.p" in reading.contents.tensors:
        questions["pooling"] = "average (then gap.p is not read, as in AICity DMT) or gem"
    open_questions = {name: choices for name, choices in questions.items() if name not in said}
    if open_questions:
        asked = "; ".join(f"--{name.replace('_', '-')} {choices}" for name, choices in open_questions.items())
        raise CheckpointError(
            f"{reading.contents.path} is a {usual.name} with {dialect.name}'s names, which do not tell everything. "
            f"Say {asked}. Or say --dialect {dialect.name} for all that is usual in that project"
        )
