"""Files that are read again when they change, while the server runs."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from reidserve.errors import ConfigError

LOOK_SECONDS = 1.0

_Value = TypeVar("_Value")
_State = tuple[tuple[int, ...] | None, ...]

_logger = logging.getLogger(__name__)


class Watched(Generic[_Value]):
    """What files say. They are looked at when it is asked for, at most once a second; any thread may ask.

    Files that cannot be read any more, or say what cannot be, change nothing: it is logged, and what they said before
    goes on, until they can be read.

    Raises:
        ConfigError: they cannot be read the first time.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], _Value], *, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._paths = paths
        self._read = read
        self._look_seconds = look_seconds
        self._lock = threading.Lock()
        self._seen = self._state()
        self._value = read()
        self._looked = time.monotonic()
        self._told = ""

    def get(self) -> _Value:
        """What the files say now, or said when they could last be read."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= self._look_seconds:
                self._looked = now
                self._look()
            return self._value

    def _look(self) -> None:
        # Before they are read: what changes meanwhile is seen next time.
        state = self._state()
        if state == self._seen:
            return
        names = ", ".join(map(str, self._paths))
        try:
            self._value = self._read()
        except ConfigError as error:
            # Tried again until it can be read, and told once.
            if str(error) != self._told:
                _logger.error("%s changed and cannot be taken, what was read before goes on: %s", names, error)
            self._told = str(error)
            return
        self._seen, self._told = state, ""
        _logger.info("%s changed and was read again", names)

    def _state(self) -> _State:
        return tuple(map(_state_of, self._paths))


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # The change time too: other permissions, and a copy that keeps the modification time, show in it alone.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
