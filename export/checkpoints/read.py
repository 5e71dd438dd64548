"""Reading a checkpoint: the network that a file holds, or a refusal that says what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reidserve.embed import ResizeFilter
from reidserve.errors import CheckpointError
from reidserve.export.checkpoints.accounts import account
from reidserve.export.checkpoints.dialects import Reading, recognise
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
        feeding: how the network was fed in training, from the file or as its project does; None where our own file
            does not say it.
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
    stem_relu: bool | None = None,
    pooling: Pooling | None = None,
    resize: ResizeFilter | None = None,
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
    reading = recognise(read_contents(path), said=dialect)
    if arch is not None and parse_architecture(arch).name != reading.architecture.name:
        raise CheckpointError(f"{path}: {arch} was asked for, the tensors are a {reading.architecture.name}'s")
    choices = {"last_stride": last_stride, "stem_pool": stem_pool, "stem_relu": stem_relu, "pooling": pooling}
    said = {name: value for name, value in choices.items() if value is not None}
    architecture, feed = decide(reading, said, resize=resize, usual=dialect is not None)
    accounts = account(reading.contents, reading.dialect, architecture)
    with torch.device("meta"):
        network = Network(architecture)
    network.load_state_dict(accounts.state, assign=True)
    return Checkpoint(
        network=network.eval(),
        dialect=reading.dialect.name,
        architecture=architecture,
        feeding=feed,
        sha256=reading.contents.sha256,
        dead=accounts.dead,
        absent=accounts.absent,
        metadata=reading.contents.metadata,
    )


def decide(
    reading: Reading, said: Mapping[str, Any], *, resize: ResizeFilter | None = None, usual: bool
) -> tuple[Architecture, Feed | None]:
    """The architecture of a file's network and how it is fed, from what the file tells and what is said.

    `usual` stands for the project's ways. No feed is known where our own file tells none.

    Raises:
        CheckpointError: something is neither told nor said, and the candidates are listed; or our own file's metadata
            say otherwise.
        ExportError: what is said is no such thing.
    """
    path, dialect = reading.contents.path, reading.dialect
    if dialect.name == OWN:
        for name, value in said.items():
            told = getattr(reading.architecture, name)
            if value != told:
                raise CheckpointError(f"{path}: {name} {value} was asked for, its own metadata say {name} {told}")
    answered = {*said, *(usually_answered(reading) if usual else ()), *(("resize",) if resize is not None else ())}
    unanswered = {name: asked for name, asked in open_questions(reading).items() if name not in answered}
    if unanswered:
        raise CheckpointError(_ask(reading, unanswered))
    feed = dialect.feed if reading.feed is None and dialect.name != OWN else reading.feed
    if feed is not None and resize is not None:
        feed = replace(feed, resize=resize)
    return replace(reading.architecture, **said), feed


def _ask(reading: Reading, unanswered: Mapping[str, str]) -> str:
    names = " or ".join(fitting.name for fitting in reading.fitting)
    flags = {name: f"--{name.replace('_', '-')}" for name in unanswered}
    asked = "; ".join(f"{flags[name]} {candidates}" for name, candidates in unanswered.items())
    usual = [flags[name] for name in unanswered if name in usually_answered(reading)]
    instead = f". Or say --dialect {names}, in place of {', '.join(usual)}, for what is usual there" if usual else ""
    return (
        f"{reading.contents.path} is a {reading.architecture.name} with {names}'s names, which do not tell "
        f"everything. Say {asked}{instead}"
    )


def usually_answered(reading: Reading) -> set[str]:
    """What needs no answer once the dialect is said, by the names of `read_checkpoint`."""
    return {"resize", *reading.dialect.usually(reading.architecture)}


def open_questions(reading: Reading) -> dict[str, str]:
    """What a file's tensors do not tell and must be said, with the candidates, by the names of `read_checkpoint`."""
    dialect, architecture = reading.dialect, reading.architecture
    if dialect.name == OWN:
        return {}
    questions = {}
    usual = {fitting.name: fitting.usually(architecture) for fitting in reading.fitting}
    if "last_stride" not in dialect.always:
        questions["last_stride"] = f"1 or 2 ({', '.join(usual)}: {architecture.last_stride})"
    for name in ("stem_pool", "stem_relu"):
        values = {project: choices.get(name, getattr(architecture, name)) for project, choices in usual.items()}
        candidates = dialect.unsure.get(name) or _by_value(values)
        if len(candidates) > 1:
            questions[name] = _list(candidates)
    exponent = dialect.foreign("pooling.p")
    if exponent in reading.contents.tensors and not dialect.reads_exponent:
        questions["pooling"] = f"average (then {exponent} is not read, as in AICity DMT) or gem"
    elif dialect.reads_exponent and exponent not in reading.contents.tensors:
        questions["pooling"] = f"average (bag of tricks) or gem (AGW: p fixed at 3); there is no {exponent} to tell"
    filters = _by_value({fitting.name: fitting.feed.resize for fitting in reading.fitting})
    if len(filters) > 1:
        questions["resize"] = _list(filters)
    return questions


def _by_value(values: Mapping[str, Any]) -> dict[Any, str]:
    """What each value is of, by the value."""
    return {value: ", ".join(name for name in values if values[name] == value) for value in values.values()}


def _list(candidates: Mapping[Any, str]) -> str:
    return " or ".join(f"{value} ({whose})" for value, whose in candidates.items())
