"""The layouts that ReID data comes in, as data: where the parts lie and what file names mean.

File names as the datasets' own readers take them: Market-1501 `0002_c1s1_000451_03.jpg` (Zheng et al., 2015),
DukeMTMC-reID `0001_c2_f0046182.jpg` (Zheng et al., 2017), VeRi-776 `0002_c002_00030600_0.jpg` (Liu et al., 2016).
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
from reidserve.datasets.names import path_to_text
from reidserve.datasets.tables import crops_of_table, dataset_of_table, training_of_table
from reidserve.errors import DatasetError

LayoutName = Literal["market1501", "dukemtmc", "veri776", "folders"]


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
        *("veri776", "image_query", "image_test", "image_train"),
        pattern=r"(?:^|/)(?P<pid>\d+)_c(?P<camid>\d+)_\d+_\d+\.[^/]*$",
    ),
    Layout("folders", "query", "gallery", "train", pattern=None),
)


def read_dataset(root: Path) -> Dataset:
    """Read the query and gallery parts of a dataset whose layout its folders tell, or of a CSV table.

    Raises:
        DatasetError: no known layout, a part is missing, or a file name says nothing.
    """
    if root.suffix.lower() == ".csv":
        return dataset_of_table(root)
    layout = _recognise(root)
    return Dataset(layout.name, query=layout.read(root / layout.query), gallery=layout.read(root / layout.gallery))


def read_training(root: Path) -> list[Crop]:
    """Read the training part of a dataset, which may lack the others, or of a CSV table.

    Raises:
        DatasetError: no known layout, or a file name says nothing.
    """
    if root.suffix.lower() == ".csv":
        return training_of_table(root)
    _check_folder(root)
    candidates = [layout for layout in LAYOUTS if (root / layout.train).is_dir()]
    if not candidates:
        known = "; ".join(f"{layout.name}: {layout.train}/" for layout in LAYOUTS)
        raise DatasetError(
            f"{path_to_text(root)} holds no training set of a known layout ({known}); for others make a .csv table "
            "with the columns path, pid, camid and split"
        )
    layout = _best_named(candidates, root / candidates[0].train)
    return layout.read(root / layout.train)


def _recognise(root: Path) -> Layout:
    _check_folder(root)
    candidates = [layout for layout in LAYOUTS if (root / layout.query).is_dir() and (root / layout.gallery).is_dir()]
    if not candidates:
        known = "; ".join(f"{layout.name}: {layout.query}/, {layout.gallery}/" for layout in LAYOUTS)
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
