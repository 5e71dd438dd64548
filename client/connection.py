"""The connection: where the server is, how it is known to be the one, and the key that is shown to it."""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from reidserve.errors import QueryError

DEFAULT_TARGET = "127.0.0.1:50051"
KEY_VARIABLE = "REIDSERVE_KEY"
MAX_MESSAGE = 32 * 2**20

_KEEPALIVE_MILLISECONDS = 60_000
_KEEPALIVE_PATIENCE_MILLISECONDS = 20_000
_FIRST_RECONNECT_MILLISECONDS, _LONGEST_RECONNECT_MILLISECONDS = 200, 5_000


@dataclass(frozen=True, slots=True)
class Tls:
    """How the two ends know each other.

    Attributes:
        ca: PEM file of the authorities that may have signed the server's certificate; None for the public ones.
        certificate: PEM file of the client's own certificate, where the server asks for one.
        private_key: PEM file of its key.
        server_name: the name that the server's certificate must have; None for the target's.
    """

    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise QueryError("a client's certificate and its private key come together: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC calls it.

        Raises:
            OSError: a file cannot be read.
        """
        ca, certificate, private_key = (
            None if path is None else Path(path).read_bytes() for path in (self.ca, self.certificate, self.private_key)
        )
        return grpc.ssl_channel_credentials(ca, private_key, certificate)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a server is reached.

    Attributes:
        target: host:port.
        key: shown to the server with every call; None for REIDSERVE_KEY, and for no key where that is not set.
        tls: how the two ends know each other; None for a connection in clear.
        max_message: the longest message that is taken from the server, bytes.

    Raises:
        QueryError: no such target or key can be, or a key would travel in clear.
    """

    target: str = DEFAULT_TARGET
    key: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    max_message: int = MAX_MESSAGE

    def __post_init__(self) -> None:
        if not self.target.isascii():
            raise QueryError(f"a server is host:port, got {self.target!r}")
        key = os.environ.get(KEY_VARIABLE) if self.key is None else self.key
        object.__setattr__(self, "key", key or None)
        if not key:
            return
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise QueryError("a key is of printable ASCII characters without spaces; this one is not")
        if self.tls is None and not is_loopback(self.target):
            raise QueryError(
                f"a key would travel to {self.target} in clear: connect with TLS (tls=Tls(...), --tls), or through a "
                f"tunnel that ends on this machine; unset {KEY_VARIABLE} to ask without a key"
            )

    @property
    def options(self) -> Sequence[tuple[str, int | str]]:
        """What a channel is told."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.max_message),
            ("grpc.max_send_message_length", -1),  # the server says what it takes
            # While a call is under way: a server whose machine is gone is noticed, and a router keeps the connection.
            ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_PATIENCE_MILLISECONDS),
            # A server that was started again is found within seconds; gRPC would wait for up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MILLISECONDS),
            ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MILLISECONDS),
            # A name that stands for several servers: each call goes to the next; the first would get all of them.
            ("grpc.lb_policy_name", "round_robin"),
        ]
        if is_loopback(self.target):
            # What http_proxy names cannot reach this machine's loopback, and would get the key.
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What every call carries."""
        return () if self.key is None else (("authorization", f"Bearer {self.key}"),)


def is_loopback(target: str) -> bool:
    """Whether a target is on this machine, whatever a name server says."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    address = target.rpartition("/")[2].removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:")
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
