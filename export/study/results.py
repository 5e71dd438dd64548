"""The results of a study: a CSV with a row for each variant, repeat, epoch and test."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import msgspec

from reidserve.errors import DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a variant had come to after an epoch, on one test; None for what was not measured.

    Attributes:
        study: its name.
        scale: "quick" or "full", with what was set besides.
        data: the dataset, and after a + the other one.
        network: backbone and input size.
        start: the weights it began with.
        variant: its name.
        repeat: from 1.
        seed: of weights, batches and augmentation.
        tested: "ordinary", "swapped" or "other".
        epoch: counted from 1 through all stages; 0 is before training.
        epochs: of the whole run.
        stage: from 1.
        loss: mean over the batches, of the epoch.
        accuracy: share of training images whose class has the highest score, while they are learnt from.
        val_loss: of held-out images of training identities.
        val_accuracy: likewise.
        test_accuracy: of as many held-out images again, by the checkpoint that was written.
        rank1: on query and gallery.
        rank5: likewise.
        rank10: likewise.
        mAP: likewise.
        lr: learning rate of the last batch.
        frozen: parameters that do not learn in the epoch.
        parameters: all of them.
        seconds: of training, until then.
        digest: sha256 of settings and pretrained weights, the first 12 digits.
    """

    study: str
    scale: str
    data: str
    network: str
    start: str
    variant: str
    repeat: int
    seed: int
    tested: str
    epoch: int
    epochs: int
    stage: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    rank1: float | None = None
    rank5: float | None = None
    rank10: float | None = None
    mAP: float | None = None  # noqa: N815  # the field's name
    lr: float | None = None
    frozen: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    digest: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def write_rows(rows: Iterable[Row]) -> str:
    """Rows as CSV; floats in six digits, nothing where nothing was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(f"{value:.6g}" if isinstance(value, float) else value for value in asdict(row).values())
    return text.getvalue()


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV that `write_rows` wrote.

    Raises:
        DatasetError: it is no such file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    try:
        values = [{name: value for name, value in row.items() if value} for row in found]
        return msgspec.convert(values, list[Row], strict=False)
    except msgspec.ValidationError as error:
        raise DatasetError(f"{path} holds no results of a study: {error}") from error


def of_line(rows: Sequence[Row], *, variant: str, tested: str, epoch: int | None = None) -> list[Row]:
    """A variant's rows on a test after an epoch, or the last one: a row a repeat."""
    repeats: dict[int, Row] = {}
    for row in rows:
        if row.variant == variant and row.tested == tested and epoch in (None, row.epoch):
            repeats[row.repeat] = max(row, repeats.get(row.repeat, row), key=lambda row: row.epoch)
    return [repeats[number] for number in sorted(repeats)]
