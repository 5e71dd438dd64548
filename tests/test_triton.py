"""A real Triton, the one inside the wheel of nvidia-pytriton, serves what reid-export --triton wrote.

Its build has the Python backend only, so that a few lines of Python run the graph with ONNX Runtime in Triton's own.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from reidserve.client import Client
from reidserve.embed import ModelUrl, open_embedder
from reidserve.errors import BackendUnavailableError, RequestError
from tests.conftest import DIM, HEIGHT, WIDTH, run_command, start_server, stop_server

if find_spec("pytriton") is None:
    pytest.skip("needs nvidia-pytriton beside the path (docs/remote.md)", allow_module_level=True)

# Its Python is another build than ours, which it is told where to find packages; its arrays come by DLPack, since
# its pybind11 is older than NumPy 2.
PROGRAM = f"""
import sys
sys.path.insert(0, {sysconfig.get_path("purelib")!r})
from pathlib import Path
import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        crops = np.from_dlpack(triton.get_input_tensor_by_name(request, "crops"))
        (rows,) = self.session.run(["embeddings"], {{"crops": crops}})
        return triton.InferenceResponse([triton.Tensor.from_dlpack("embeddings", rows)])
"""


@dataclass
class Triton:
    process: subprocess.Popen[bytes]
    url: ModelUrl


@pytest.fixture(scope="module")
def repository(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes, but for what computes it."""
    out = tmp_path_factory.mktemp("repositories")
    written = run_command("reid-export", model, "--triton", out)
    assert written.returncode == 0, written.stderr
    config = out / "reid" / "config.pbtxt"
    text = config.read_text().replace('backend: "onnxruntime"', 'backend: "python"')
    config.write_text(text.replace('default_model_filename: "model.onnx"', 'default_model_filename: "model.py"'))
    (out / "reid" / "1" / "model.py").write_text(PROGRAM)
    return out


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = find_spec("pytriton")
    assert found is not None
    assert found.origin is not None
    server = Path(found.origin).parent / "tritonserver"
    out = tmp_path_factory.mktemp("backends")
    shutil.copytree(server / "backends" / "python", out / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = out / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    return out


def start_triton(repository: Path, backends: Path, port: int) -> Triton:
    found = find_spec("pytriton")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    program = package / "tritonserver" / "bin" / "tritonserver"
    program.chmod(0o755)
    process = subprocess.Popen(
        [
            *(program, "--model-repository", repository, "--backend-directory", backends),
            *("--grpc-address", "127.0.0.1", "--grpc-port", str(port)),
            *("--allow-http", "false", "--allow-metrics", "false"),
        ],
        env=os.environ | {"LD_LIBRARY_PATH": str(package.parent / "nvidia_pytriton.libs")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    triton = Triton(process, ModelUrl(f"127.0.0.1:{port}", "reid"))
    deadline = time.monotonic() + 60
    while True:
        try:
            open_embedder(triton.url)
            return triton
        except BackendUnavailableError:
            assert process.poll() is None, f"Triton ended with {process.returncode}"
            assert time.monotonic() < deadline, "Triton never was ready"
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def kill(triton: Triton) -> None:
    triton.process.kill()
    triton.process.wait(10)


def wait_until_back(ask: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ask()
            return
        except RequestError as error:
            if error.reason != "BACKEND_UNAVAILABLE":
                raise
            time.sleep(0.1)
    raise AssertionError("it never was back")


@pytest.fixture
def triton(repository: Path, backends: Path) -> Iterator[Triton]:
    started = start_triton(repository, backends, free_port())
    yield started
    kill(started)


def test_triton_computes_the_bits_of_the_local_model(triton: Triton, model: Path):
    far, near = open_embedder(triton.url), open_embedder(model)
    assert (far.engine, far.max_batch, far.contract) == ("fp32/remote-python", 32, near.contract)
    crops = np.random.default_rng(5).integers(0, 256, (40, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for count in (1, 5, 32, 40):
        rows = far.embed(crops[:count])
        assert rows.shape == (count, DIM)
        np.testing.assert_array_equal(rows, near.embed(crops[:count]))


def test_a_server_on_triton_answers_as_alone_and_survives_its_death(
    server, triton: Triton, repository: Path, backends: Path, gallery: Path, crops: Path
):
    paths = sorted(crops.iterdir())[:10]
    served = start_server("--model", triton.url, "--gallery", gallery, "--read-only")
    again = None
    try:
        with Client(served.target, retries=0) as through, Client(server.target) as alone:

            def same() -> bool:
                far = [[(hit.entry_id, hit.score) for hit in through.search(path).hits] for path in paths]
                return far == [[(hit.entry_id, hit.score) for hit in alone.search(path).hits] for path in paths]

            assert same()
            kill(triton)
            with pytest.raises(RequestError) as failed:
                through.search(paths[0])
            assert (failed.value.code, failed.value.reason) == ("UNAVAILABLE", "BACKEND_UNAVAILABLE")
            assert failed.value.retry_after == 1.0
            again = start_triton(repository, backends, int(triton.url.address.rpartition(":")[2]))
            wait_until_back(lambda: through.search(paths[0]))
            assert same()
    finally:
        assert stop_server(served) == 0
        if again is not None:
            kill(again)
