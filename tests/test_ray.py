"""A real Ray cluster of two nodes on loopback addresses: what its workers build is what one process builds."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reidserve.datasets import read_crops
from reidserve.embed import Embedder
from reidserve.index import Entry, build_gallery, read_snapshot
from tests.conftest import BIN, wait_for_entries, write_crops

pytest.importorskip("ray", reason="needs the [ray] extra")

HEAD, SECOND = "127.0.0.2", "127.0.0.3"
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="module")
def address() -> str:
    """Where a cluster may be."""
    with socket.create_server((HEAD, 0)) as free:
        return f"{HEAD}:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def nodes(address: str) -> Iterator[list[subprocess.Popen[str]]]:
    """What holds a cluster of two nodes there, of one processor each."""
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets lie there, whose names may not be long
    nodes = []
    try:
        head = ("--head", "--temp-dir", folder, "--port", address.partition(":")[2])
        nodes.append(start_node("--node-ip-address", HEAD, *head))
        nodes.append(start_node("--node-ip-address", SECOND, "--address", address))
        yield nodes
    finally:
        for node in reversed(nodes):
            end(node)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,400 crops, the first of which is no image."""
    folder = tmp_path_factory.mktemp("many") / "many"
    write_crops(folder, pids=600, camids=4)[0].write_text("no image")
    return folder


