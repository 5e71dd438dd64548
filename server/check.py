"""What can be found wrong with settings before anything is served."""

import errno
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reidserve.embed import Embedder, open_embedder
from reidserve.errors import ConfigError, ReidError
from reidserve.index import open_gallery
from reidserve.index.place import Place
from reidserve.index.threshold import read_threshold
from reidserve.server.guard.keys_file import read_keys
from reidserve.server.guard.tls import read_certificate
from reidserve.server.settings import Settings, gallery_name, read_address

_PACKAGES = {
    "http": ("starlette", "uvicorn"),
    "telemetry": ("prometheus_client", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one thing.

    Attributes:
        what: the thing, such as "model" or "gallery crops".
        fact: what is known of it; empty where it is wrong.
        fault: what is wrong with it; None where nothing is.
    """

    what: str
    fact: str
    fault: str | None = None


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Look at everything that a server of these settings would open, and serve nothing.

    Galleries are opened to be read, so that a server that writes to them is not disturbed.
    """
    if settings.http is not None:
        yield _find("packages of http", partial(_check_packages, "http"))
    if settings.metrics or settings.otlp is not None:
        yield _find("packages of telemetry", partial(_check_packages, "telemetry"))
    yield from _check_model(settings)
    for what, folder in (
        ("models-root", settings.models_root),
        ("galleries-root", settings.galleries_root),
        ("sources-root", settings.sources_root),
        ("snapshots", settings.snapshots),
        ("audit", None if settings.audit is None else settings.audit.absolute().parent),
    ):
        if folder is not None:
            yield _find(what, partial(_check_folder, folder, writes=not what.endswith("root")))
    if settings.tls_cert is not None and settings.tls_key is not None:
        yield _find("tls", partial(_check_certificates, settings.tls_cert, settings.tls_key, settings.tls_client_ca))
    if settings.keys is not None:
        yield _find("keys", partial(_check_keys, settings.keys))
    for what, address in (("listen", settings.listen), ("http", settings.http)):
        if address is not None:
            yield _find(what, partial(_check_port, address, what))


def _check_packages(extra: str) -> str:
    for package in _PACKAGES[extra]:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(f"the package {package} is not installed: pip install 'reidserve[{extra}]'")
    return f"{', '.join(_PACKAGES[extra])} installed"


def _find(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, look())
    except ReidError as error:
        return Finding(what, "", str(error))
    except OSError as error:
        return Finding(what, "", f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _check_model(settings: Settings) -> Iterator[Finding]:
    identity: str | None = None

    def look() -> str:
        nonlocal identity
        embedder: Embedder = open_embedder(settings.model, precision=settings.precision, device=settings.device)
        identity = embedder.contract.identity
        return f"{identity[:12]} on {embedder.engine}, canaries hold{', unverified' * embedder.unverified}"

    yield _find("model", look)
    if settings.threshold is not None:
        yield _find("threshold", partial(_check_threshold, settings.threshold, identity))
    for place in settings.galleries:
        yield _find(f"gallery {gallery_name(place)}", partial(_check_gallery, place, settings, identity))


def _check_threshold(path: Path, identity: str | None) -> str:
    return str(read_threshold(path, identity=identity).score)


def _check_gallery(place: Place, settings: Settings, identity: str | None) -> str:
    gallery = open_gallery(
        place,
        identity=identity,
        kind=settings.index,
        device=settings.index_device,
        max_memory=settings.max_memory,
    )
    snapshot = gallery.snapshot
    damaged = f", {len(snapshot.damaged)} damaged left out" if snapshot.damaged else ""
    fact = f"{len(snapshot)} entries at generation {snapshot.generation}, {snapshot.kind}{damaged}"
    gallery.close()
    return fact


def _check_folder(folder: Path, *, writes: bool) -> str:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: make it, or name another")
    if not os.access(folder, os.W_OK | os.X_OK if writes else os.R_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be {'written to' if writes else 'read'} by user {os.geteuid()}")
    return "can be written to" if writes else "can be read"


def _check_certificates(cert: Path, key: Path, client_ca: Path | None) -> str:
    read_certificate(cert, key, client_ca)
    return "callers need none of their own" if client_ca is None else "callers need a certificate"


def _check_keys(path: Path) -> str:
    keys = read_keys(path).keys
    if not keys:
        raise ConfigError(f"{path} has no key, so that nobody could ask for anything: reid-keys add")
    return f"{len(keys)} keys: {', '.join(key.name for key in keys)}"


def _check_port(address: str, name: str) -> str:
    host, port = read_address(address, name=name)
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return "free"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            # A server that is about to make room has it.
            return "in use now, which must end before this server starts"
        raise ConfigError(f"--{name} {address} cannot be listened on: {error.strerror or error}") from error
