"""Sources: the datasets that a run is given, read as one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reidserve.datasets import DISTRACTOR, JUNK, Crop, Dataset, path_to_text, read_dataset, read_training, with_masks
from reidserve.errors import DatasetError
from reidserve.export.train.preflight import check_apart


@dataclass(frozen=True, slots=True)
class Parts:
    """The crops of one or several datasets.

    Attributes:
        name: of the dataset, or of all with "+" between them.
        train: crops to learn from, without junk.
        query: crops to search with; none where nothing is scored.
        gallery: crops to search in; likewise.
        notes: what is odd about them, a line each.
    """

    name: str
    train: list[Crop] = field(default_factory=list)
    query: list[Crop] = field(default_factory=list)
    gallery: list[Crop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_parts(sources: Sequence[Path], *, pattern: str | None, scored: bool) -> Parts:
    """The training parts of all sources and, where `scored`, query and gallery of those that have them.

    Of several sources, pids and camids are called SOURCE/pid and SOURCE/camid, as equal names are not one identity;
    the queries of each are searched in the galleries of all.

    Raises:
        DatasetError: a source has no training part or is named twice, or none has query and gallery.
    """
    names = name_sources(sources)
    parts = Parts("+".join(names))
    refused: list[DatasetError] = []
    for source, name in zip(sources, names, strict=True):
        prefix = f"{name}/" if len(sources) > 1 else ""
        train = _read_train(source, name, pattern, parts.notes)
        parts.train.extend(_called(train, prefix))
        if not scored:
            continue
        try:
            dataset = read_dataset(source, pattern=pattern)
        except DatasetError as error:
            refused.append(error)
            parts.notes.append(f"{name} is learnt from and not scored on: {error}")
            continue
        parts.notes.extend(f"{prefix and f'{name}: '}{line}" for line in _check_dataset(train, dataset))
        _add_trial(parts, dataset, _root(source), prefix)
    if scored and not parts.query:
        raise DatasetError(
            f"{'; '.join(map(str, refused))} (to train without evaluation, give --set evaluation.every=0)"
        ) from refused[0]
    return parts


def name_sources(sources: Sequence[Path]) -> list[str]:
    """What each source is called: the end of its path, as much of it as tells it from the others.

    Raises:
        DatasetError: there is none, or one is named twice.
    """
    paths = [source.absolute() for source in sources]
    if not paths or len(set(paths)) < len(paths):
        raise DatasetError(f"expected one or several different datasets, got {', '.join(map(path_to_text, sources))}")
    ends = (
        [path_to_text(Path(*path.parts[-depth:])) for path in paths]
        for depth in range(1, max(len(path.parts) for path in paths) + 1)
    )
    return next(names for names in ends if len(set(names)) == len(names))


def _read_train(source: Path, name: str, pattern: str | None, notes: list[str]) -> list[Crop]:
    crops = with_masks(read_training(source, pattern=pattern), _root(source))
    kept = [crop for crop in crops if crop.pid != JUNK]
    if len(kept) < len(crops):
        notes.append(f"{len(crops) - len(kept)} training images of junk (pid {JUNK}) in {name} are left out")
    return kept


def _check_dataset(train: Sequence[Crop], dataset: Dataset) -> list[str]:
    notes = check_apart(train, dataset)
    if dataset.protocol != "market1501":
        notes.append(f"while training, scores are by the rule of Market-1501; reid-eval scores by {dataset.protocol}")
    return notes


def _add_trial(parts: Parts, dataset: Dataset, root: Path, prefix: str) -> None:
    # Where queries have it, 0000 is an identity like any other.
    others = {JUNK, DISTRACTOR if all(crop.pid != DISTRACTOR for crop in dataset.query) else JUNK}
    for joined, crops in ((parts.query, dataset.query), (parts.gallery, dataset.gallery)):
        joined.extend(_called(with_masks(crops, root), prefix, others))


def _root(source: Path) -> Path:
    """Where masks/ would lie."""
    if source.is_dir():
        return source
    return source.parent.parent if source.suffix.lower() == ".txt" else source.parent


def _called(crops: Sequence[Crop], prefix: str, others: Collection[str] = ()) -> list[Crop]:
    """Crops whose pids and camids begin with their source's name, but for the pids of `others`, no identities."""
    if not prefix:
        return list(crops)
    return [
        replace(
            crop,
            pid=crop.pid if crop.pid is None or crop.pid in others else prefix + crop.pid,
            camid=crop.camid and prefix + crop.camid,
        )
        for crop in crops
    ]
