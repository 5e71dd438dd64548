"""Crops that belong together: the images of a track, and the images that one query is made of."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reidserve.datasets.crop import Crop, Dataset
from reidserve.datasets.layouts import LAYOUTS, read_part
from reidserve.datasets.lists import read_words, wrong_line
from reidserve.datasets.names import path_to_text
from reidserve.errors import DatasetError

TRACKS_FILE = "test_track.txt"
MULTI_QUERY = ("gt_bbox", "multi-query")
"""The folder of Market-1501, and the one that layumi's `prepare.py` makes of it."""

_VERI_IMAGE = re.compile(r"\d+_c\d+_\d+_\d+\.\w+")


def read_multi_query(root: Path, dataset: Dataset) -> list[list[Crop]]:
    """For each query of a dataset the images that stand for it together: those of its pid and its camera.

    They lie in gt_bbox/ (Market-1501: Zheng et al., 2015) or multi-query/ below the dataset's root.

    Raises:
        DatasetError: there is no such folder, cameras are not known, or a query has no image in it.
    """
    folders = [root / name for name in MULTI_QUERY if (root / name).is_dir()]
    layouts = [layout for layout in LAYOUTS if layout.name == dataset.layout]
    if not folders or not layouts:
        raise DatasetError(
            f"{path_to_text(root)} has no {'/ and no '.join(MULTI_QUERY)}/ with the images that each query is made of"
        )
    groups: defaultdict[tuple[str | None, str | None], list[Crop]] = defaultdict(list)
    for crop in read_part(layouts[0], folders[0]):
        groups[crop.pid, crop.camid].append(crop)
    for query in dataset.query:
        if query.pid is None or query.camid is None or (query.pid, query.camid) not in groups:
            raise DatasetError(
                f"{path_to_text(folders[0])} holds no image for the query {path_to_text(query.path)}: expected some of "
                f"pid {query.pid} and camid {query.camid}"
            )
    return [groups[query.pid, query.camid] for query in dataset.query]


def read_tracks(root: Path, dataset: Dataset) -> Dataset:
    """A dataset whose gallery crops all know their track: from VeRi-776's test_track.txt, or a table's column `track`.

    A track of VeRi-776 is called after its first image.

    Raises:
        DatasetError: no tracks are known, a crop is in none or in two, or a line is wrong (file and line are named).
    """
    gallery = dataset.gallery
    if dataset.layout == "veri776" and (root / TRACKS_FILE).is_file():
        gallery = _with_tracks(gallery, root / TRACKS_FILE)
    lost = [crop for crop in gallery if crop.track is None]
    if lost:
        raise DatasetError(
            f"{len(lost)} of {len(gallery)} gallery images of {path_to_text(root)} are in no track, first "
            f"{path_to_text(lost[0].path)}: tracks are read from {TRACKS_FILE} of VeRi-776 and a table's column track"
        )
    return replace(dataset, gallery=gallery)


def _with_tracks(gallery: Sequence[Crop], listing: Path) -> list[Crop]:
    crops = {crop.path.name: crop for crop in gallery}
    tracks: dict[str, str] = {}
    for line, words in read_words(listing):
        # A first word that is no image's name is the track's.
        names = words if _VERI_IMAGE.fullmatch(words[0]) else words[1:]
        if not names:
            raise wrong_line(listing, line, f"expected the images of a track, got {words[0]!r} alone")
        for name in names:
            if name not in crops:
                raise wrong_line(listing, line, f"{name} is no image of the gallery")
            if name in tracks:
                raise wrong_line(listing, line, f"{name} is in a track already")
            tracks[name] = Path(names[0]).stem
        if len({(crops[name].pid, crops[name].camid) for name in names}) > 1:
            raise wrong_line(listing, line, "a track is of one vehicle and one camera, this one is of several")
    return [replace(crop, track=tracks.get(crop.path.name)) for crop in gallery]
