"""What tests share: a small real model, a small real gallery, a real server, and the photographs where they are."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from reidserve.datasets import read_crops
from reidserve.embed import Embedder, Preprocessing, open_embedder
from reidserve.errors import GalleryError
from reidserve.export.convert import Feeding, adopt
from reidserve.index import build_gallery
from reidserve.index.storage.store import open_store
from reidserve.server.queries.ranker import Found, Query, rank_together
from tests.backends import BACKENDS, Backend, lite_folder
from tests.milvus_running import RunningMilvus

BIN = Path(sys.executable).parent
HEIGHT, WIDTH, DIM = 64, 32, 24
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), colour="rgb")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The photographs, model and golden vectors that stand beside a developer's checkout and nowhere else."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the photographs beside a developer's checkout")
    return folder


@pytest.fixture(scope="session")
def milvus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Milvus server, one for all tests that do not kill it."""
    server = RunningMilvus(tmp_path_factory.mktemp("milvus"))
    try:
        server.start()
        yield server.address
    finally:
        server.kill()


@pytest.fixture(scope="session")
def lite_address() -> Iterator[str]:
    """A file of Milvus Lite."""
    with lite_folder() as folder:
        yield str(folder / "lite.db")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Each of what may hold a gallery."""
    return backend_of(request, tmp_path)


def backend_of(request: pytest.FixtureRequest, folder: Path) -> Backend:
    """What the parameter of a fixture names; folders of galleries are made in `folder`."""
    fixtures = {"milvus-lite": "lite_address", "milvus": "milvus_address"}
    address = request.getfixturevalue(fixtures[request.param]) if request.param in fixtures else None
    return Backend(request.param, folder, address)


def foreign_model(
    *,
    seed: int = 0,
    shape: tuple[int | str, ...] = ("N", 3, HEIGHT, WIDTH),
    edit: Callable[[onnx.GraphProto], None] = lambda graph: None,
) -> onnx.ModelProto:
    """A small convolutional network with seeded weights: float32 (N, 3, 64, 32) in, (N, 24) out."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *size: int) -> onnx.TensorProto:
        values = rng.standard_normal(size) / np.sqrt(np.prod(size[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "w1", "b1"], ["c1"], kernel_shape=[5, 5], strides=[2, 2]),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], kernel_shape=[3, 3], strides=[2, 2]),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("AveragePool", ["r2"], ["p"], kernel_shape=[4, 4], strides=[3, 2]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "w3"], ["feature"]),
        ],
        "small",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["N", DIM])],
        [
            weight("w1", 8, 3, 5, 5),
            weight("b1", 8, 1),
            weight("w2", 16, 8, 3, 3),
            weight("b2", 16, 1),
            weight("w3", 16 * 4 * 2, DIM),
        ],
    )
    for tensor in graph.initializer:
        if tensor.name.startswith("b"):
            del tensor.dims[1:]
    edit(graph)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save_onnx(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact, 64 x 32 in, 24 dimensions out."""
    folder = tmp_path_factory.mktemp("models")
    foreign = save_onnx(foreign_model(), folder / "small.onnx")
    adopt(foreign, folder / "model", Feeding(height=HEIGHT, width=WIDTH, resize="bilinear", preprocessing=IMAGENET))
    return folder / "model"


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact like `model` with other weights: another identity."""
    folder = tmp_path_factory.mktemp("models")
    foreign = save_onnx(foreign_model(seed=1), folder / "small.onnx")
    adopt(foreign, folder / "model", Feeding(height=HEIGHT, width=WIDTH, resize="bilinear", preprocessing=IMAGENET))
    return folder / "model"


@pytest.fixture(scope="session")
def osnet(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adopted network trained by others: OSNet x0.25 (MSMT17)."""
    out = tmp_path_factory.mktemp("models") / "osnet"
    foreign = shared / "models" / "osnet_x0_25_msmt17.onnx"
    adopt(foreign, out, Feeding(height=256, width=128, resize="bilinear", preprocessing=IMAGENET))
    return out


@pytest.fixture(scope="session")
def embedder(model: Path) -> Embedder:
    return open_embedder(model)


def draw_crop(pid: int, camid: int, *, frame: int = 0) -> NDArray[np.uint8]:
    """A crop (70, 36, 3): blocks that the pid decides, light that the camera decides, noise that the frame decides."""
    blocks = np.random.default_rng(pid).integers(0, 256, (7, 4, 3)).repeat(10, axis=0).repeat(9, axis=1)
    noise = np.random.default_rng((pid, camid, frame)).integers(-30, 31, blocks.shape)
    return np.clip(blocks * (0.6 + 0.1 * camid) + noise, 0, 255).astype(np.uint8)


def write_crops(folder: Path, *, pids: int, camids: int = 2, frames: int = 1) -> list[Path]:
    """Crops with the file names of Market-1501, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for pid in range(1, pids + 1):
        for camid in range(1, camids + 1):
            for frame in range(frames):
                paths.append(folder / f"{pid:04}_c{camid}s1_{frame:06}_00.png")
                Image.fromarray(draw_crop(pid, camid, frame=frame)).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 crops: 20 pids, 2 cameras."""
    folder = tmp_path_factory.mktemp("crops") / "crops"
    write_crops(folder, pids=20)
    return folder


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory, crops: Path, embedder: Embedder) -> Path:
    """A gallery of `crops`."""
    out = tmp_path_factory.mktemp("galleries") / "crops.gallery"
    build_gallery(read_crops(crops), crops, out, embedder)
    return out


def unit_rows(rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    rows = rng.standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def found_together(queries: Sequence[Query]) -> list[Found]:
    """What queries find that are ranked together, none of which fails."""
    found = [one for one in rank_together(queries) if isinstance(one, Found)]
    assert len(found) == len(queries)
    return found


def run_command(
    name: str, *arguments: object, cwd: Path | None = None, timeout: float = 120, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run an installed console command as a person would."""
    return subprocess.run(  # type: ignore[call-overload]
        [BIN / name, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def wait_for_entries(out: Path, count: int) -> None:
    """Wait until a child process has committed so many entries."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            store = open_store(out)
        except GalleryError:
            time.sleep(0.002)
            continue
        found = len(store.ids())
        store.close()
        if found >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"the build never got to {count} entries")


@dataclass
class Server:
    process: subprocess.Popen[str]
    target: str
    identity: str


def start_server(*arguments: object) -> Server:
    """A real `reid-serve` on a free port, ready to answer."""
    here = ("--listen", "127.0.0.1:0", *(() if "--probe-period" in arguments else ("--probe-period", "0")))
    process = subprocess.Popen(
        [BIN / "reid-serve", *here, "--json", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(f"reid-serve ended with {process.wait(10)} before it was ready")
    ready = json.loads(line)
    return Server(process, ready["listening"], ready["identity"])


def stop_server(server: Server) -> int:
    server.process.terminate()
    code = server.process.wait(30)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return code


@pytest.fixture(scope="session")
def server(model: Path, gallery: Path) -> Iterator[Server]:
    """A server of `model` and `gallery`, which others may write to; ends with exit code 0."""
    running = start_server("--model", model, "--gallery", gallery, "--read-only")
    yield running
    assert stop_server(running) == 0


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: on shared cores threads of small networks wait for each other longer than they compute."""
    torch = pytest.importorskip("torch", reason="needs reidserve[train]")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
