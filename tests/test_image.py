"""The Dockerfile without Docker: its commands in a fresh environment, its server as its user, its health check."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_deploying import ROOT, USER, said_by

pytestmark = pytest.mark.slow
PLACE = "/opt/reidserve"


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Where the Dockerfile's first stage installed, in a folder that everybody may read."""
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    folder.chmod(0o755)
    source, place = folder / "source", folder / "opt"
    ignored = shutil.ignore_patterns(*(ROOT / ".dockerignore").read_text().replace("**/", "").split())
    shutil.copytree(ROOT, source, ignore=ignored)
    (build,) = [said for said in said_by("RUN") if "pip install" in said]
    build = build.replace(PLACE, str(place)).replace("${ENGINE}", said_by("ARG")[1].partition("=")[2])
    path = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
    try:
        subprocess.run(["sh", "-ec", build], cwd=source, env={**os.environ, "PATH": path}, check=True, timeout=900)
        shutil.rmtree(source)
        yield place
    finally:
        shutil.rmtree(folder)


def test_the_image_has_no_torch_and_all_that_serves(image):
    listed = subprocess.run([image / "bin/pip", "list", "--format", "json"], capture_output=True, check=True, text=True)
    names = {package["name"].lower().replace("_", "-") for package in json.loads(listed.stdout)}
    assert {"reidserve", "onnxruntime", "faiss-cpu", "starlette", "prometheus-client"} <= names
    assert not {"torch", "onnx", "matplotlib", "pytest"} & names
    checked = subprocess.run([image / "bin/pip", "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_its_server_starts_as_its_user_answers_its_health_check_and_writes_only_where_it_says(image, model, gallery):
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to be the image's user")
    data = image.parent / "data"
    shutil.copytree(model, data / "model")
    shutil.copytree(gallery, data / "galleries" / "crops.gallery")
    for path in [data / "galleries", *(data / "galleries").rglob("*")]:
        os.chown(path, USER, USER)
    as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    environment = {"PATH": f"{image}/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
    entry, arguments = json.loads(said_by("ENTRYPOINT")[0]), json.loads(said_by("CMD")[0])
    said = ["galleries/crops.gallery" if word == "gallery.gallery" else word for word in arguments]
    said = [word.replace("0.0.0.0:50051", "127.0.0.1:0") for word in said]
    server = subprocess.Popen(
        [*as_user, *entry, *said, "--probe-period", "0", "--json"],
        cwd=data, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        ready = json.loads(server.stdout.readline())
        _, _, check = said_by("HEALTHCHECK")[0].partition("CMD ")
        probe = [*as_user, *(word.replace("127.0.0.1:50051", ready["listening"]) for word in json.loads(check))]
        # By its path: this machine's Python may lie where only root can look for it.
        probe[len(as_user)] = f"{image}/bin/{probe[len(as_user)]}"
        assert subprocess.run(probe, env=environment, timeout=60, check=False).returncode == 0
        written = [path for path in image.parent.rglob("*") if path.lstat().st_uid == USER]
        assert all(path.is_relative_to(data / "galleries") for path in written)
    finally:
        server.terminate()
        assert server.wait(60) == 0
        server.stdout.close()
    assert subprocess.run(probe, env=environment, timeout=60, check=False, stderr=subprocess.DEVNULL).returncode != 0
