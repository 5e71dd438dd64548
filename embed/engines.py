"""Engines: which graph of an artifact runs where, and the session that runs it."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal

from reidserve.embed.artifact import Artifact
from reidserve.embed.contract import MODEL_FILE, Contract, Flavour, Plan, Precision
from reidserve.embed.onnx_session import OnnxSession, sees_cuda
from reidserve.embed.session import Session
from reidserve.errors import ArtifactError, DeviceError

Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino"]
"""What runs a model: ONNX Runtime on cpu or cuda, TensorRT, OpenVINO; auto is the GPU's best, else cpu."""

GRAPHS: Mapping[Precision, str] = {"fp32": MODEL_FILE, "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
SIGNED_GRAPH = "model.int8.tensorrt.onnx"
"""The int8 graph with symmetric activations, as TensorRT wants them."""

BATCH_BOUNDS: Mapping[str, float] = {
    "fp32/onnxruntime-cpu": 0.0,
    "fp16/onnxruntime-cpu": 0.0,
    "int8/onnxruntime-cpu": 0.0,
    "fp32/openvino-cpu": 1e-5,
    "fp16/openvino-cpu": 1e-5,
    "int8/openvino-cpu": 0.0,
}
"""How far an image's embedding may lie from itself in another batch, in any component, per engine that was measured."""

_logger = logging.getLogger(__name__)


def graph_of(contract: Contract, *, precision: Precision, device: Device) -> str:
    """The file of the graph that a device computes; for TensorRT the one that its plan is compiled from.

    Raises:
        ArtifactError: the artifact has no such flavour.
        DeviceError: the device does not compute in that precision.
    """
    if (precision, device) == ("int8", "cuda"):
        raise DeviceError(
            "int8 runs on cpu, openvino and tensorrt: on CUDA ONNX Runtime would compute it in float32; "
            "ask for --precision fp16, or for --device tensorrt"
        )
    name = SIGNED_GRAPH if (precision, device) == ("int8", "tensorrt") else GRAPHS[precision]
    if name not in contract.files:
        calibrated = " --calibrate TRAIN" if precision == "int8" else ""
        raise ArtifactError(
            f"the model has no {name}: make it with reid-export MODEL --precision {precision}{calibrated} --verify DATA"
        )
    return name


def available_devices(precision: Precision = "fp32") -> list[Device]:
    """What can run a precision here, cpu first; never auto."""
    devices: list[Device] = ["cpu"]
    if find_spec("openvino") is not None:
        devices.append("openvino")
    if precision != "int8" and sees_cuda():
        devices.append("cuda")
    if _sees_tensorrt():
        devices.append("tensorrt")
    return devices


def start_session(
    artifact: Artifact, *, precision: Precision = "fp32", device: Device = "cpu", threads: int | None = None
) -> Session:
    """The session of an artifact on a device: on what was asked for, or not at all.

    On a CPU it takes so many `threads`, or all cores of the process.

    Raises:
        ArtifactError: the artifact has no such flavour or plan, or the engine does not take it.
        DeviceError: the device was not obtained.
    """
    if device == "auto":
        return _start_best(artifact, precision)
    if device == "tensorrt":
        return _start_plan(artifact, precision)
    model = (artifact.folder / graph_of(artifact.contract, precision=precision, device=device)).read_bytes()
    if device == "openvino":
        from reidserve.embed.openvino_session import OpenVinoSession

        return OpenVinoSession(model, precision=precision, threads=threads)
    return OnnxSession(model, device=device, precision=precision, threads=threads)


def is_unverified(contract: Contract, engine: str) -> bool:
    """Whether an engine computes something that the rank-parity gate has not let through on that very engine.

    model.onnx is what flavours are held to; its canaries alone show that an engine computes it.
    """
    if engine.startswith("fp32/") and "tensorrt" not in engine:
        return False
    made: list[Flavour | Plan] = [*contract.flavours.values(), *contract.plans.values()]
    return all(each.unverified or engine not in {check.engine for check in each.checks} for each in made)


def _start_best(artifact: Artifact, precision: Precision) -> Session:
    """A plan that fits this GPU, else CUDA, else the CPU; what is there and is not taken is said."""
    devices: list[Device] = []
    if any(plan.precision == precision for plan in artifact.contract.plans.values()):
        devices.append("tensorrt")
    if precision != "int8" and sees_cuda():
        devices.append("cuda")
    for device in devices:
        try:
            return start_session(artifact, precision=precision, device=device)
        except DeviceError as error:
            _logger.warning("--device auto does not take %s: %s", device, error)
    return start_session(artifact, precision=precision, device="cpu")


def _start_plan(artifact: Artifact, precision: Precision) -> Session:
    from reidserve.embed.tensorrt_session import TensorRtSession, find_platform, refusals

    here = find_platform()
    plans = {name: plan for name, plan in artifact.contract.plans.items() if plan.precision == precision}
    if not plans:
        raise ArtifactError(
            f"the model has no TensorRT plan in {precision}: build one here with "
            f"reid-export MODEL --tensorrt --precision {precision}"
        )
    fitting = [name for name, plan in plans.items() if not refusals(plan, here)]
    # Where none fits, the session says what is wrong with the last one.
    name = (fitting or list(plans))[-1]
    return TensorRtSession((artifact.folder / name).read_bytes(), plans[name], dim=artifact.contract.dim)


def _sees_tensorrt() -> bool:
    from reidserve.embed.tensorrt_session import find_platform

    try:
        find_platform()
    except DeviceError:
        return False
    return True
