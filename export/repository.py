"""The model repository: a graph or a plan of an artifact as Triton serves it, its configuration with the contract."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from reidserve.embed import Artifact, Contract, Precision, graph_of, read_artifact
from reidserve.embed.canaries import CANARIES_FILE
from reidserve.embed.place import CANARIES_KEY, CONTRACT_KEY, PRECISION_KEY
from reidserve.errors import ArtifactError, OutputExistsError
from reidserve.export.convert.assembly import staged_folder, write_file

NAME = "reid"
CONFIG_FILE = "config.pbtxt"
_VERSION = "1"
_GRAPH_BATCH = 32
"""The largest batch of an ONNX graph, which takes any; a plan's is the largest that it was built for."""


@dataclass(frozen=True, slots=True)
class Written:
    """A model as it lies in a repository.

    Attributes:
        folder: of the model, which is called by this folder's name.
        files: what was written, by path below it.
        contract: what it fulfils.
    """

    folder: Path
    files: tuple[str, ...]
    contract: Contract


@dataclass(frozen=True, slots=True)
class _Runner:
    """What computes a file.

    Attributes:
        backend: Triton's word for it.
        file: what it is called there.
        kind: which processors its instances are on.
        batch: the largest batch.
    """

    backend: str
    file: str
    kind: str
    batch: int


def write_repository(
    folder: Path, repository: Path, *, precision: Precision = "fp32", plan: bool = False, force: bool = False
) -> Written:
    """Write an artifact's graph in some precision, or its plan, into a model repository, whole or not at all.

    Raises:
        ArtifactError: the artifact has no such flavour, or not one such plan.
        OutputExistsError: the repository has such a model, and `force` was not given, or something else in its place.
    """
    artifact = read_artifact(folder)
    out = repository / NAME
    _check_free(out, force=force)
    source, runner = _chosen(artifact.contract, precision, plan=plan)
    graph = artifact.contract.plans[source].graph if plan else source
    config = _config(artifact, artifact.folder / graph, runner, precision)
    with staged_folder(out) as stage:
        write_file(stage / CONFIG_FILE, config.encode())
        (stage / _VERSION).mkdir()
        write_file(stage / _VERSION / runner.file, (folder / source).read_bytes())
    return Written(out, (CONFIG_FILE, f"{_VERSION}/{runner.file}"), artifact.contract)


def _chosen(contract: Contract, precision: Precision, *, plan: bool) -> tuple[str, _Runner]:
    """The file of the artifact that is served, and by what."""
    if not plan:
        name = graph_of(contract, precision=precision, device="cpu")
        # On a GPU ONNX Runtime would compute int8 in float32.
        kind = "KIND_CPU" if precision == "int8" else "KIND_AUTO"
        return name, _Runner("onnxruntime", "model.onnx", kind, _GRAPH_BATCH)
    plans = [name for name, facts in contract.plans.items() if facts.precision == precision]
    if len(plans) != 1:
        raise ArtifactError(
            f"expected one TensorRT plan in {precision}, the model has {', '.join(sorted(plans)) or 'none'}: build it "
            "on a machine with the GPU that will serve, reid-export MODEL --tensorrt"
        )
    return plans[0], _Runner("tensorrt", "model.plan", "KIND_GPU", contract.plans[plans[0]].batches[-1])


def _config(artifact: Artifact, graph: Path, runner: _Runner, precision: Precision) -> str:
    """What config.pbtxt says; it has no name, so that the folder's name is the model's."""
    contract = artifact.contract
    ports = onnx.load(graph, load_external_data=False).graph
    parameters = {
        CONTRACT_KEY: msgspec.json.encode(contract).decode(),
        CANARIES_KEY: (artifact.folder / CANARIES_FILE).read_text(),
        PRECISION_KEY: precision,
    }
    return "\n".join(
        [
            f'backend: "{runner.backend}"',
            f'default_model_filename: "{runner.file}"',
            f"max_batch_size: {runner.batch}",
            _port("input", ports.input[0].name, "TYPE_UINT8", f"{contract.height}, {contract.width}, 3"),
            _port("output", ports.output[0].name, "TYPE_FP32", str(contract.dim)),
            "# A batch is whatever queued while the model computed; nothing waits for more.",
            "dynamic_batching { }",
            f"instance_group {{ kind: {runner.kind} }}",
            *(_IN_FULL if runner.kind == "KIND_AUTO" else ()),
            *_parameters(parameters),
            "",
        ]
    )


_IN_FULL = (
    "# Where it runs on a GPU: TF32, the default, would move every embedding.",
    'optimization { execution_accelerators { gpu_execution_accelerator { name: "cuda" '
    'parameters { key: "use_tf32" value: "0" } } } }',
)


def _port(way: str, name: str, kind: str, sizes: str) -> str:
    return f"{way} {{ name: {_quoted(name)} data_type: {kind} dims: [ {sizes} ] }}"


def _parameters(values: Mapping[str, str]) -> list[str]:
    return [
        f'parameters {{ key: "{key}" value {{ string_value: {_quoted(value)} }} }}' for key, value in values.items()
    ]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _check_free(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    strangers = sorted(path.name for path in out.iterdir() if path.name not in (CONFIG_FILE, _VERSION))
    if strangers or not (out / CONFIG_FILE).is_file():
        raise OutputExistsError(f"{out} holds something else ({', '.join(strangers[:5])}): name another repository")
    if not force:
        raise OutputExistsError(f"{out} holds a model already: name another repository, or replace it with --force")
