"""TLS: the server's certificate for gRPC and HTTPS, read again when it changes; whose clients are let in."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from reidserve.errors import ConfigError
from reidserve.server.guard.private import read_private
from reidserve.server.guard.watched import LOOK_SECONDS, Watched


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server shows to its callers, and what it asks of them.

    Attributes:
        chain: PEM: its certificate first, then those between it and the root.
        key: PEM, not encrypted.
        clients: PEM: the authorities that sign clients' certificates; None where clients need none.
        context: the same three, for HTTPS.
    """

    chain: bytes
    key: bytes = field(repr=False)
    clients: bytes | None
    context: ssl.SSLContext


def read_certificate(chain: Path, key: Path, clients: Path | None = None) -> Certificate:
    """Read a certificate and its key, and see that they belong together.

    Raises:
        ConfigError: a file cannot be read or is none of PEM, the key is encrypted, open to others or another
            certificate's, or a file was replaced meanwhile.
    """
    read = _read_files(chain, key, clients)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: OpenSSL would ask whoever sits at the terminal for one.
        context.load_cert_chain(chain, key, password="")
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is taken up again would skip what the newest file says of its client: 1.3 without tickets
            # has none, and in 1.2 Python cannot forbid them.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        what = f"{chain} and {key}" if clients is None else f"{chain}, {key} and {clients}"
        raise ConfigError(
            f"{what} must be a certificate, its own key without a password and, where clients need certificates, "
            f"their authorities, all PEM: {_reason(error)}"
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    if read != _read_files(chain, key, clients):
        raise ConfigError(f"{chain} or {key} was replaced while it was read")
    return Certificate(*read, context)


def watch_certificate(
    chain: Path, key: Path, clients: Path | None = None, *, look_seconds: float = LOOK_SECONDS
) -> Watched[Certificate]:
    """A certificate, its key and the clients' authorities, read again when one of the files changes.

    Raises:
        ConfigError: as `read_certificate` does.
    """
    paths = [path for path in (chain, key, clients) if path is not None]
    return Watched(paths, lambda: read_certificate(chain, key, clients), look_seconds=look_seconds)


def grpc_credentials(certificate: Watched[Certificate]) -> grpc.ServerCredentials:
    """Credentials for a gRPC server: each new connection gets the newest certificate, those that are there go on."""
    shown = certificate.get()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        newest = certificate.get()
        if newest is shown:
            return None
        shown = newest
        return _configuration(newest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        fetch,  # type: ignore[arg-type]  # None says that nothing has changed
        require_client_authentication=shown.clients is not None,
    )


def https_context(certificate: Watched[Certificate]) -> ssl.SSLContext:
    """A context for HTTPS (uvicorn's ssl_context_factory): each new connection gets the newest certificate."""
    listening = certificate.get().context

    def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        # OpenSSL asks in every handshake, whether or not the client names the server.
        connection.context = certificate.get().context

    listening.sni_callback = choose
    return listening


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)], certificate.clients)


def _read_files(chain: Path, key: Path, clients: Path | None) -> tuple[bytes, bytes, bytes | None]:
    try:
        return chain.read_bytes(), read_private(key), None if clients is None else clients.read_bytes()
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
