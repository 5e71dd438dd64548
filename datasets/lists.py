"""Datasets whose parts are named in lists, an image and its identity on each line: MSMT17 and VehicleID.

Formats as the datasets' readmes and the readers of fast-reid and torchreid have them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from reidserve.datasets.crop import Crop, Dataset
from reidserve.datasets.names import path_to_text
from reidserve.errors import DatasetError

_MSMT17_FOLDERS = {"train": ("train", "mask_train_v2"), "test": ("test", "mask_test_v2")}
"""Of the first version, and of the second, in which faces are blurred."""

_MSMT17_NAME = re.compile(r"\d+_\d+_(?P<camid>\d+)_.*")
_MSMT17_EXAMPLE = "such as 0000_000_01_0303morning_0008_0.jpg of camera 01"


def holds_msmt17(root: Path) -> bool:
    """Whether the lists of MSMT17 lie here."""
    return (root / "list_query.txt").is_file() and (root / "list_gallery.txt").is_file()


def msmt17_dataset(root: Path) -> Dataset:
    """The query and gallery of MSMT17 (Wei et al., 2018): pids as the lists say them, cameras as the file names do.

    Raises:
        DatasetError: a list is missing, empty or wrong (file and line are named), or names an image that is not there.
    """
    images = _msmt17_images(root, "test")
    query, gallery = (_msmt17_crops(root / f"list_{part}.txt", images) for part in ("query", "gallery"))
    return Dataset("msmt17", query=query, gallery=gallery)


def msmt17_training(root: Path) -> list[Crop]:
    """The training set of MSMT17: list_train.txt, and list_val.txt where it lies there, of the same identities.

    Raises:
        DatasetError: as `msmt17_dataset`.
    """
    images = _msmt17_images(root, "train")
    validation = root / "list_val.txt"
    lists = [root / "list_train.txt", *([validation] if validation.exists() else [])]
    return [crop for listing in lists for crop in _msmt17_crops(listing, images)]


def holds_vehicleid(root: Path) -> bool:
    """Whether this is the root of VehicleID."""
    return (root / "image").is_dir() and (root / "train_test_split").is_dir()


def vehicleid_lists(root: Path) -> list[Path]:
    """The test lists of VehicleID, the smallest first."""
    return sorted((root / "train_test_split").glob("test_list_*.txt"), key=lambda path: (len(path.name), path.name))


def vehicleid_dataset(test_list: Path) -> Dataset:
    """All images of a test list of VehicleID (Liu et al., 2016), both as query and as gallery; no cameras are known.

    Raises:
        DatasetError: it is no list of VehicleID, is missing, empty or wrong (file and line are named), or names an
            image that is not there.
    """
    root = test_list.parent.parent
    if not holds_vehicleid(root):
        raise DatasetError(
            f"{path_to_text(test_list)} is no test list of VehicleID: expected image/ beside the folder it lies in, "
            "train_test_split/"
        )
    crops = _crops(test_list, root / "image", suffix=".jpg")
    return Dataset("vehicleid", query=crops, gallery=crops, protocol="vehicleid")


def vehicleid_training(root: Path) -> list[Crop]:
    """The training set of VehicleID.

    Raises:
        DatasetError: as `vehicleid_dataset`.
    """
    return _crops(root / "train_test_split" / "train_list.txt", root / "image", suffix=".jpg")


def read_words(listing: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that has any, with its number, from 1.

    Raises:
        DatasetError: the file cannot be read, or has no words.
    """
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DatasetError(f"{path_to_text(listing)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path_to_text(listing)} is no text in UTF-8: {error}") from error
    if not any(map(str.strip, lines)):
        raise DatasetError(f"{path_to_text(listing)} names no image: it is empty")
    return ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())


def wrong_line(listing: Path, line: int, fault: str) -> DatasetError:
    """An error that says in which file and line it is."""
    return DatasetError(f"{path_to_text(listing)}, line {line}: {fault}")


def _crops(listing: Path, images: Path, *, suffix: str = "", camera: re.Pattern[str] | None = None) -> list[Crop]:
    crops: dict[str, Crop] = {}
    lines: dict[str, int] = {}
    for line, words in read_words(listing):
        if len(words) != 2 or not (words[1].isascii() and words[1].isdigit()):
            raise wrong_line(listing, line, f"expected an image and its identity's number, got {' '.join(words)!r}")
        name, pid = words
        if name in crops:
            raise wrong_line(listing, line, f"{name} is named again, first in line {lines[name]}")
        path = images / f"{name}{suffix}"
        if not path.is_file():
            raise wrong_line(listing, line, f"{path_to_text(path)} is not there")
        match = camera.fullmatch(path.name) if camera is not None else None
        if camera is not None and match is None:
            raise wrong_line(listing, line, f"expected a name that tells the camera, {_MSMT17_EXAMPLE}, got {name}")
        crops[name] = Crop(path, pid=pid, camid=match["camid"] if match is not None else None)
        lines[name] = line
    return list(crops.values())


def _msmt17_crops(listing: Path, images: Path) -> list[Crop]:
    return _crops(listing, images, camera=_MSMT17_NAME)


def _msmt17_images(root: Path, part: str) -> Path:
    for folder in _MSMT17_FOLDERS[part]:
        if (root / folder).is_dir():
            return root / folder
    raise DatasetError(f"{path_to_text(root)} has the lists of MSMT17 and none of {', '.join(_MSMT17_FOLDERS[part])}/")
