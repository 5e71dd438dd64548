"""Weights from a URL: fetched once, held against the sha256 that was said, and kept for the next time."""

import hashlib
import re
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from reidserve.errors import CheckpointError, UsageError
from reidserve.export.files import cache_folder, write_whole

MOST_BYTES = 2 * 2**30
"""No file of weights that is read here is larger."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})", re.IGNORECASE)
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_PIECE = 2**20
_PATIENCE_SECONDS = 60

Progress = Callable[[int, int], None]


def fetch(source: str, *, progress: Progress = lambda done, total: None) -> Path:
    """The file that a path or a URL#sha256=HEX means; what was fetched once is taken from the cache, offline too.

    `progress` hears of bytes that have come and, where the server says it, of how many there are, else 0. The cache
    is $XDG_CACHE_HOME/reidserve/pretrained, a file per sha256, each there whole or not at all.

    Raises:
        UsageError: a URL that says no sha256, or is neither https nor of this machine.
        CheckpointError: it cannot be fetched, is larger than MOST_BYTES, or is not the file that was meant.
        OSError: the cache cannot be written.
    """
    if _URL.match(source) is None:
        return Path(source)
    url, _, fragment = source.partition("#")
    _check_address(url)
    said = _SHA256.fullmatch(fragment)
    if said is None:
        raise UsageError(
            f"{url} says no sha256: give {url}#sha256=HEX, the 64 digits that its publisher names or that sha256sum "
            "prints for a copy you trust"
        )
    sha256 = said[1].lower()
    kept = cache_folder() / "pretrained" / sha256
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == sha256:
        return kept
    data = _download(url, progress)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{url} is not the file that was meant: its sha256 is {found}, {sha256} was said")
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, data)
    return kept


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url} is no URL: {error}") from error
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _THIS_MACHINE):
        raise UsageError(f"weights are fetched by https, or by http from this machine, got {url}")


class _Redirects(HTTPRedirectHandler):
    """Follows where a server points to, but only to what could have been asked for itself."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The request to follow with."""
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, progress: Progress) -> bytes:
    opener = build_opener(_Redirects)
    try:
        with opener.open(url, timeout=_PATIENCE_SECONDS) as reply:
            return _receive(reply, url, int(reply.headers.get("Content-Length") or 0), progress)
    # urllib's own errors are OSErrors.
    except (OSError, HTTPException, ValueError, UsageError) as error:
        raise CheckpointError(f"{url} cannot be fetched: {error}") from error


def _receive(reply: IO[bytes], url: str, total: int, progress: Progress) -> bytes:
    data = bytearray()
    while total <= MOST_BYTES and len(data) <= MOST_BYTES:
        piece = reply.read(_PIECE)
        if not piece and len(data) < total:
            raise CheckpointError(f"{url} was cut off after {len(data)} of {total} bytes: try again")
        if not piece:
            return bytes(data)
        data += piece
        progress(len(data), total)
    raise CheckpointError(f"{url} is larger than {MOST_BYTES} bytes, the most that is fetched")
