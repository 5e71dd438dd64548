"""Embeddings with the labels that scoring needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reidserve.embed import Embeddings
from reidserve.errors import EvaluationError


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """N embeddings and what is known of each.

    Attributes:
        embeddings: float32 (N, dim), rows of unit length.
        pids: the identity of each; None where unknown, "-1" for junk.
        camids: the camera of each; None where unknown.
        sources: what each was embedded from; equal sources never count for each other. None where unknown.

    Raises:
        EvaluationError: the parts differ in length.
    """

    embeddings: Embeddings
    pids: Sequence[str | None]
    camids: Sequence[str | None]
    sources: Sequence[str | None]

    def __post_init__(self) -> None:
        lengths = {len(self.embeddings), len(self.pids), len(self.camids), len(self.sources)}
        if len(lengths) != 1:
            raise EvaluationError(f"embeddings, pids, camids and sources must be of one length, got {sorted(lengths)}")
        if self.embeddings.ndim != 2 or not np.isfinite(self.embeddings).all():
            raise EvaluationError("embeddings must be finite (N, dim)")

    def __len__(self) -> int:
        return len(self.pids)
