"""Additions: files beside model.onnx, put into a copy of an artifact that takes its place whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from reidserve.embed import Artifact, Contract, Flavour, Plan, Precision, read_artifact
from reidserve.embed.artifact import CONTRACT_FILE
from reidserve.embed.canaries import CANARIES_FILE, Canaries, encode_canaries
from reidserve.embed.contract import PARITY_FILE, encode_contract
from reidserve.errors import ExportError, OutputExistsError
from reidserve.export.convert.assembly import staged_artifact, write_file

SIGNED_ON_CPU = "int8-signed/onnxruntime-cpu"
"""The graph that TensorRT compiles, run by ONNX Runtime: of where there is no GPU, the nearest that can be known."""

_REWRITTEN = (CONTRACT_FILE, CANARIES_FILE, PARITY_FILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """What is put beside model.onnx.

    Attributes:
        precision: of all of it.
        data: the bytes of each new file, by name.
        flavours: what the contract will say of those that are graphs.
        plans: what it will say of those that are plans.
    """

    precision: Precision
    data: Mapping[str, bytes] = field(default_factory=dict)
    flavours: Mapping[str, Flavour] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)

    def makes_anew(self, engine: str) -> bool:
        """Whether an engine computed what this takes the place of, so that its figures and canaries are no more."""
        plan = f"{self.precision}/tensorrt"
        of_plans = {plan} if self.plans else set()
        of_signed = {plan, SIGNED_ON_CPU} if any(flavour.signed for flavour in self.flavours.values()) else set()
        if engine in of_plans | of_signed:
            return True
        unsigned = any(not flavour.signed for flavour in self.flavours.values())
        # Of int8 TensorRT has a graph of its own; of fp16 all engines have one.
        others = engine.startswith(f"{self.precision}/") and (self.precision != "int8" or engine != plan)
        return unsigned and others


def check_new(artifact: Artifact, names: Sequence[str], *, force: bool) -> None:
    """See that files of these names may be made.

    Raises:
        OutputExistsError: one is there, and `force` was not given.
    """
    there = [name for name in names if name in artifact.contract.files]
    if there and not force:
        raise OutputExistsError(f"{artifact.folder} has {', '.join(there)} already: make it again with --force")


@contextmanager
def staged_copy(artifact: Artifact, addition: Addition) -> Iterator[Artifact]:
    """A copy of an artifact with the addition, as yet unverified, whose folder takes the artifact's place at the end.

    Until the block ends well, nothing of the artifact is touched.

    Raises:
        OutputExistsError: the folder holds more than the artifact, which would be lost.
        ExportError: the folder was changed by another meanwhile.
    """
    gone = {*_REWRITTEN, *addition.data, *outdated(artifact.contract, addition)}
    with staged_artifact(artifact.folder, force=True) as stage:
        contract = _without(artifact.contract, gone)
        for name in contract.files:
            _link(artifact.folder / name, stage / name)
        for name, data in addition.data.items():
            write_file(stage / name, data)
        new = {name: hashlib.sha256(data).hexdigest() for name, data in addition.data.items()}
        staged = msgspec.structs.replace(
            contract,
            files={**contract.files, **new},
            flavours={**contract.flavours, **addition.flavours},
            plans={**contract.plans, **addition.plans},
        )
        yield Artifact(stage, staged, artifact.canaries)
        _check_unchanged(artifact)


def outdated(contract: Contract, addition: Addition) -> set[str]:
    """The plans that were compiled from a graph that is made anew."""
    return {name for name, plan in contract.plans.items() if plan.graph in addition.data}


def _without(contract: Contract, gone: set[str]) -> Contract:
    kept = {
        part: {name: facts for name, facts in getattr(contract, part).items() if name not in gone}
        for part in ("files", "flavours", "plans")
    }
    return msgspec.structs.replace(contract, **kept)


def publish(stage: Artifact, contract: Contract, canaries: Canaries, parity: bytes | None) -> Contract:
    """Write what a staged copy still lacks, canaries, report and contract, and read all of it back.

    Raises:
        ArtifactError: what was written does not read.
    """
    raw = {engine: np.frombuffer(rows, "<f4") for engine, rows in canaries.embeddings.items()}
    written = {CANARIES_FILE: encode_canaries(canaries.images, raw)}
    if parity is not None:
        written[PARITY_FILE] = parity
    for name, data in written.items():
        write_file(stage.folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    whole = msgspec.structs.replace(contract, files={**contract.files, **digests})
    write_file(stage.folder / CONTRACT_FILE, encode_contract(whole))
    return read_artifact(stage.folder).contract


def _link(source: Path, target: Path) -> None:
    """The same file under another name: a copy only where a file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check_unchanged(artifact: Artifact) -> None:
    """Two derivations at once: the second must not take the place of what the first has added."""
    if read_artifact(artifact.folder).contract != artifact.contract:
        raise ExportError(f"{artifact.folder} was changed by another command meanwhile: run this one again")