@pytest.fixture(scope="module")
def built(many: Path, tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("galleries") / "many.gallery"
    build_gallery(read_crops(many), many, out, embedder)
    return out


def start_node(*arguments: object) -> subprocess.Popen[str]:
    """A node with one processor, once it is one."""
    options = ("--num-cpus", "1", "--num-gpus", "0", "--min-worker-port", "0", "--max-worker-port", "0", "--block")
    command = [BIN / "ray", "start", "--disable-usage-stats", *options, *arguments]
    node = subprocess.Popen(
        list(map(str, command)), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert node.stdout is not None
    said = []
    for line in node.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            return node
    raise AssertionError("".join(said))


def end(node: subprocess.Popen[str]) -> None:
    started = below(node.pid)
    node.terminate()
    node.communicate(timeout=60)
    for process in started:
        if title_of(process):
            os.kill(process, signal.SIGKILL)


def below(process: int) -> list[int]:
    """The processes that a process started, and those that these did."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *below(child)]
    return found


def title_of(process: int) -> str:
    """What a process calls itself; nothing where it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def workers_of(node: subprocess.Popen[str]) -> list[int]:
    """The processes of a node that embed."""
    return [process for process in below(node.pid) if title_of(process).startswith("ray::Worker")]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"it never came that {what}"
        time.sleep(0.01)


def contents(out: Path) -> list[tuple[Entry, bytes]]:
    """Entries and the bits of their embeddings, in the order of rows."""
    snapshot = read_snapshot(out)
    return [(entry, snapshot.vector(snapshot.row(entry.id)).tobytes()) for entry in snapshot.entries()]


def start_build(
    crops: Path, out: Path, model: Path, address: str, *, environment: dict[str, str] = ENVIRONMENT
) -> subprocess.Popen[str]:
    command = [BIN / "reid-index", "build", crops, "--model", model, "--out", out, "--ray", address, "--json"]
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.usefixtures("nodes")
def test_two_nodes_build_what_one_process_builds_and_embed_nothing_twice(
    address: str, many: Path, built: Path, model: Path, tmp_path: Path
):
    out = tmp_path / "many.gallery"
    building = start_build(many, out, model, address)
    output, errors = building.communicate(timeout=120)
    report = json.loads(output)
    assert (building.returncode, errors) == (1, "")
    assert (report["workers"], report["nodes"], report["engine"]) == (2, 2, "fp32/onnxruntime-cpu")
    assert (report["entries"], report["embedded"]) == (2399, 2399)
    ((left_out, reason),) = report["failures"]
    assert Path(left_out).name == "0001_c1s1_000000_00.png"
    assert reason == "expected a JPEG, PNG, WEBP, BMP image, got 8 other bytes"
    assert contents(out) == contents(built)

    again = start_build(many, out, model, address)
    report = json.loads(again.communicate(timeout=120)[0])
    assert (report["embedded"], report["kept"], len(report["failures"])) == (0, 2399, 1)


def test_what_a_killed_worker_had_is_embedded_by_others(
    nodes: list[subprocess.Popen[str]], address: str, many: Path, built: Path, model: Path, tmp_path: Path
):
    out = tmp_path / "many.gallery"
    building = start_build(many, out, model, address)
    wait_for_entries(out, 256)
    (worker,) = workers_of(nodes[1])
    os.kill(worker, signal.SIGKILL)
    output, errors = building.communicate(timeout=120)
    assert errors == ""
    report = json.loads(output)
    assert (report["entries"], report["embedded"], len(report["failures"])) == (2399, 2399, 1)
    assert contents(out) == contents(built)


@pytest.mark.usefixtures("nodes")
def test_a_node_with_another_version_of_the_engine_is_refused_by_name(
    address: str, crops: Path, model: Path, tmp_path: Path
):
    (tmp_path / "onnxruntime-9.9.9.dist-info").mkdir()
    (tmp_path / "onnxruntime-9.9.9.dist-info" / "METADATA").write_text("Name: onnxruntime\nVersion: 9.9.9\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    out = tmp_path / "g.gallery"
    building = start_build(crops, out, model, address, environment=environment)
    output, _ = building.communicate(timeout=120)
    error = json.loads(output)["error"]
    assert (building.returncode, error["reason"]) == (1, "CLUSTER_UNAVAILABLE")
    assert f"node {HEAD} has onnxruntime" in error["message"] or f"node {SECOND} has onnxruntime" in error["message"]
    assert "where 9.9.9 was expected" in error["message"]
    assert not out.exists()


@pytest.mark.usefixtures("nodes")
def test_a_cluster_that_wants_a_token_says_so(address: str, crops: Path, model: Path, tmp_path: Path):
    environment = os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "2"}  # seconds, not twenty
    building = start_build(crops, tmp_path / "g.gallery", model, address, environment=environment)
    output, errors = building.communicate(timeout=120)
    error = json.loads(output)["error"]
    assert (building.returncode, error["reason"]) == (1, "CLUSTER_UNAVAILABLE")
    assert error["message"].startswith(f"no Ray cluster at {address}: ")
    assert "RAY_AUTH_TOKEN" in error["message"]
    assert errors == f"error: {error['message']}\n"


def test_one_machine_is_a_cluster_that_is_gone_after_the_build(crops: Path, model: Path, gallery: Path, tmp_path: Path):
    out, home = tmp_path / "g.gallery", tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "TMPDIR": tempfile.mkdtemp(prefix="ray-test-")}
    building = start_build(crops, out, model, "local", environment=environment)
    output, errors = building.communicate(timeout=120)
    report = json.loads(output)
    assert (building.returncode, errors) == (0, "")
    assert (report["workers"], report["nodes"]) == (len(os.sched_getaffinity(0)), 1)
    assert contents(out) == contents(gallery)
    assert not (home / ".ray").exists()
    assert not list(Path(environment["TMPDIR"]).glob("ray-*"))
    shutil.rmtree(environment["TMPDIR"])


def test_a_build_that_is_interrupted_leaves_no_worker_and_goes_on_even_where_a_node_is_lost(
    nodes: list[subprocess.Popen[str]], address: str, many: Path, built: Path, model: Path, tmp_path: Path
):
    out = tmp_path / "many.gallery"
    building = start_build(many, out, model, address)
    wait_for_entries(out, 256)
    building.send_signal(signal.SIGINT)
    _, errors = building.communicate(timeout=60)
    assert (building.returncode, errors) == (130, "error: interrupted\n")
    wait_until(lambda: not any(map(workers_of, nodes)), "the workers end")
    half = len(contents(out))

    building = start_build(many, out, model, address)
    wait_for_entries(out, half + 256)
    for process in (nodes[1].pid, *below(nodes[1].pid)):
        os.kill(process, signal.SIGKILL)
    output, errors = building.communicate(timeout=120)
    assert errors == ""
    report = json.loads(output)
    assert (report["nodes"], report["kept"], report["embedded"]) == (2, half, 2399 - half)
    assert contents(out) == contents(built)
