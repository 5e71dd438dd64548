"""Folders: made durably, and whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reidserve.datasets import path_to_text
from reidserve.errors import OutputExistsError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to write files into; it becomes `out`, durably, when the block ends well.

    A killed process leaves the hidden folder, `.NAME.partial-` and 8 letters, which may be removed.

    Raises:
        OutputExistsError: there is something at `out`.
    """
    if out.exists() or out.is_symlink():
        raise OutputExistsError(f"{path_to_text(out)} is there already: choose a name that is free")
    # Not the process's number: two containers that share a disk may both be process 1.
    partial = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    make_folder(out.parent)
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` to be written; it takes the place of `path`, durably, when the block ends well."""
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder where there is none, and those above it that are missing, durably."""
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """See that a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
