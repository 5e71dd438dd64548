"""The writer's lock: one process at a time writes to a gallery."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reidserve.datasets import path_to_text
from reidserve.errors import GalleryLockedError

LOCK = "writer.lock"


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of a gallery for as long as the block runs; a killed process gives the lock up.

    Raises:
        GalleryLockedError: another process holds it; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise GalleryLockedError(
                f"{path_to_text(folder)} is being written to by {file.read().strip() or 'another process'}"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield
