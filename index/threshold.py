"""The threshold: from which score on two images are said to be of one identity, calibrated once and read strictly."""

from pathlib import Path
from typing import Literal

import msgspec

from reidserve.datasets import path_to_text
from reidserve.errors import ThresholdError
from reidserve.index.storage.folders import new_file

Criterion = Literal["pair", "search"]


class Threshold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A score that was calibrated on labelled images, for one model.

    Attributes:
        format: version of this structure.
        identity: the sha256 that names the model.
        score: cosine, -1 to 1; what reaches it is said to be a match.
        criterion: what a false alarm is: "pair", two images of two identities; "search", a query whose identity is not
            in the gallery, by its best hit.
        rate: the share of false alarms that was allowed, 0 to 1.
        dataset: where it was calibrated.
        genuine: how many pairs, or queries, had a right answer.
        impostors: how many had none.
        measured: the share of the genuine that reach the score, 0 to 1.

    Raises:
        ThresholdError: a number is out of its range, or a text is empty.
    """

    format: Literal[1] = 1
    identity: str
    score: float
    criterion: Criterion
    rate: float
    dataset: str
    genuine: int
    impostors: int
    measured: float

    def __post_init__(self) -> None:
        for name, low in (("score", -1), ("rate", 0), ("measured", 0)):
            # Written so that NaN fails.
            if not low <= getattr(self, name) <= 1:
                raise ThresholdError(f"a threshold's {name} must be {low} to 1, got {getattr(self, name)}")
        for name in ("genuine", "impostors"):
            if getattr(self, name) < 1:
                raise ThresholdError(f"a threshold's {name} must be at least 1, got {getattr(self, name)}")
        for name in ("identity", "dataset"):
            if not getattr(self, name):
                raise ThresholdError(f"a threshold's {name} must not be empty")


def write_threshold(threshold: Threshold, path: Path) -> None:
    """Write a threshold as JSON, durably; what was at `path` is replaced, or stays whole.

    Raises:
        OSError: it cannot be written.
    """
    with new_file(path) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(threshold, order="sorted"), indent=2) + b"\n")


def read_threshold(path: Path, *, identity: str | None) -> Threshold:
    """Read a threshold strictly, and see that it is of the model of this `identity`, unless that is None.

    Raises:
        ThresholdError: no such file, a field too many or too few, a value out of range, or another model's.
    """
    name = path_to_text(path)
    try:
        threshold = msgspec.json.decode(path.read_bytes(), type=Threshold)
    except OSError as error:
        raise ThresholdError(f"{name} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:  # ValidationError is one
        raise ThresholdError(f"{name} is no threshold: {error}") from error
    except ThresholdError as error:
        raise ThresholdError(f"{name}: {error}") from error
    if identity is not None and threshold.identity != identity:
        raise ThresholdError(
            f"{name} was calibrated with model {threshold.identity[:12]}, this is model {identity[:12]}: "
            "calibrate one with this model"
        )
    return threshold
