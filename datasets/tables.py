"""A CSV table of crops: the column path, and any of pid, camid, timestamp, split, track, mask, attributes.NAME."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reidserve.datasets.attributes import NO_ATTRIBUTES, Attributes, read_attribute, wrong_attributes
from reidserve.datasets.crop import Crop, Dataset
from reidserve.datasets.names import path_to_text
from reidserve.errors import DatasetError

COLUMNS = ("path", "pid", "camid", "timestamp", "split", "track", "mask")
ATTRIBUTE = "attributes."
"""How the name of an attribute's column begins."""

SPLITS = ("train", "query", "gallery")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def crops_of_table(path: Path) -> list[Crop]:
    """All crops of a table, in its order; paths are taken from the table's folder, timestamps are ISO 8601.

    Raises:
        DatasetError: the table cannot be read, a column is unknown, or a row is wrong (it is named).
    """
    crops = [_crop(path, line, row) for line, row in _rows(path)]
    if not crops:
        raise DatasetError(f"{path_to_text(path)} names no image: it has no row below its header")
    return crops


def dataset_of_table(path: Path) -> Dataset:
    """The query and gallery parts of a table with a column `split` (train, query or gallery).

    Raises:
        DatasetError: as `crops_of_table`, or a split is missing.
    """
    query, gallery = _parts(path, "query", "gallery")
    return Dataset("csv", query=query, gallery=gallery)


def training_of_table(path: Path) -> list[Crop]:
    """The training part of a table with a column `split`, which may lack the others.

    Raises:
        DatasetError: as `crops_of_table`, or there is none.
    """
    (train,) = _parts(path, "train")
    return train


def read_timestamp(text: str) -> int:
    """The moment that an ISO 8601 text with a time zone names, in microseconds since 1970 UTC.

    Raises:
        DatasetError: it is no such text.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise DatasetError(f"the timestamp {text!r} is not ISO 8601") from error
    if moment.tzinfo is None:
        raise DatasetError(f"the timestamp {text!r} has no time zone (end it in Z for UTC)")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _parts(path: Path, *wanted: str) -> list[list[Crop]]:
    parts: dict[str, list[Crop]] = {split: [] for split in SPLITS}
    for line, row in _rows(path):
        split = row.get("split")
        if split not in SPLITS:
            raise DatasetError(f"{path_to_text(path)}, line {line}: split must be {', '.join(SPLITS)}, got {split!r}")
        parts[split].append(_crop(path, line, row))
    for split in wanted:
        if not parts[split]:
            raise DatasetError(f"{path_to_text(path)} has no row whose split is {split!r}")
    return [parts[split] for split in wanted]


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            _check_header(path, header)
            for row in reader:
                if None in row or None in row.values():
                    raise DatasetError(f"{path_to_text(path)}, line {reader.line_num}: expected {len(header)} fields")
                yield reader.line_num, row
    except OSError as error:
        raise DatasetError(f"{path_to_text(path)} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{path_to_text(path)} is no CSV table in UTF-8: {error}") from error


def _check_header(table: Path, header: Sequence[str]) -> None:
    attributes = [column for column in header if column.startswith(ATTRIBUTE)]
    unknown = set(header) - set(COLUMNS) - set(attributes)
    if "path" not in header or unknown or len(set(header)) < len(header):
        raise DatasetError(
            f"{path_to_text(table)} must have the columns path and any of "
            f"{', '.join(COLUMNS[1:])}, {ATTRIBUTE}NAME, got {', '.join(header)}"
        )
    for column in attributes:
        if wrong := wrong_attributes({column.removeprefix(ATTRIBUTE): True}):
            raise DatasetError(f"{path_to_text(table)}, column {column!r}: {wrong}")


def _crop(table: Path, line: int, row: Mapping[str, str]) -> Crop:
    if not row["path"]:
        raise DatasetError(f"{path_to_text(table)}, line {line}: the path is empty")
    return Crop(
        _path(table, line, row["path"]),
        pid=row.get("pid") or None,
        camid=row.get("camid") or None,
        timestamp=_timestamp(table, line, row.get("timestamp") or None),
        attributes=_attributes(table, line, row),
        track=row.get("track") or None,
        mask=_path(table, line, mask) if (mask := row.get("mask")) else None,
    )


def _path(table: Path, line: int, text: str) -> Path:
    if "\0" in text:
        raise DatasetError(f"{path_to_text(table)}, line {line}: the path {text!r} holds a zero byte")
    return table.parent / text


def _attributes(table: Path, line: int, row: Mapping[str, str]) -> Attributes:
    attributes = {
        column.removeprefix(ATTRIBUTE): read_attribute(cell)
        for column, cell in row.items()
        if cell and column.startswith(ATTRIBUTE)
    }
    if wrong := wrong_attributes(attributes):
        raise DatasetError(f"{path_to_text(table)}, line {line}: {wrong}")
    return attributes or NO_ATTRIBUTES


def _timestamp(table: Path, line: int, text: str | None) -> int | None:
    try:
        return None if text is None else read_timestamp(text)
    except DatasetError as error:
        raise DatasetError(f"{path_to_text(table)}, line {line}: {error}") from error
