"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reidserve.datasets import path_to_text
from reidserve.errors import OutputExistsError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to write files into; it becomes `out`, durably, when the block ends well.

    A killed process leaves the hidden folder, `.NAME.partial-PROCESS`, which may be removed.

    Raises:
        OutputExistsError: there is something at `out`.
    """
    if out.exists() or out.is_symlink():
        raise OutputExistsError(f"{path_to_text(out)} is there already: choose a name that is free")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """See that a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
