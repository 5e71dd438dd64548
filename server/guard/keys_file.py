"""The file of a server's keys: read strictly, changed by one process at a time, whole or not at all."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from reidserve.errors import ConfigError
from reidserve.server.guard.keys import Keys
from reidserve.server.guard.private import read_private, write_private


def read_keys(path: Path) -> Keys:
    """Read a server's keys.

    Raises:
        ConfigError: the file cannot be read, is open to others, or is none of keys.
    """
    data = read_private(path)
    try:
        return msgspec.json.decode(data, type=Keys)
    except (msgspec.DecodeError, RecursionError) as error:  # ValidationError is one
        raise ConfigError(f"{path} is no file of keys: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def change_keys(path: Path, change: Callable[[Keys], Keys]) -> Keys:
    """Change a file of keys, or make it; what they are afterwards.

    Raises:
        ConfigError: the file cannot be read or written, or what `change` raises.
    """
    # Of what a link leads to: that is what is replaced.
    path = path.resolve()
    try:
        with _alone(path.parent):
            keys = change(read_keys(path) if path.exists() else Keys())
            write_private(path, msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    return keys


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder is locked, for the file in it is another one after every change."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
