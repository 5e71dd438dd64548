"""Derivation: a flavour or a plan is made from an artifact, proven, and put beside its model.onnx, or nothing is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from msgspec.structs import replace

from reidserve.embed import Artifact, Contract, Flavour, Precision, read_artifact
from reidserve.embed.contract import MODEL_FILE
from reidserve.embed.engines import GRAPHS, SIGNED_GRAPH, graph_of
from reidserve.errors import ExportError
from reidserve.export.derive.addition import Addition, check_new, publish, staged_copy
from reidserve.export.derive.calibration import Calibration, Calibrator
from reidserve.export.derive.proof import (
    Engine,
    Verification,
    candidates_of,
    checks_of,
    prove,
    reference_of,
    start_engines,
    start_reference,
    with_canaries,
)
from reidserve.export.derive.record import encode_record, read_record, updated
from reidserve.export.flavours import make_half
from reidserve.export.parity import Parity
from reidserve.export.plans import build_plan, find_builder, plan_file

Progress = Callable[[int, int], None]
Target = Literal["cpu", "tensorrt"]

_INTEGERS: Mapping[Target, str] = {"cpu": GRAPHS["int8"], "tensorrt": SIGNED_GRAPH}


_UNSEEN = (
    "fp16: whether values fit float16 was not seen, since CPUs compute it in float32: name training images with "
    "--calibrate, or prove it on the GPU that will serve"
)


@dataclass(frozen=True, slots=True)
class Derived:
    """What was put beside a model.

    Attributes:
        contract: what the artifact promises now.
        files: the new files.
        engines: what they were run on here.
        parity: what the gate measured; None where it was not asked.
        remarks: what else should be known, a sentence each.
    """

    contract: Contract
    files: Sequence[str]
    engines: Sequence[str]
    parity: Parity | None
    remarks: Sequence[str] = ()


def derive_flavour(
    folder: Path,
    precision: Precision,
    *,
    calibration: Calibration | None = None,
    targets: Sequence[Target] = ("cpu", "tensorrt"),
    verification: Verification | None = None,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Derived:
    """Make a flavour of an artifact and put it beside model.onnx, proven on every engine here that runs it.

    Without a `verification` it is marked as unverified. Of int8 there are two files, for CPUs and for TensorRT, and
    `targets` says which are made. With a `calibration`, which int8 needs, operators that prove sensitive stay in
    float32 until its budget is kept.

    Raises:
        ParityError: it does not rank as the model does; nothing was written.
        ExportError: it cannot be made, or runs nowhere here.
        OutputExistsError: it is there already, and `force` was not given.
    """
    artifact = read_artifact(folder)
    files = [_INTEGERS[target] for target in targets] if precision == "int8" else [GRAPHS[precision]]
    check_new(artifact, files, force=force)
    graph = onnx.load_model_from_string((folder / MODEL_FILE).read_bytes())
    calibrator = None if calibration is None else Calibrator(start_reference(artifact), graph, calibration)
    made = _half(graph, calibrator) if precision == "fp16" else _integers(calibrator, files)
    remarks = [_UNSEEN] if calibrator is None else calibrator.remarks
    return _put_beside(artifact, made, verification, remarks, progress)


def derive_plan(
    folder: Path,
    precision: Precision,
    *,
    batches: Sequence[int],
    timing_cache: Path | None = None,
    verification: Verification | None = None,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Derived:
    """Compile one of an artifact's graphs for the GPU here, and put the plan beside it, proven on that GPU.

    Raises:
        ParityError: it does not rank as the model does; nothing was written.
        ArtifactError: the flavour was not made.
        ExportError: there is no TensorRT or GPU, or the plan cannot be built.
        OutputExistsError: a plan of this GPU is there already, and `force` was not given.
    """
    artifact = read_artifact(folder)
    graph = graph_of(artifact.contract, precision=precision, device="tensorrt")
    name = plan_file(precision, find_builder().gpu)
    check_new(artifact, [name], force=force)
    data, plan = build_plan(
        (folder / graph).read_bytes(), name=graph, precision=precision, batches=batches, timing_cache=timing_cache
    )
    addition = Addition(precision=precision, data={name: data}, plans={name: replace(plan, unverified=True)})
    return _put_beside(artifact, addition, verification, [], progress)


def prove_model(folder: Path, *, verification: Verification, progress: Progress = lambda done, total: None) -> Derived:
    """Prove model.onnx on every other engine here, and leave its canaries of each.

    Raises:
        ParityError: an engine does not rank as ONNX Runtime's CPU does; nothing was written.
    """
    return _put_beside(read_artifact(folder), Addition(precision="fp32"), verification, [], progress)


def _half(graph: onnx.ModelProto, calibrator: Calibrator | None) -> Addition:
    half, kept = (make_half(graph), ()) if calibrator is None else calibrator.half()
    file = GRAPHS["fp16"]
    return Addition(
        precision="fp16",
        data={file: half.SerializeToString(deterministic=True)},
        flavours={file: Flavour(precision="fp16", kept=tuple(kept), unverified=True)},
    )


def _integers(calibrator: Calibrator | None, files: Sequence[str]) -> Addition:
    if calibrator is None:
        raise ExportError("int8 takes its ranges from training crops: name them with --calibrate TRAIN")
    data, flavours = {}, {}
    for file in files:
        signed = file == SIGNED_GRAPH
        graph, kept = calibrator.integer(signed=signed)
        data[file] = graph.SerializeToString(deterministic=True)
        flavours[file] = Flavour(
            precision="int8", signed=signed, kept=tuple(kept), calibration=calibrator.ranges.images, unverified=True
        )
    return Addition(precision="int8", data=data, flavours=flavours)


def _put_beside(
    artifact: Artifact,
    addition: Addition,
    verification: Verification | None,
    remarks: Sequence[str],
    progress: Progress,
) -> Derived:
    with staged_copy(artifact, addition) as stage:
        engines = start_engines(stage, addition)
        parity = None
        if verification is not None:
            candidates = candidates_of(engines, addition.precision)
            parity = prove(reference_of(start_reference(artifact)), candidates, verification, progress=progress)
        contract = publish(
            stage,
            _judged(stage.contract, addition, engines, parity),
            with_canaries(artifact.canaries, engines, addition),
            encode_record(updated(read_record(artifact), parity, anew=addition.makes_anew)),
        )
        if contract.identity != artifact.contract.identity:
            raise ExportError(f"{artifact.folder} would get another identity: this is a bug, nothing was written")
    return Derived(contract, list(addition.data), [engine.name for engine in engines], parity, remarks)


def _judged(contract: Contract, addition: Addition, engines: Sequence[Engine], parity: Parity | None) -> Contract:
    """The contract with what the gate found of each new file."""
    if parity is None:
        return contract

    def judged(part: Mapping[str, Any]) -> dict[str, Any]:
        checks = {file: checks_of(file, engines, parity) for file in addition.data}
        return {
            file: replace(facts, unverified=not checks[file], checks=checks[file]) if file in addition.data else facts
            for file, facts in part.items()
        }

    return replace(contract, flavours=judged(contract.flavours), plans=judged(contract.plans))
