"""The timing cache: what TensorRT measured of its kernels, so that the next plan on this GPU is built in less time."""

from pathlib import Path

from reidserve.errors import ExportError
from reidserve.export.files import write_whole


def read_timings(path: Path | None) -> bytes:
    """What was measured before; nothing where there is no file yet.

    Raises:
        ExportError: the file cannot be read.
    """
    try:
        return path.read_bytes() if path is not None else b""
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ExportError(f"the timing cache {path} cannot be read: {error.strerror}") from error


def write_timings(path: Path, timings: bytes) -> None:
    """Keep what was measured for the next plan.

    Raises:
        ExportError: the file cannot be written; the old one stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, timings)
    except OSError as error:
        raise ExportError(f"the timing cache {path} cannot be written: {error.strerror}") from error
