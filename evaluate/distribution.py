"""Distributions of scores: of genuine pairs exactly, of impostor pairs in fine bins, since they are Q x G."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BINS = 2**16
"""So many equal parts of -1 to 1: 3.1e-5 each, which is how exact a threshold is."""


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How many scores lie in each of BINS equal parts of -1 to 1.

    Attributes:
        counts: int64 (BINS,).
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, counts: NDArray[np.int64]) -> None:
        """Add what was counted elsewhere."""
        self.counts[:] += counts

    def add_scores(self, scores: NDArray[np.float32]) -> None:
        """Add scores (n,)."""
        places = ((scores.astype(np.float64) + 1) * (BINS / 2)).astype(np.int64)
        self.add(np.bincount(places.clip(0, BINS - 1), minlength=BINS))
