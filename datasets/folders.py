"""A folder of image files becomes crops, labelled by their names, their folders, or not at all."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from reidserve.datasets.crop import Crop
from reidserve.datasets.names import path_to_text
from reidserve.errors import DatasetError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, by suffix, in the byte order of their paths; links are followed once.

    Raises:
        DatasetError: the folder is missing, cannot be read, or holds no image.
    """
    if not folder.is_dir():
        raise DatasetError(f"expected a folder of images, {path_to_text(folder)} is none")
    paths = sorted(_walk(folder), key=lambda path: os.fsencode(path.relative_to(folder)))
    if not paths:
        raise DatasetError(f"{path_to_text(folder)} holds no image ({', '.join(sorted(SUFFIXES))})")
    return paths


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise DatasetError(f"{path_to_text(Path(error.filename))} cannot be read: {error.strerror}") from error

    seen = set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, or the order of the disk would decide under which name a folder with two is read.
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122  # no Path a file
                yield Path(parent, name)


def crops_by_pattern(folder: Path, pattern: str) -> list[Crop]:
    r"""Crops labelled by a regular expression with a group `pid` and, where cameras are known, a group `camid`.

    It is searched in the path below the folder, such as `(?P<pid>\w+)_cam(?P<camid>\d)`. A pid may be any text.

    Raises:
        DatasetError: the expression is wrong, or a file does not match it.
    """
    expression = compile_pattern(pattern)
    paths = find_images(folder)
    matches = [expression.search(path_to_text(path.relative_to(folder))) for path in paths]
    strangers = [path for path, match in zip(paths, matches, strict=True) if match is None or not match["pid"]]
    if strangers:
        raise DatasetError(
            f"{len(strangers)} of {len(paths)} images do not match the pattern {pattern!r}, "
            f"first {path_to_text(strangers[0])}"
        )
    labels = [match.groupdict() for match in matches if match is not None]
    return [Crop(path, pid=label["pid"], camid=label.get("camid")) for path, label in zip(paths, labels, strict=True)]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of crops.

    Raises:
        DatasetError: it is no regular expression, or has no group `pid`.
    """
    try:
        with warnings.catch_warnings():
            # Python remarks on how a later version may read it.
            warnings.simplefilter("ignore")
            expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DatasetError(f"the pattern {pattern!r} is no regular expression: {error}") from error
    if "pid" not in expression.groupindex:
        raise DatasetError(
            f"the pattern {pattern!r} must have a group (?P<pid>...), and (?P<camid>...) where cameras are known"
        )
    return expression


def crops_by_folder(folder: Path) -> list[Crop]:
    """Crops of a folder per identity: the first folder below `folder` is the pid, cameras are not known.

    Raises:
        DatasetError: an image lies in no folder of its own.
    """
    crops = []
    for path in find_images(folder):
        parts = path.relative_to(folder).parts
        if len(parts) < 2:
            raise DatasetError(f"expected a folder per identity, {path_to_text(path)} lies in none")
        crops.append(Crop(path, pid=path_to_text(Path(parts[0]))))
    return crops


def unlabelled_crops(folder: Path) -> list[Crop]:
    """Crops of a folder about which nothing is known."""
    return [Crop(path) for path in find_images(folder)]


def count_matching(paths: Sequence[Path], pattern: str) -> int:
    """How many of these files have a name that the pattern matches."""
    expression = re.compile(pattern)
    return sum(expression.search(path_to_text(Path(path.name))) is not None for path in paths)
