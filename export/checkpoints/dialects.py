"""Dialects: whose names a file's tensors have, and the network that names and shapes tell."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch

from reidserve.errors import CheckpointError
from reidserve.export.checkpoints.feed import Feed, Triple
from reidserve.export.checkpoints.files import AVERAGED, Contents, name_some
from reidserve.export.checkpoints.own import OWN, read_own
from reidserve.export.checkpoints.projects import FOREIGN, NON_LOCAL, Dialect
from reidserve.export.model.architecture import BACKBONES, IBNS, Architecture, Neck
from reidserve.export.model.network import Network

_OWN_DIALECT = Dialect(name=OWN, signs=(), starts={})

DIALECTS = (OWN, *dict.fromkeys(dialect.name for dialect in FOREIGN))
"""The names of the dialects that are read."""

_WAY_OUT = "export it to ONNX where its code is, and give that with --onnx"
_REFUSED = {
    r"base\.blocks\..*": "is a vision transformer of TransReID, whose feature may need the camera id at inference",
    r".*\.se\.(fc|conv)\w*\..*": "has squeeze-and-excitation blocks",
    r"backbone\.conv1\.\d+\..*": "is a ResNeSt of fast-reid",
}
_WITHOUT_NECK = {
    "heads.": "has fast-reid's names without its neck: heads.bottleneck.* and heads.bnneck.* are missing",
    "model.layer1.": "has layumi's names without its neck: classifier.add_block.* is missing",
    "backbone.layer1.": "has reidserve's tensors without their metadata: use the file that reid-train wrote",
}
_MEAN, _STD = "pixel_mean", "pixel_std"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file's tensors tell by themselves.

    Attributes:
        contents: the file.
        dialect: whose names they are, or which of those was asked for.
        architecture: what the tensors tell; of a foreign file, the rest is as the dialect's project has it.
        feed: how the network was fed, from the file itself.
        fitting: every dialect that has these names; where there are several, the names do not tell which.
    """

    contents: Contents
    dialect: Dialect
    architecture: Architecture
    feed: Feed | None
    fitting: tuple[Dialect, ...]


def recognise(contents: Contents, *, said: str | None = None) -> Reading:
    """Tell dialect and architecture from the names and shapes of a file's tensors.

    Of dialects with equal names it is the one that is `said`, or else the first.

    Raises:
        CheckpointError: they are of no dialect that is read, of another than is said, or of a neck that is missing.
    """
    if (own := read_own(contents)) is not None:
        _check_said(contents, said, (_OWN_DIALECT,))
        architecture, feed = own
        architecture = _with_classifier_of(contents, _OWN_DIALECT, architecture)
        return Reading(contents, _OWN_DIALECT, architecture, feed, (_OWN_DIALECT,))
    family = _family(contents)
    backbone = _best_fit(contents, family[0])
    fitting = tuple(dialect for dialect in family if backbone.ibn in dialect.norms)
    _check_said(contents, said, fitting)
    dialect = next((dialect for dialect in fitting if dialect.name == said), fitting[0])
    head = _head(contents, dialect, replace(backbone, non_local=_non_local(contents, backbone)))
    architecture = _with_classifier_of(contents, dialect, head)
    return Reading(contents, dialect, architecture, _feed_inside(contents, dialect), fitting)


def _check_said(contents: Contents, said: str | None, fitting: tuple[Dialect, ...]) -> None:
    names = dict.fromkeys(dialect.name for dialect in fitting)
    if said is not None and said not in names:
        known = "" if said in DIALECTS else f" (the dialects are {', '.join(DIALECTS)})"
        raise CheckpointError(f"{contents.path}: {said} was asked for, the tensors are {' or '.join(names)}'s{known}")


def _family(contents: Contents) -> list[Dialect]:
    """The dialects whose names these are: where there are several, they name their tensors alike."""
    names = contents.tensors.keys()

    def has(start: str) -> bool:
        return any(name.startswith(start) for name in names)

    for pattern, what in _REFUSED.items():
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            raise CheckpointError(f"{contents.path} {what} ({name_some(found, most=2)}), which is not read: {_WAY_OUT}")
    fitting = [dialect for dialect in FOREIGN if all(map(has, dialect.signs))]
    if fitting:
        return [dialect for dialect in fitting if dialect.signs == fitting[0].signs]
    for start, what in _WITHOUT_NECK.items():
        if has(start):
            raise CheckpointError(f"{contents.path} {what}")
    raise CheckpointError(
        f"{contents.path} is of no known dialect ({', '.join(DIALECTS)}): its tensors are {name_some(sorted(names))}. "
        f"If it is another network, {_WAY_OUT}"
    )


def _best_fit(contents: Contents, dialect: Dialect) -> Architecture:
    """The depth and norms whose tensors differ from these in the fewest names, so that one wrong name is an error."""
    found = set(contents.tensors)
    candidates = _backbones(dialect.foreign("backbone."))
    return min(candidates, key=lambda candidate: len(found ^ candidates[candidate]))


@cache
def _backbones(start: str) -> dict[Architecture, frozenset[str]]:
    """Every backbone with the names of its tensors, which begin like this."""
    candidates = [Architecture(backbone=backbone, ibn=ibn) for backbone in BACKBONES for ibn in IBNS]
    ours = "backbone."
    return {
        candidate: frozenset(start + name[len(ours) :] for name in expected_shapes(candidate) if name.startswith(ours))
        for candidate in candidates
    }


