"""Starting from weights that are fetched or another project's."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reidserve.errors import CheckpointError, UsageError

torch = pytest.importorskip("torch", reason="needs reidserve[train]")

from reidserve.export.checkpoints import load_pretrained, write_checkpoint  # noqa: E402
from reidserve.export.model import Architecture, Network, build_network  # noqa: E402
from reidserve.export.train import Settings, check_start, claim_folder  # noqa: E402
from reidserve.export.train.recipes import change  # noqa: E402

SMALL = Architecture(backbone="resnet18", ibn="a", classes=5)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a real server shows it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


def as_imagenet(network: Network) -> dict[str, Any]:
    """The tensors of a network without neck as torchvision and IBN-Net name them."""
    return {
        name.removeprefix("backbone.").replace("classifier.", "fc."): tensor
        for name, tensor in network.state_dict().items()
    }


def test_weights_of_a_url_are_those_of_the_file_also_when_it_has_gone(site: tuple[Path, str]):
    folder, address = site
    theirs = build_network(SMALL, seed=1)
    write_checkpoint(folder / "w.safetensors", theirs, {})
    sha256 = hashlib.sha256((folder / "w.safetensors").read_bytes()).hexdigest()
    source = f"{address}/w.safetensors#sha256={sha256}"
    size = (folder / "w.safetensors").stat().st_size
    assert fetched_bytes(source, theirs)[-1] == size
    (folder / "w.safetensors").unlink()
    assert fetched_bytes(source, theirs) == []


def test_a_run_fetches_before_images_are_read_and_tells_how_far_it_is(site: tuple[Path, str], tmp_path: Path):
    folder, address = site
    write_checkpoint(folder / "w.safetensors", build_network(SMALL, seed=1), {})
    data = (folder / "w.safetensors").read_bytes()
    source = f"{address}/w.safetensors#sha256={hashlib.sha256(data).hexdigest()}"
    settings = change(Settings(), ["network.arch=resnet18_ibn_a", f"init.pretrained={source}"])
    heard: list[tuple[int, int]] = []
    with claim_folder(tmp_path / "run", settings) as run:
        check_start(settings, run, progress=lambda *at: heard.append(at))
    assert heard[-1] == (len(data), len(data))


def fetched_bytes(source: str, theirs: Network) -> list[int]:
    """Start a network from a source, see that it has all of `theirs` but the classifier, and say what was heard."""
    heard: list[int] = []
    ours = build_network(SMALL, seed=2)
    left = load_pretrained(ours, source, progress=lambda done, total: heard.append(done))
    assert [line.partition(":")[0] for line in left] == ["classifier.weight"]
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]) == (name != "classifier.weight"), name
    return heard


def test_a_url_that_says_another_sum_or_none_starts_nothing(site: tuple[Path, str]):
    folder, address = site
    write_checkpoint(folder / "w.safetensors", build_network(SMALL, seed=1), {})
    ours = build_network(SMALL, seed=2)
    before = ours.backbone.conv1.weight.detach().clone()
    with pytest.raises(CheckpointError, match="is not the file that was meant"):
        load_pretrained(ours, f"{address}/w.safetensors#sha256={'0' * 64}")
    with pytest.raises(UsageError, match="says no sha256"):
        load_pretrained(ours, f"{address}/w.safetensors")
    assert torch.equal(ours.backbone.conv1.weight, before)


def test_another_projects_file_is_accounted_for_before_anything_is_taken(tmp_path: Path):
    theirs = as_imagenet(build_network(Architecture(backbone="resnet18", ibn="a", neck="no", classes=9), seed=1))
    ours = build_network(SMALL, seed=2)
    before = ours.backbone.conv1.weight.detach().clone()
    torch.save(theirs | {"layer5.weight": torch.ones(3)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"left over: layer5\.weight"):
        load_pretrained(ours, tmp_path / "more.pth")
    torch.save({name: theirs[name] for name in theirs if name != "layer4.1.conv2.weight"}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"missing: layer4\.1\.conv2\.weight"):
        load_pretrained(ours, tmp_path / "less.pth")
    assert torch.equal(ours.backbone.conv1.weight, before)
    torch.save(theirs, tmp_path / "whole.pth")
    left = load_pretrained(ours, tmp_path / "whole.pth")
    assert [line.partition(":")[0].partition(",")[0] for line in left] == ["fc.weight", "fc.bias", "neck.weight"]
    assert torch.equal(ours.state_dict()["backbone.layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
