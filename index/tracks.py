"""Tracks: the images of one identity under one camera, in a row, as one embedding."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from reidserve.embed import Embeddings
from reidserve.errors import EmbeddingError

LEAST_LENGTH = 1e-3
"""Of a mean of unit vectors. Shorter, it is what their differences left over, and says nothing of them."""

Track = TypeVar("Track", bound=Hashable)


def pool(embeddings: Embeddings, tracks: Sequence[Track]) -> tuple[Embeddings, list[Track]]:
    """The mean of each track's embeddings, to unit length again (T, dim), and the tracks in order of appearance.

    `tracks` (N,) says which track each of N embeddings is of; those of one need not stand together. Means of unit
    vectors are what video ReID compares (Zheng et al., 2016, "MARS").

    Raises:
        EmbeddingError: tracks and embeddings are not equally many, or a track's embeddings cancel out.
    """
    if len(tracks) != len(embeddings):
        raise EmbeddingError(f"{len(embeddings)} embeddings, and {len(tracks)} say which track they are of")
    places: dict[Track, list[int]] = {}
    for place, track in enumerate(tracks):
        places.setdefault(track, []).append(place)
    pooled = np.empty((len(places), embeddings.shape[1]), np.float32)
    for mean, (track, mine) in zip(pooled, places.items(), strict=True):
        np.mean(embeddings[mine], axis=0, out=mean)
        length = np.linalg.norm(mean)
        # Written so that NaN fails.
        if not length >= LEAST_LENGTH:
            raise EmbeddingError(
                f"the {len(mine)} embeddings of track {track!r} cancel out: their mean has length {length:.2g}; "
                "are they of one identity?"
            )
        mean /= length
    return pooled, list(places)