def _non_local(contents: Contents, backbone: Architecture) -> tuple[int, int, int, int]:
    there = any(name.startswith("backbone.NL_") for name in contents.tensors)
    return NON_LOCAL.get(backbone.backbone, (0, 0, 0, 0)) if there else (0, 0, 0, 0)


def _head(contents: Contents, dialect: Dialect, backbone: Architecture) -> Architecture:
    """The architecture with all that follows its backbone, but for the classifier."""
    choices = {**dialect.usually(backbone), **dialect.always}
    if "neck" not in choices:
        choices["neck"] = _strong_neck(contents)
    if dialect.reads_exponent and dialect.foreign("pooling.p") in contents.tensors:
        choices["pooling"] = "gem"
    if "embedding." in dialect.starts:
        choices["embedding_dim"] = _embedding_dim(contents, dialect)
    if dialect.part_names is not None:
        choices["parts"] = _parts(contents, dialect, *dialect.part_names)
    return replace(backbone, **choices)


def _strong_neck(contents: Contents) -> Neck:
    names = contents.tensors.keys()
    if any(name.startswith("bottleneck.") for name in names):
        return "bnneck"
    if "classifier.bias" in names:
        return "no"
    raise CheckpointError(
        f"{contents.path} has no neck: bottleneck.weight, bottleneck.bias, bottleneck.running_mean and "
        "bottleneck.running_var are missing, and a network without neck would have a classifier.bias"
    )


def _embedding_dim(contents: Contents, dialect: Dialect) -> int:
    """What most of the tensors around the neck say, so that one of another shape is an error."""
    names = ("embedding.weight", "neck.weight", "neck.bias", "neck.running_mean", "neck.running_var")
    tensors = [contents.tensors.get(dialect.foreign(name)) for name in names]
    sizes = [len(tensor) for tensor in tensors if tensor is not None and tensor.ndim]
    return Counter(sizes).most_common(1)[0][0] if sizes else 1


def _parts(contents: Contents, dialect: Dialect, pattern: str, known: tuple[int, ...]) -> int:
    matches = [re.fullmatch(pattern, name) for name in contents.tensors]
    found = sorted({int(match[1]) for match in matches if match is not None})
    if len(found) not in known or found != list(range(len(found))):
        numbers = " or ".join(map(str, known))
        raise CheckpointError(
            f"{contents.path} has classifiers of the parts {', '.join(map(str, found))}, {dialect.name} has {numbers}"
        )
    return len(found)


def _with_classifier_of(contents: Contents, dialect: Dialect, architecture: Architecture) -> Architecture:
    """The architecture with the file's number of classes, 0 if its classifier is not whole, or dead."""
    tensors = [contents.tensors.get(dialect.foreign(name)) for name in classifier_names(dialect, architecture)]
    if not tensors or any(tensor is None for tensor in tensors):
        return replace(architecture, classes=0)
    weight = tensors[0]
    # A classifier of no sensible shape is refused by its shape.
    return replace(architecture, classes=weight.shape[-2] if weight is not None and weight.ndim > 1 else 1)


def classifier_names(dialect: Dialect, architecture: Architecture) -> list[str]:
    """The classifier's tensors, by our names, the weight first; none where the dialect's is dead."""
    if dialect.name != OWN and "classifier." not in dialect.starts:
        return []
    return ["classifier.weight"] if architecture.neck == "bnneck" else ["classifier.weight", "classifier.bias"]


def _feed_inside(contents: Contents, dialect: Dialect) -> Feed | None:
    """The feed whose mean and standard deviation the network itself holds, on pixels from 0 to 255; None if none."""
    if dialect.why_dead(_MEAN) is None or not {_MEAN, _STD} & contents.tensors.keys():
        return None
    mean, std = (_triple(contents, name) for name in (_MEAN, _STD))
    usual = dialect.feed
    if torch.allclose(torch.tensor([mean, std]), torch.tensor([usual.mean, usual.std]), rtol=1e-5):
        return usual
    return replace(usual, mean=mean, std=std)


def _triple(contents: Contents, name: str) -> Triple:
    tensor = contents.tensors.get(name)
    if tensor is None or tensor.numel() != 3:
        got = "none" if tensor is None else f"{tensor.numel()} numbers"
        raise CheckpointError(f"{contents.path}: {name} must be 3 numbers, red, green and blue, got {got}")
    red, green, blue = (tensor.flatten().double() / 255).tolist()
    return red, green, blue


@cache
def expected_shapes(architecture: Architecture) -> Mapping[str, torch.Size]:
    """The shape of every tensor of a network, by our names."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Network(architecture).state_dict().items()}


def why_dead(name: str, dialect: Dialect, architecture: Architecture) -> str | None:
    """Why the feature does not read a tensor of the dialect; None if it does, or if the name is nobody's."""
    if name == AVERAGED:
        return "how many networks were averaged"
    if not architecture.classes and name in map(dialect.foreign, classifier_names(dialect, architecture)):
        return "a part of a classifier"
    if architecture.pooling == "average" and name == dialect.foreign("pooling.p") and not dialect.reads_exponent:
        return "GeM's exponent, which a network that pools by the mean never reads"
    return dialect.why_dead(name)
