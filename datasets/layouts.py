"""The layouts that ReID data comes in, as data: where the parts lie and what file names mean.

File names as the datasets' own readers take them: Market-1501 `0002_c1s1_000451_03.jpg` (Zheng et al., 2015),
DukeMTMC-reID `0001_c2_f0046182.jpg` (Zheng et al., 2017), CUHK03-NP `0003_c1_21.png` (Zhong et al., 2017; MSMT17 is
handed on under such names too), VeRi-776 `0002_c002_00030600_0.jpg` (Liu et al., 2016).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from reidserve.datasets.crop import Crop, Dataset
from reidserve.datasets.folders import (
    count_matching,
    crops_by_folder,
    crops_by_pattern,
    find_images,
    unlabelled_crops,
)
from reidserve.datasets.lists import (
    holds_msmt17,
    holds_vehicleid,
    msmt17_dataset,
    msmt17_training,
    vehicleid_dataset,
    vehicleid_lists,
    vehicleid_training,
)
from reidserve.datasets.names import path_to_text
from reidserve.datasets.tables import crops_of_table, dataset_of_table, training_of_table
from reidserve.errors import DatasetError

LayoutName = Literal["market1501", "dukemtmc", "cuhk03np", "veri776", "folders"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a dataset lie.

    Attributes:
        name: what people call it.
        query: folder of the queries.
        gallery: folder of the gallery.
        train: folder of the training set.
        pattern: what a file name says; None where the folder's name is the pid.
    """

    name: LayoutName
    query: str
    gallery: str
    train: str
    pattern: str | None

    def read(self, folder: Path) -> list[Crop]:
        """The crops of one part."""
        return crops_by_folder(folder) if self.pattern is None else crops_by_pattern(folder, self.pattern)


LAYOUTS: Sequence[Layout] = (
    Layout(
        *("market1501", "query", "bounding_box_test", "bounding_box_train"),
        pattern=r"(?:^|/)(?P<pid>-?\d+)_c(?P<camid>\d+)s\d+_[^/]*$",
    ),
    Layout(
        *("dukemtmc", "query", "bounding_box_test", "bounding_box_train"),
        pattern=r"(?:^|/)(?P<pid>\d+)_c(?P<camid>\d+)_f\d+[^/]*$",
    ),
    Layout(
        *("cuhk03np", "query", "bounding_box_test", "bounding_box_train"),
        pattern=r"(?:^|/)(?P<pid>\d+)_c(?P<camid>\d+)_\d+\.[^/]*$",
    ),
    Layout(
        *("veri776", "image_query", "image_test", "image_train"),
        pattern=r"(?:^|/)(?P<pid>\d+)_c(?P<camid>\d+)_\d+_\d+\.[^/]*$",
    ),
    Layout("folders", "query", "gallery", "train", pattern=None),
)


PATTERN_PARTS = (*dict.fromkeys((layout.query, layout.gallery) for layout in LAYOUTS), ("test", "test"))
"""Folders of queries and gallery whose names a pattern reads; in the last, each image is asked for among the others."""

_LISTED = "msmt17: list_query.txt, list_gallery.txt; vehicleid: image/, train_test_split/"


def read_dataset(source: Path, *, pattern: str | None = None) -> Dataset:
    """Read the query and gallery parts of a dataset whose layout its folders tell, or of a CSV table.

    Of VehicleID the test list is named, such as `train_test_split/test_list_800.txt`: it tells the size. A pattern
    (`crops_by_pattern`) reads the file names in the folders of PATTERN_PARTS in place of a layout.

    Raises:
        DatasetError: no known layout, a part is missing, or a file name or a list's line says nothing.
    """
    if pattern is not None:
        return _dataset_by_pattern(source, pattern)
    if source.suffix.lower() == ".csv":
        return dataset_of_table(source)
    if source.suffix.lower() == ".txt":
        return vehicleid_dataset(source)
    _check_folder(source)
    if holds_msmt17(source):
        return msmt17_dataset(source)
    if holds_vehicleid(source):
        raise DatasetError(
            f"{path_to_text(source)} is the root of VehicleID: name the test list that says its size, one of "
            f"{', '.join(path_to_text(path) for path in vehicleid_lists(source))}"
        )
    layout = _recognise(source)
    query, gallery = (read_part(layout, source / part) for part in (layout.query, layout.gallery))
    return Dataset(layout.name, query=query, gallery=gallery)


def read_part(layout: Layout, folder: Path) -> list[Crop]:
    """The crops of one part.

    In folders per identity whose files keep the names of a known dataset (as layumi's `prepare.py` leaves them),
    cameras come from these names: without them, images of the query's own camera would count as found.

    Raises:
        DatasetError: as `Layout.read`.
    """
    crops = layout.read(folder)
    if layout.pattern is not None:
        return crops
    for known in LAYOUTS:
        matches = [re.search(known.pattern, path_to_text(Path(crop.path.name))) for crop in crops if known.pattern]
        found = [match for match in matches if match is not None]
        if found and [match["pid"] for match in found] == [crop.pid for crop in crops]:
            return [replace(crop, camid=match["camid"]) for crop, match in zip(crops, found, strict=True)]
    return crops


