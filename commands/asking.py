"""How commands ask a server: what says where it is and who asks, and filters and times as it takes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from reidserve.commands.console import quiet_grpc
from reidserve.errors import GalleryLockedError, QueryError, UsageError

if TYPE_CHECKING:
    from reidserve.client import Client, Filter
    from reidserve.index import Filter as Condition

Server = Annotated[
    str | None,
    Parameter(
        name="--server",
        show_default=False,
        help="Let the reid-serve at HOST:PORT do it, which has the gallery open; GALLERY is then its name there, and a "
        "folder's name without .gallery is that.",
    ),
]

# Somebody waits, who may have mistyped the address.
_RETRIES = 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_File = Annotated[Path | None, Parameter(show_default=False)]


@Parameter(name="*", group=Group("Reaching the server", sort_key=100))
@dataclass(frozen=True, slots=True)
class Access:
    """How a server is reached, and by whom.

    Attributes:
        key_file: A file with the key to show; REIDSERVE_KEY in the environment says it too.
        tls: Connect with TLS; so does each of the next four.
        tls_ca: Who may have signed the server's certificate, PEM; the public authorities where it is not said.
        tls_cert: The caller's own certificate, PEM, where the server asks for one.
        tls_key: The certificate's private key, PEM.
        tls_name: The name in the server's certificate, where it is not the host's.
        timeout: Seconds to wait for an answer, asking again included.
    """

    key_file: _File = None
    tls: Annotated[bool, Parameter(negative="")] = False
    tls_ca: _File = None
    tls_cert: _File = None
    tls_key: _File = None
    tls_name: Annotated[str | None, Parameter(show_default=False)] = None
    timeout: float = 30.0

    def connect(self, server: str) -> "Client":
        """A client of a server.

        Raises:
            UsageError: what was said does not fit together.
        """
        quiet_grpc()
        from reidserve.client import Client, Tls

        if not 0 < self.timeout < 1e6:
            raise UsageError(f"--timeout must be above 0 seconds and below a million, got {self.timeout:g}")
        try:
            said = (self.tls_ca, self.tls_cert, self.tls_key, self.tls_name)
            tls = Tls(*said) if self.tls or any(said) else None
            key = None if self.key_file is None else self.key_file.read_text(encoding="utf-8").strip()
            return Client(server, timeout=self.timeout, key=key, tls=tls, retries=_RETRIES)
        except QueryError as error:
            raise UsageError(str(error)) from error
        except UnicodeDecodeError as error:
            raise UsageError(f"--key-file {self.key_file} holds no key") from error


NO_ACCESS = Access()


@contextmanager
def hinting() -> Iterator[None]:
    """Say of a gallery that another process writes to how to write to it nevertheless.

    Raises:
        GalleryLockedError: with that hint.
    """
    try:
        yield
    except GalleryLockedError as error:
        raise GalleryLockedError(f"{error}; where that is reid-serve, let it do this: --server HOST:PORT") from error


def name_on_server(gallery: str) -> str:
    """The name by which a server knows a gallery's folder or URL; a name alone is one too."""
    return Path(gallery).name.removesuffix(".gallery")


def asked(where: "Condition | None") -> "Filter | None":
    """A filter as the client takes it."""
    if where is None:
        return None
    quiet_grpc()
    from reidserve.client import Filter

    return Filter(
        ids=where.ids,
        pids=where.pids,
        camids=where.camids,
        not_camids=where.not_camids,
        since=to_time(where.since),
        until=to_time(where.until),
        attributes=[
            (one.name, one.test, one.values if one.test == "in" else one.values[0]) for one in where.attributes
        ],
    )


def to_time(microseconds: int | None) -> datetime | None:
    """A time as the client takes it, of microseconds since 1970 UTC.

    Raises:
        QueryError: no message can say it.
    """
    if microseconds is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError as error:
        raise QueryError(f"a time must be of the years 1 to 9999, got {microseconds} microseconds from 1970") from error


def to_microseconds(time: datetime | None) -> int | None:
    """Microseconds since 1970 UTC of a time that the client gave."""
    return None if time is None else (time - _EPOCH) // _MICROSECOND
