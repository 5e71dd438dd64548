"""Files that only their owner may change, and others may not read: keys, and the key of a certificate."""

import os
import stat
from pathlib import Path

from reidserve.errors import ConfigError
from reidserve.index.storage.folders import new_file

MOST_BYTES = 2**22
_FORBIDDEN = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def read_private(path: Path) -> bytes:
    """Read a file, if nobody but its owner can have written it and at most its group can read it.

    A symbolic link is followed (mounted secrets are such links): what it leads to is looked at, and is what is read.

    Raises:
        ConfigError: it cannot be read, is no file, is too large, or is open to others.
    """
    try:
        # Opening a pipe would wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor, so that what was looked at is what is read
            _check(path, os.fstat(descriptor))
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path} must have at most {MOST_BYTES:,} bytes")
    return data


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole and durably; one that is there keeps its owner and its mode.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    before = path.stat() if path.exists() else None
    with new_file(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # made for nobody else from the start
            if before is not None:
                # Root may add a key to the file of the user that serves.
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(data)


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} must be a file")
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path} must belong to the user of this process ({os.geteuid()}) or to root, and belongs to user "
            f"{found.st_uid}, who could change it: chown it"
        )
    if found.st_mode & _FORBIDDEN:
        raise ConfigError(
            f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}): chmod 600, or 640 where its group "
            "must read it"
        )