def read_training(source: Path, *, pattern: str | None = None) -> list[Crop]:
    """Read the training part of a dataset, which may lack the others, or of a CSV table.

    MSMT17's is list_train.txt and list_val.txt, as published and as TransReID has it; torchreid and fast-reid leave
    out the second. VehicleID's is named by its root or by any of its test lists. A pattern (`crops_by_pattern`) reads
    the file names in a layout's training folder in place of the layout.

    Raises:
        DatasetError: no known layout, or a file name or a list's line says nothing.
    """
    if pattern is not None:
        parts = list(dict.fromkeys(layout.train for layout in LAYOUTS))
        return crops_by_pattern(_pattern_parts(source, [(part,) for part in parts])[0], pattern)
    if source.suffix.lower() == ".csv":
        return training_of_table(source)
    if source.suffix.lower() == ".txt":
        return vehicleid_training(source.parent.parent)
    _check_folder(source)
    if holds_msmt17(source):
        return msmt17_training(source)
    if holds_vehicleid(source):
        return vehicleid_training(source)
    candidates = [layout for layout in LAYOUTS if (source / layout.train).is_dir()]
    if not candidates:
        known = "; ".join([*(f"{layout.name}: {layout.train}/" for layout in LAYOUTS), _LISTED])
        raise DatasetError(
            f"{path_to_text(source)} holds no training set of a known layout ({known}); for others make a .csv table "
            "with the columns path, pid, camid and split"
        )
    layout = _best_named(candidates, source / candidates[0].train)
    return read_part(layout, source / layout.train)


def _dataset_by_pattern(root: Path, pattern: str) -> Dataset:
    query, gallery = _pattern_parts(root, PATTERN_PARTS)
    asked = crops_by_pattern(query, pattern)
    return Dataset("pattern", query=asked, gallery=asked if gallery == query else crops_by_pattern(gallery, pattern))


def _pattern_parts(root: Path, known: Sequence[tuple[str, ...]]) -> list[Path]:
    """The first of these groups of folders that is whole."""
    if root.suffix.lower() == ".csv":
        raise DatasetError(f"{path_to_text(root)} is a table, its columns are the labels: leave out --pattern")
    _check_folder(root)
    for names in known:
        if all((root / name).is_dir() for name in names):
            return [root / name for name in names]
    listed = "; ".join(" and ".join(f"{name}/" for name in dict.fromkeys(names)) for names in known)
    raise DatasetError(f"{path_to_text(root)} has none of the folders that a pattern is read in: {listed}")


def _recognise(root: Path) -> Layout:
    candidates = [layout for layout in LAYOUTS if (root / layout.query).is_dir() and (root / layout.gallery).is_dir()]
    if not candidates:
        known = "; ".join([*(f"{layout.name}: {layout.query}/, {layout.gallery}/" for layout in LAYOUTS), _LISTED])
        raise DatasetError(
            f"{path_to_text(root)} has none of the layouts known ({known}); for others make a .csv table with the "
            "columns path, pid, camid and split"
        )
    return _best_named(candidates, root / candidates[0].query)


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise DatasetError(f"expected a dataset's folder or a .csv table, {path_to_text(root)} is neither")


def _best_named(candidates: Sequence[Layout], part: Path) -> Layout:
    if len(candidates) == 1:
        return candidates[0]
    images = find_images(part)
    # Folders per identity are the last guess: any name would match them.
    return max(candidates, key=lambda layout: 0.5 if layout.pattern is None else count_matching(images, layout.pattern))


def read_crops(
    source: Path, *, pattern: str | None = None, layout: Literal["auto"] | LayoutName = "auto"
) -> list[Crop]:
    """Read the crops of one folder or CSV table.

    Labels come from the pattern where one is given, else from the layout. `auto` takes the file names of the
    known datasets where all names have that form, and no labels where none has.

    Raises:
        DatasetError: the root of a dataset, no images, or names of which only some have a known form.
    """
    if source.suffix.lower() == ".csv":
        if pattern is not None or layout != "auto":
            raise DatasetError(f"{path_to_text(source)} is a table, its columns are the labels: leave out --pattern")
        return crops_of_table(source)
    for known in LAYOUTS:
        if (source / known.query).is_dir() and (source / known.gallery).is_dir():
            raise DatasetError(
                f"{path_to_text(source)} is the root of a {known.name} dataset: name one of its parts, "
                f"such as {path_to_text(source / known.gallery)}"
            )
    if pattern is not None:
        return crops_by_pattern(source, pattern)
    if layout != "auto":
        return next(known for known in LAYOUTS if known.name == layout).read(source)
    return _read_by_names(source)


def _read_by_names(folder: Path) -> list[Crop]:
    images = find_images(folder)
    for layout in LAYOUTS:
        if layout.pattern is None:
            continue
        known = count_matching(images, layout.pattern)
        if known == len(images):
            return layout.read(folder)
        if known:
            raise DatasetError(
                f"{known} of {len(images)} file names in {path_to_text(folder)} are of {layout.name}, the others "
                "are not: say what names mean with --pattern, or --layout"
            )
    return unlabelled_crops(folder)
