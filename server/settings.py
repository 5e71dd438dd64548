"""What a server can be told: every setting, its default, and what does not fit together."""

import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from reidserve.embed import Device, ModelPlace, Precision
from reidserve.errors import ConfigError
from reidserve.index import IndexDevice, IndexKind
from reidserve.index.place import GalleryUrl, Place

LogFormat = Literal["pretty", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEAST_MESSAGE, _MOST_MESSAGE = 2**16, 2**30
_LONGEST = 86_400.0
_SHORTEST_RETENTION, _LONGEST_RETENTION = 3600, 36_525 * 86_400


@dataclass(frozen=True, slots=True)
class Settings:
    """What to serve, where, to whom and within which limits.

    Attributes:
        model: the artifact's folder, or where another server computes it.
        galleries: the galleries' places; a folder's name is its own without .gallery, a URL's what it ends in.
        listen: host:port of gRPC; port 0 takes a free one.
        device: what runs the model.
        grace: how long calls under way may take after SIGTERM, seconds.
        index: how rows are searched.
        index_device: where rows are searched.
        max_memory: what each gallery's entries may take, bytes; None for no limit. Of folders, as the index is.
        threshold: the file of the model's calibrated threshold; None for none.
        precision: which flavour of the model runs.
        models_root: the folder below which Reload finds models; None where it may only read the first one again.
        galleries_root: the folder below which Reload finds galleries; None where it may not change them.
        snapshots: the folder that CreateSnapshot writes into; None where it may not.
        thumbnails: of images that are written from now on, galleries keep small pictures.
        sources_root: the folder below which lie images that may be shown, small, of entries without a thumbnail; None
            for none.
        retain: how old entries may become before they are removed, seconds; None where they stay.
        read_only: galleries are only read, and other processes may write to them.
        http: host:port of HTTP; None for none.
        reflection: gRPC says which calls there are.
        probe_period: how long health says NOT_SERVING on SIGTERM before calls are refused, seconds.
        deadline: how long a call may take whose caller set no deadline, seconds.
        images_in_flight: how many images may be under way.
        images_per_call: how many images one call may carry.
        message_bytes: how large a message may be, bytes.
        batch: how many images a lane of the engine computes at once; None for what is best for it.
        keys: the file of API keys; None where anyone may ask for anything.
        tls_cert: the certificate chain, PEM; None for no TLS.
        tls_key: its private key, PEM.
        tls_client_ca: who signs the certificates that callers must have, PEM; None where they need none.
        insecure: addresses beyond this machine may be listened on without TLS, and without asking who comes.
        audit: the file to which writes and admin calls are appended, a JSON line each; None for none.
        log_format: lines for people, or JSON lines.
        log_level: the least that is logged.
        metrics: calls are counted for Prometheus, at /metrics of HTTP.
        otlp: the URL of the OTLP/HTTP collector that gets traces; None for none.
        trace_ratio: how many of the calls that come without a trace begin one, 0 to 1.

    Raises:
        ConfigError: a value is out of its bounds, or two do not fit together.
    """

    model: ModelPlace
    galleries: Sequence[Place]
    listen: str = "127.0.0.1:50051"
    device: Device = "cpu"
    grace: float = 30.0
    index: IndexKind = "auto"
    index_device: IndexDevice = "cpu"
    max_memory: int | None = None
    threshold: Path | None = None
    precision: Precision = "fp32"
    models_root: Path | None = None
    galleries_root: Path | None = None
    snapshots: Path | None = None
    thumbnails: bool = False
    sources_root: Path | None = None
    retain: int | None = None
    read_only: bool = False
    http: str | None = None
    reflection: bool = True
    probe_period: float = 1.0
    deadline: float = 30.0
    images_in_flight: int = 256
    images_per_call: int = 64
    message_bytes: int = 32 * 2**20
    batch: int | None = None
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    audit: Path | None = None
    log_format: LogFormat = "pretty"
    log_level: LogLevel = "info"
    metrics: bool = False
    otlp: str | None = None
    trace_ratio: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers()
        _check_names(self.galleries)
        self._check_memory()
        self._check_addresses()
        self._check_tls()
        if self.read_only and (self.thumbnails or self.retain is not None):
            raise ConfigError("--thumbnails and --retain write to the galleries, which --read-only forbids")
        if self.metrics and self.http is None:
            raise ConfigError("--metrics are shown at /metrics of HTTP: give --http HOST:PORT too")
        if self.otlp is not None:
            _check_url(self.otlp)

    def _check_numbers(self) -> None:
        _check("grace", self.grace, 0, _LONGEST)
        _check("probe-period", self.probe_period, 0, _LONGEST)
        _check("deadline", self.deadline, 0.001, _LONGEST)
        _check("images-in-flight", self.images_in_flight, 1, 2**20)
        _check("message-bytes", self.message_bytes, _LEAST_MESSAGE, _MOST_MESSAGE)
        _check("trace-ratio", self.trace_ratio, 0, 1)
        if self.retain is not None:
            _check("retain", self.retain, _SHORTEST_RETENTION, _LONGEST_RETENTION)
        if self.batch is not None:
            _check("batch", self.batch, 1, 4096)
        if self.max_memory is not None:
            _check("max-memory", self.max_memory, 1, 2**60)
        # They are admitted together or not at all.
        _check("images-per-call", self.images_per_call, 1, self.images_in_flight)

    def _check_memory(self) -> None:
        """See that nothing is said of entries in this process's memory where a gallery has none there."""
        elsewhere = [place for place in self.galleries if isinstance(place, GalleryUrl)]
        if elsewhere and (self.thumbnails or self.retain is not None):
            raise ConfigError(
                f"--thumbnails and --retain are of folders, and {elsewhere[0]} is in Milvus, which keeps no thumbnails "
                "and clears its files of what was removed in its own time: serve folders by a server of their own"
            )
        said = {"max-memory": self.max_memory, "index": self.index, "index-device": self.index_device}
        ours = {"max-memory": None, "index": "auto", "index-device": "cpu"}
        if elsewhere and (flags := [f"--{name}" for name, value in said.items() if value != ours[name]]):
            raise ConfigError(
                f"{', '.join(flags)} is of galleries in this server's memory, and {elsewhere[0]} is searched where it "
                "is: leave it away, or serve folders by a server of their own"
            )

    def _check_addresses(self) -> None:
        for name, address in (("listen", self.listen), ("http", self.http)):
            if address is None:
                continue
            host, _ = read_address(address, name=name)
            if self.insecure or _is_loopback(host):
                continue
            if self.tls_cert is None:
                raise ConfigError(
                    f"--{name} {address} is reached from other machines, and what they send and get could be read on "
                    "the way: give --tls-cert and --tls-key, or --insecure where the network can be trusted"
                )
            if self.keys is None and self.tls_client_ca is None:
                raise ConfigError(
                    f"--{name} {address} is reached from other machines, and any of them could ask for anything: give "
                    "--keys or --tls-client-ca, or --insecure where the network can be trusted"
                )

    def _check_tls(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key belong together: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("--tls-client-ca is of no use without TLS: give --tls-cert and --tls-key too")


def gallery_name(place: Place) -> str:
    """The name by which a gallery is served."""
    return place.name if isinstance(place, GalleryUrl) else place.absolute().name.removesuffix(".gallery")


def read_address(address: str, *, name: str = "listen") -> tuple[str, int]:
    """The host and the port that an address such as 127.0.0.1:50051 or [::1]:0 names.

    Raises:
        ConfigError: it is none.
    """
    # gRPC takes 127.0.0.1:99999 for another port, and listens there.
    host, _, port = address.rpartition(":")
    if not (host and address.isascii() and port.isdigit() and int(port) < 2**16) or host.startswith("unix"):
        raise ConfigError(f"--{name} must be host:port with a port up to 65535, got {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(name: str, value: float, least: float, most: float) -> None:
    # Written so that NaN fails.
    if not least <= value <= most or math.isinf(value):
        raise ConfigError(f"--{name} must be {least:,} to {most:,}, got {value:,}")


def _check_names(galleries: Sequence[Place]) -> None:
    if not galleries:
        raise ConfigError("there is no gallery to serve: give --gallery FOLDER, or milvus://HOST:PORT/NAME")
    names: set[str] = set()
    for place in galleries:
        if (name := gallery_name(place)) in names:
            raise ConfigError(f"two galleries are named {name!r}: rename one of them")
        names.add(name)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if not whole:
        raise ConfigError(
            f"--otlp must be the URL of a collector, such as http://127.0.0.1:4318, got {without_secrets(url)!r}"
        )


def without_secrets(url: str) -> str:
    """A URL as it may be shown: without the user and password that may stand before its host, and without a query."""
    scheme, mark, rest = url.partition("://")
    rest = rest.partition("?")[0]
    return f"{scheme}{mark}{'***@' if '@' in rest else ''}{rest.rpartition('@')[2]}" if mark else url.partition("?")[0]
