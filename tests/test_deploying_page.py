"""The commands of docs/deploying.md that need no Docker and no cluster, run as they stand there."""

import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from reidserve.client import Client
from reidserve.errors import RequestError
from tests.conftest import BIN, write_crops

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
START_SECONDS = 120


def commands(section: str) -> list[str]:
    """A section's commands, in their order."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (\S.*)$", text, flags=re.MULTILINE)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REIDSERVE_")}
    return {**kept, "PATH": f"{BIN}:{os.environ['PATH']}"}


def run(line: str, folder: Path) -> str:
    ran = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, (line, ran.stderr)
    return ran.stdout


@pytest.fixture
def folder(tmp_path: Path, model: Path, gallery: Path) -> Path:
    """A checkout's root as far as the commands see it, with a model, a gallery and two images."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    shutil.copytree(model, tmp_path / "model")
    shutil.copytree(gallery, tmp_path / "mall.gallery")
    query, new = write_crops(tmp_path / "crops", pids=30)[3], tmp_path / "crops" / "0030_c2s1_000000_00.png"
    shutil.copy(query, tmp_path / "query.png")
    shutil.copy(new, tmp_path / "new.png")
    return tmp_path


def test_the_commands_for_a_cluster_make_what_is_mounted(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, for its kustomize")
    certificate = trustme.CA().issue_cert("reidserve.reid.svc")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    told = [
        line for line in commands("Kubernetes") if not line.startswith(("FROM", "COPY", "kubectl apply", "kubectl get"))
    ]
    kinds = [re.findall(r"^kind: (\w+)$", run(line, folder), flags=re.MULTILINE) for line in told]
    assert "Deployment" in kinds[0]
    assert kinds[1:] == [[], ["Secret"], ["Secret"]]


def test_several_servers_on_one_machine_write_and_search_as_the_page_says(folder):
    if shutil.which("haproxy") is None:
        pytest.skip("needs haproxy, which .ci/run installs")
    if shutil.which("taskset") is None or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors and taskset")
    lines = commands("Several servers on one machine")
    config = (ROOT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8")
    elsewhere = dict(zip(sorted(set(re.findall(r"\b(?:500[56]\d|808\d)\b", "\n".join(lines)))), ports(), strict=False))
    (folder / "deploy").unlink()
    (folder / "deploy").mkdir()
    (folder / "deploy" / "haproxy.cfg").write_text(moved(config, elsewhere))
    first, second = sorted(os.sched_getaffinity(0))[:2]
    with ExitStack() as opened:
        for line in (moved(line, elsewhere) for line in lines):
            line = line.replace("taskset -c 0", f"taskset -c {first}").replace("taskset -c 1", f"taskset -c {second}")
            if line.startswith(("reid-serve", "taskset", "haproxy -f")):
                start(line, folder, opened)
            else:
                wait_for_answers(elsewhere)
                said = run(line, folder)
    assert "0002_c2s1_000000_00.png" in said


def ports() -> list[int]:
    """More than there are on the page, which nobody has now."""
    with ExitStack() as held:
        found = []
        for _ in range(12):
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
        return found


def moved(text: str, elsewhere: dict[str, int]) -> str:
    return re.sub(r"\b(?:500[56]\d|808\d)\b", lambda found: str(elsewhere.get(found[0], found[0])), text)


def start(line: str, folder: Path, opened: ExitStack) -> None:
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    opened.callback(process.wait, 60)
    opened.callback(process.terminate)


def wait_for_answers(elsewhere: dict[str, int]) -> None:
    """Until all servers, and the proxy where it was started, answer."""
    until = time.monotonic() + START_SECONDS
    for port in ("50060", "50051", "50052"):
        with Client(f"127.0.0.1:{elsewhere[port]}", retries=0) as client:
            while True:
                try:
                    client.galleries()
                    break
                except RequestError:
                    assert time.monotonic() < until, "a server never came"
                    time.sleep(0.05)


def test_what_is_served_without_containers_is_checked(folder):
    (line,) = [line for line in commands("Without containers") if line.startswith("reid-serve")]
    assert "WRONG" not in run(line, folder)
