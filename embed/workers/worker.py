"""A worker: a process somewhere in a cluster that decodes and embeds what it is given."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reidserve.embed.ahead import map_ahead
from reidserve.embed.artifact import CONTRACT_FILE, Artifact, read_artifact
from reidserve.embed.contract import Precision
from reidserve.embed.embedder import Embedder, Embedding, open_embedder
from reidserve.embed.engines import Device
from reidserve.embed.images import Image
from reidserve.embed.workers.cluster import node
from reidserve.errors import ClusterError, ImageError, ReidError

_PACKAGES = ("reidserve", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu")
_MORE_PACKAGES: Mapping[Device, Sequence[str]] = {
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12"),
}


@dataclass(frozen=True, slots=True)
class Orders:
    """What every worker is to be.

    Attributes:
        precision: of the flavour that it runs.
        device: what it runs it on.
        threads: of its engine, on a CPU, and of its decoding.
        versions: of the packages that decide what an embedding is, by name.
    """

    precision: Precision
    device: Device
    threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says once it can embed.

    Attributes:
        node: address of the machine that it runs on.
        engine: such as "fp32/onnxruntime-cpu".
        canaries: sha256 of what it makes of the canaries: equal where the last bits are.
    """

    node: str
    engine: str
    canaries: str


class Worker:
    """One engine, in a process of its own."""

    def start(self, files: Mapping[str, bytes], orders: Orders) -> Ready:
        """Become ready, or refuse.

        Raises:
            ClusterError: another version of what decides an embedding is installed here.
            ArtifactError, DeviceError: as `open_embedder`.
        """
        _check_versions(orders.versions)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            self._embedder: Embedder = open_embedder(
                Path(folder), precision=orders.precision, device=orders.device, threads=orders.threads
            )
            canaries = self._embedder.embed_encoded(read_artifact(Path(folder)).canaries.images)
        self._threads = orders.threads
        return Ready(node(), self._embedder.engine, hashlib.sha256(canaries.tobytes()).hexdigest())

    def embed(self, images: Sequence[bytes]) -> list[Embedding | ReidError]:
        """Per encoded image its embedding (dim,), or what was wrong with it."""
        prepared = list(map_ahead(self._prepare, images, ahead=len(images), threads=self._threads))
        pixels = [one for one in prepared if not isinstance(one, ImageError)]
        answers = iter(self._embedder.embed_each(pixels) if pixels else ())
        return [one if isinstance(one, ImageError) else next(answers) for one in prepared]

    def _prepare(self, data: bytes) -> Image | ImageError:
        try:
            return self._embedder.prepare(data)
        except ImageError as error:
            return error


def read_files(artifact: Artifact) -> dict[str, bytes]:
    """All files of an artifact by name: machines need no folder in common."""
    return {name: (artifact.folder / name).read_bytes() for name in (CONTRACT_FILE, *artifact.contract.files)}


def versions_for(device: Device) -> dict[str, str]:
    """The versions that are installed here of what decides an embedding: ourselves, the decoder, the engine."""
    found = {package: _version(package) for package in (*_PACKAGES, *_MORE_PACKAGES.get(device, ()))}
    return {package: number for package, number in found.items() if number is not None}


def _check_versions(expected: Mapping[str, str]) -> None:
    differences = [
        f"{package} {_version(package) or '(none)'} where {number} was expected"
        for package, number in expected.items()
        if _version(package) != number
    ]
    if differences:
        raise ClusterError(f"node {node()} has {', '.join(differences)}: install the same on every machine")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
