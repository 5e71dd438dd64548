"""The house itself: what is installed, generated and imported is what the design says."""

import configparser
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from reidserve.proto.inference import inference_pb2
from reidserve.proto.reid.v1 import reid_pb2
from tests.conftest import BIN, Server, run_command

ROOT = Path(__file__).parents[1]
ROOMS = ["client", "commands", "datasets", "embed", "errors", "evaluate", "export", "index", "proto", "server"]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    return parsed


def sources(*suffixes: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in suffixes or path.name in suffixes
    }


def test_every_folder_with_code_is_a_package_of_the_distribution(setup):
    packages = set(setup["options"]["packages"].split())
    expected = {f"reidserve.{Path(source).parent.as_posix().replace('/', '.')}" for source in sources(".py")}
    assert packages == expected


def test_the_wheel_and_the_sdist_hold_what_the_tree_holds(tmp_path: Path):
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = sources(".py", ".pyi", ".proto", ".css", ".html", ".jinja", ".js", ".svg", ".toml", "py.typed")
    assert files == {f"reidserve/{name}" for name in expected}
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert expected <= names


def test_the_namespace_has_no_file_of_its_own():
    import reidserve

    assert reidserve.__file__ is None


PROTOCOLS = {"reid/v1/reid": reid_pb2.DESCRIPTOR, "inference/inference": inference_pb2.DESCRIPTOR}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_generated_code_is_that_of_the_proto(tmp_path: Path, protocol: str):
    compiled = tmp_path / "compiled.binpb"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *("-Ireidserve/proto=proto", f"--descriptor_set_out={compiled}", f"reidserve/proto/{protocol}.proto"),
        ],
        cwd=ROOT,
        check=True,
    )
    (fresh,) = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    PROTOCOLS[protocol].CopyToProto(committed)
    # protoc keeps json_name only in descriptor sets; a map is a message within.
    for message in fresh.message_type:
        for field in (*message.field, *(field for within in message.nested_type for field in within.field)):
            field.ClearField("json_name")
    assert committed == fresh, "run scripts/proto"


def test_the_stubs_are_those_of_the_proto(tmp_path: Path):
    copy = tmp_path / "checkout"
    for name in ("scripts/proto", *(f"proto/{protocol}.proto" for protocol in PROTOCOLS)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    (copy / "scripts/proto").chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "REIDSERVE_VENV": str(BIN.parent)}
    subprocess.run([copy / "scripts/proto"], env=environment, check=True, capture_output=True)
    for fresh in (copy / "proto").rglob("*_pb2*"):
        generated = fresh.relative_to(copy)
        assert (ROOT / generated).read_text() == fresh.read_text(), f"run scripts/proto ({generated})"


def test_the_cpu_and_gpu_extras_exclude_each_other_and_the_base_has_neither(setup):
    extras = setup["options.extras_require"]
    engines = {
        name: {re.match(r"[\w-]+", line)[0] for line in extras[name].strip().splitlines()} - {"safetensors"}
        for name in ("cpu", "gpu", "gpu-cu12")
    }
    assert engines["cpu"] == {"onnxruntime", "faiss-cpu"}
    assert engines["gpu"] == {"onnxruntime-gpu", "faiss-gpu-cuvs"}
    assert engines["gpu-cu12"] == {"onnxruntime-gpu", "faiss-gpu"}
    base = setup["options"]["install_requires"]
    assert not any(name in base for name in ("onnx", "faiss", "torch"))


def test_each_constraint_is_what_is_installed():
    from importlib.metadata import PackageNotFoundError, version

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, pinned = line.partition("==")
        if not pinned:
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        assert installed.partition("+")[0] == pinned, f"{name} is not of the tested set"


def test_serving_imports_no_training_export_or_plotting_package(server: Server, model: Path, gallery: Path):
    script = (
        "import sys, threading, os, signal, pathlib, asyncio\n"
        "from reidserve.server import Settings, serve\n"
        "def ready(_):\n"
        "    unwanted = {'torch', 'onnx', 'matplotlib', 'scipy', 'reidserve.export', 'reidserve.evaluate'}\n"
        "    print(sorted(unwanted & set(sys.modules)))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "settings = Settings(pathlib.Path(sys.argv[1]), [pathlib.Path(sys.argv[2])], '127.0.0.1:0', 'cpu', 5.0)\n"
        "asyncio.run(serve(settings, on_ready=ready))"
    )
    served = subprocess.run(
        [sys.executable, "-P", "-c", script, model, gallery], capture_output=True, text=True, check=False
    )
    assert served.returncode == 0, served.stderr
    assert served.stdout.strip() == "[]"


def test_no_command_loads_an_engine_to_print_its_help():
    for command in ("reid-serve", "reid-index", "reid-eval", "reid-export", "reid-search", "reid-synth", "reid-train"):
        script = (
            "import sys, runpy\nsys.argv = [sys.argv[1], '--help']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
            "print('LOADED', sorted({'onnxruntime', 'onnx', 'numpy', 'torch'} & set(sys.modules)))"
        )
        shown = subprocess.run(
            [sys.executable, "-P", "-c", script, BIN / command], capture_output=True, text=True, check=True
        )
        assert shown.stdout.splitlines()[-1] == "LOADED []", command


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert run_command("reid-serve", "--version").stdout.strip() == version("reidserve")
