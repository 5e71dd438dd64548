"""Files of the export stage: written whole or not at all, and what can be had again in the user's own cache."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where such things are kept; as the XDG specification has it, a relative $XDG_CACHE_HOME counts as none."""
    told = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (told if told.is_absolute() else Path.home() / ".cache") / "reidserve"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that there is the old one or the new one, durably, whatever ends the process.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
