"""Pre-flight: what is wrong with a dataset, said before an hour is lost to it."""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic

from reidserve.datasets import DISTRACTOR, JUNK, Crop, Dataset, path_to_text
from reidserve.errors import DatasetError, EvaluationError
from reidserve.evaluate import MARKET, check_labels, labels_of
from reidserve.export.train.pictures import Pictures
from reidserve.export.train.settings import Settings

EXAMPLES = 3
LONGEST = 60.0
"""Seconds after which no more files are compared byte for byte."""


def check_training(crops: Sequence[Crop], settings: Settings) -> list[str]:
    """What is odd about a training set, a line each.

    Raises:
        DatasetError: nothing can be learnt from it.
    """
    unlabelled = [path_to_text(crop.path) for crop in crops if crop.pid is None]
    if unlabelled:
        raise DatasetError(f"{len(unlabelled)} of {len(crops)} training images have no pid{_such_as(unlabelled)}")
    counts = Counter(str(crop.pid) for crop in crops)
    if len(counts) < 2:
        raise DatasetError(f"training needs at least two identities to tell apart, got {len(counts)}")
    if max(counts.values()) < 2 and settings.loss.metric != "none":
        raise DatasetError(
            f"each of {len(counts)} training identities has one image, and loss.metric {settings.loss.metric} compares "
            "two of one identity: are the pids right? Else give --set loss.metric=none"
        )
    if len(counts) < settings.batch.identities:
        raise DatasetError(
            f"a batch is to hold {settings.batch.identities} identities, the training set has {len(counts)}: "
            f"give --set batch.identities={len(counts)} or less"
        )
    lone = [pid for pid, count in counts.items() if count == 1]
    notes = []
    if lone:
        notes.append(
            f"{len(lone)} of {len(counts)} training identities have one image, which is compared with itself"
            f"{_such_as(lone)}"
        )
    return [*notes, *_check_cameras(crops, len(counts))]


def _check_cameras(crops: Sequence[Crop], identities: int) -> list[str]:
    seen: defaultdict[str, set[str | None]] = defaultdict(set)
    for crop in crops:
        seen[str(crop.pid)].add(crop.camid)
    camids = set[str | None]().union(*seen.values())
    if camids == {None}:
        return [f"no camera of {len(crops)} training images is known: whether identities change cameras cannot be said"]
    if len(camids) == 1:
        return [f"all {len(crops)} training images are from one camera, {camids.pop()}: expect little on other cameras"]
    single = [pid for pid, cameras in seen.items() if len(cameras) == 1]
    if not single:
        return []
    return [
        f"{len(single)} of {identities} training identities are seen by one camera, which says little about others"
        f"{_such_as(single)}"
    ]


def check_apart(train: Sequence[Crop], dataset: Dataset) -> list[str]:
    """Whether identities that are learnt are scored on too, in one line."""
    if dataset.layout == "msmt17":
        # Its training and test lists each count identities from 0.
        return []
    test = {crop.pid for crop in (*dataset.query, *dataset.gallery)} - {None, JUNK, DISTRACTOR}
    both = sorted(str(pid) for pid in {crop.pid for crop in train} & test)
    if not both:
        return []
    return [
        f"{len(both)} of {len(test)} identities of query and gallery are learnt from too, and scores will be too good "
        f"unless they are others under the same names{_such_as(both)}"
    ]


def check_trial(query: Sequence[Crop], gallery: Sequence[Crop]) -> list[str]:
    """What the labels of query and gallery say of the scores to come, a line each.

    Raises:
        EvaluationError: no query has a right image in the gallery.
    """
    found = check_labels(labels_of(query), labels_of(gallery), MARKET)
    if sum(map(len, found.unmatchable.values())) == found.queries:
        raise EvaluationError(
            f"none of {found.queries} queries has a right entry in the gallery of {len(gallery)}: "
            f"{'; '.join(found.lines())} (to train without evaluation, give --set evaluation.every=0)"
        )
    return found.lines()


def check_copies(parts: Mapping[str, Sequence[Crop]], *, longest: float = LONGEST) -> list[str]:
    """Which images are in two parts, or in the training part under two pids, byte for byte; a line each.

    Files are compared by sha256 where their sizes are equal, for `longest` seconds.
    """
    alike, compared, total = _find_alike(parts, longest)
    lines = []
    for one, other in itertools.combinations(parts, 2):
        pairs = [pair for group in alike for pair in _pair(group, one, other)]
        if pairs:
            lines.append(f"{len(pairs)} {one} images are {other} images too, byte for byte{_such_as(pairs)}")
    first = next(iter(parts))
    own = [[crop for part, crop in group if part == first] for group in alike]
    torn = [
        " = ".join(path_to_text(crop.path) for crop in crops) for crops in own if len({crop.pid for crop in crops}) > 1
    ]
    if torn:
        lines.append(f"{len(torn)} {first} images stand under more than one pid, byte for byte{_such_as(torn)}")
    if compared < total:
        lines.append(f"only {compared} of {total} files were compared byte for byte, in {longest:g} seconds")
    return lines


def check_masks(pictures: Pictures) -> list[str]:
    """Whether backgrounds can be swapped, in one line.

    Raises:
        DatasetError: the images that have masks are not of two identities.
    """
    lenders = {pictures.crops[row].pid for row in pictures.backgrounds}
    if len(lenders) < 2:
        raise DatasetError(
            f"augment.swap needs masks of at least two identities, {len(pictures.backgrounds)} of {len(pictures)} "
            "training images have one: masks/ beside the images' folders mirrors their paths in .png, or a table has a "
            "column mask"
        )
    missing = len(pictures) - len(pictures.backgrounds)
    return [f"{missing} of {len(pictures)} training images have no mask and keep their background"] if missing else []


_Owned = tuple[str, Crop]
"""A crop with its part."""


def _find_alike(parts: Mapping[str, Sequence[Crop]], longest: float) -> tuple[list[list[_Owned]], int, int]:
    """Groups of equal bytes; how many files were compared, of how many that might be equal."""
    sizes: defaultdict[int, list[_Owned]] = defaultdict(list)
    for part, crops in parts.items():
        for crop in crops:
            if (size := _size(crop.path)) is not None:
                sizes[size].append((part, crop))
    suspects = [group for group in sizes.values() if len(group) > 1]
    end, compared, alike = monotonic() + longest, 0, []
    for group in suspects:
        if monotonic() > end:
            break
        compared += len(group)
        alike += _equal(group)
    return alike, compared, sum(map(len, suspects))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        # Named when it is read.
        return None


def _equal(group: Sequence[_Owned]) -> list[list[_Owned]]:
    digests: defaultdict[bytes, list[_Owned]] = defaultdict(list)
    for part, crop in group:
        try:
            digests[hashlib.sha256(crop.path.read_bytes()).digest()].append((part, crop))
        except OSError:
            continue
    return [owned for owned in digests.values() if len(owned) > 1]


def _pair(group: Sequence[_Owned], one: str, other: str) -> Iterator[str]:
    """Each image of one part with an equal one of the other, in words."""
    theirs = [crop.path for part, crop in group if part == other]
    for crop in (crop for part, crop in group if part == one):
        # One file may be query and gallery, and is then not its own answer.
        twins = [path for path in theirs if path != crop.path or (one, other) != ("query", "gallery")]
        if twins:
            yield f"{path_to_text(crop.path)} = {path_to_text(twins[0])}"


def _such_as(examples: Sequence[str]) -> str:
    return f", such as {', '.join(sorted(examples)[:EXAMPLES])}"
