"""The audit log: one line for each call that changes something, or tried to."""

import json
import logging
import os
import stat
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from reidserve.errors import ConfigError
from reidserve.server.call import Call
from reidserve.server.guard.keys import redact

LONGEST_TEXT = 500

Fact = str | int | float | bool | None

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK

_logger = logging.getLogger(__name__)


class Audit:
    """Appends lines of JSON to a file, which may be moved away (logrotate): then another one is begun.

    A line that cannot be written (a full disk) goes to the server's log instead, whole and as an error: what it tells
    of has happened and is durable, and a caller that is told otherwise would do it again. Without a file every line
    goes to the server's log.

    Raises:
        ConfigError: the file cannot be appended to.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = -1
        self._torn = False
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                raise ConfigError(f"the audit log {path} cannot be appended to: {error.strerror}") from error

    def record(self, call: Call, what: str, gallery: str | None, **facts: Fact) -> None:
        """Write down what a call did, or was refused.

        Args:
            call: by whom and from where.
            what: such as "upsert".
            gallery: where; None where it is about the whole server.
            facts: counts, the generation, the result ("done", or an error's reason): numbers and short texts, so that
                no image and no embedding is ever among them.
        """
        line = _line(call, what, gallery, facts)
        if self._path is None:
            _logger.info("audit: %s", line)
            return
        try:
            with self._lock:
                self._append(self._path, line)
        except OSError as error:
            _logger.error("the audit log %s cannot be written (%s): %s", self._path, error.strerror, line)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _append(self, path: Path, line: str) -> None:
        if self._file < 0 or _moved(path, self._file):
            self._open(path)
        # After half a line the next one begins on its own.
        rest = f"{chr(10) * self._torn}{line}\n".encode("ascii")
        while rest:
            written = os.write(self._file, rest)
            rest = rest[written:]
            self._torn = bool(rest)

    def _open(self, path: Path) -> None:
        file = os.open(path, _FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(0, "it is no file")
        if self._file >= 0:
            os.close(self._file)
        self._file, self._torn = file, False


def _moved(path: Path, file: int) -> bool:
    try:
        return not os.path.samestat(os.lstat(path), os.fstat(file))
    except FileNotFoundError:
        return True


def _line(call: Call, what: str, gallery: str | None, facts: Mapping[str, object]) -> str:
    said: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "request_id": call.request_id,
        "caller": call.caller.name,
        "peer": call.peer,
        "method": call.method,
        "what": what,
        "gallery": gallery,
    }
    if wrong := [name for name, value in facts.items() if name in said or not isinstance(value, Fact)]:
        raise TypeError(f"an audit log's facts are numbers and short texts under names of their own: {wrong}")
    line = {name: _short(value) if isinstance(value, str) else value for name, value in {**said, **facts}.items()}
    # All of it ASCII: no text ends a line, steers a terminal, or cannot be written.
    return json.dumps(line)


def _short(text: str) -> str:
    return redact(text)[:LONGEST_TEXT]
