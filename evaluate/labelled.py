"""Embeddings with the labels that scoring needs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from reidserve.embed import Embeddings, off_unit
from reidserve.errors import EvaluationError


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What is known of N images, or of N tracks.

    Attributes:
        pids: the identity of each; None where unknown, "-1" for junk.
        camids: the camera of each; None where unknown.
        sources: what each was embedded from; equal sources never count for each other. None where unknown.

    Raises:
        EvaluationError: the parts differ in length.
    """

    pids: Sequence[str | None]
    camids: Sequence[str | None]
    sources: Sequence[str | None]

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.pids, self.camids, self.sources)]
        if len(set(lengths)) != 1:
            raise EvaluationError(f"pids, camids and sources must be of one length, got {lengths}")

    def __len__(self) -> int:
        return len(self.pids)

    def take(self, places: NDArray[np.intp]) -> "Labels":
        """Those of some places, in their order."""
        chosen = places.tolist()
        return Labels(*([part[place] for place in chosen] for part in (self.pids, self.camids, self.sources)))

    def names(self) -> list[str | None]:
        """Sources below the folder that all lie in, so that images are called the same wherever a dataset lies."""
        folders = [source.split("/")[:-1] for source in self.sources if source is not None]
        # What the first and the last in order begin with, all others begin with.
        ends = zip(min(folders, default=[]), max(folders, default=[]), strict=False)
        above = sum(len(one) + 1 for one, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
        return [None if source is None else source[above:] for source in self.sources]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """N embeddings and what is known of each.

    Attributes:
        embeddings: float32 (N, dim), C-contiguous, rows of unit length.
        labels: of each row.

    Raises:
        EvaluationError: the parts differ in length, or the rows are no unit vectors.
    """

    embeddings: Embeddings
    labels: Labels

    def __post_init__(self) -> None:
        embeddings = self.embeddings
        if embeddings.ndim != 2 or embeddings.dtype != np.float32:
            raise EvaluationError(f"embeddings must be float32 (N, dim), got {embeddings.dtype} {embeddings.shape}")
        if len(embeddings) != len(self.labels):
            raise EvaluationError(f"{len(embeddings)} embeddings have labels for {len(self.labels)}")
        if wrong := off_unit(embeddings):
            place, length = wrong[0]
            raise EvaluationError(
                f"{len(wrong)} of {len(embeddings)} embeddings are not of unit length, row {place} is the first: "
                f"its length is {length:g}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: NDArray[np.intp]) -> "Labelled":
        """Those of some places, in their order."""
        return Labelled(self.embeddings[places], self.labels.take(places))


def digest_labels(parts: Mapping[str, Labels]) -> str:
    """The sha256 of all labels and file names, in order: equal where the same was scored, wherever it lay."""
    digest = hashlib.sha256()
    for part, labels in parts.items():
        for row in zip(labels.pids, labels.camids, labels.names(), strict=True):
            digest.update(repr((part, *row)).encode(errors="backslashreplace"))
    return digest.hexdigest()
