"""Plans: searches that were checked before anything is spent on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reidserve.embed import Embedding
from reidserve.errors import EmbeddingError, ImageError, NoThresholdError, QueryError, ReidError
from reidserve.index import Snapshot
from reidserve.index.search.ranking import NO_ROW
from reidserve.index.tracks import pool
from reidserve.server.queries.encoder import Encoded
from reidserve.server.queries.question import Answer, Question, Sought, Stages
from reidserve.server.queries.ranker import Found, Query


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A search that can be made.

    Attributes:
        question: what is asked.
        snapshot: what is searched.
        images: what must be embedded for it: one image, those of a track, or none.
        vector: what is searched for, where it is known already.
        left_out: a row that must not be found, NO_ROW for none.
        min_score: hits of a lower score are left out.
    """

    question: Question
    snapshot: Snapshot
    images: tuple[bytes, ...]
    vector: Embedding | None
    left_out: int
    min_score: float

    @property
    def places(self) -> int:
        """As how many images it counts: an embedding or an entry as one."""
        return max(1, len(self.images))

    def query(self, encoded: Sequence[Encoded | ReidError]) -> Query | ReidError:
        """What goes to the ranker, once its images are embedded, or why nothing does."""
        vector = self.vector if self.vector is not None else _pooled(encoded)
        if isinstance(vector, ReidError):
            return vector
        asked = self.question
        return Query(
            self.snapshot,
            vector,
            asked.top_k,
            asked.where,
            self.left_out,
            asked.shortlist,
            self.min_score,
            asked.group_by_pid,
        )

    def answer(
        self, found: Found | ReidError, encoded: Sequence[Encoded | ReidError], stages: Stages
    ) -> Answer | ReidError:
        """What is said to it, once it was ranked."""
        if isinstance(found, ReidError):
            return found
        together = max((one.batch_size for one in encoded if isinstance(one, Encoded)), default=0)
        return Answer(found.hits, self.snapshot.generation, stages, found.best, together)


def plan(sought: Sought, question: Question, snapshot: Snapshot, *, threshold: float | None, most_hits: int) -> Plan:
    """The plan of a search in a state of a gallery.

    Raises:
        EntryNotFoundError: there is no such entry.
        QueryError: the embedding is no unit vector of the gallery's dimensions, a track has no images, or more hits
            are asked for than `most_hits`.
        NoThresholdError: only matches are asked for, and there is no threshold.
    """
    if not 1 <= question.top_k <= most_hits:
        raise QueryError(f"top_k must be 1 to {most_hits:,}, got {question.top_k}")
    images, vector, left_out = _known(sought, snapshot)
    return Plan(question, snapshot, images, vector, left_out, _min_score(question, threshold))


def _known(sought: Sought, snapshot: Snapshot) -> tuple[tuple[bytes, ...], Embedding | None, int]:
    """The images to embed, or the embedding to look for, and the row that must not be found."""
    if isinstance(sought, bytes):
        return (sought,), None, NO_ROW
    if isinstance(sought, tuple):
        if not sought:
            raise QueryError("a track must have images, got none")
        return sought, None, NO_ROW
    if isinstance(sought, str):
        row = snapshot.row(sought)
        return (), snapshot.vector(row), row
    snapshot.check_queries(sought[np.newaxis])
    return (), sought, NO_ROW


def _min_score(question: Question, threshold: float | None) -> float:
    least = -math.inf if question.min_score is None else question.min_score
    if not question.only_matches:
        return least
    if threshold is None:
        raise NoThresholdError(
            "only matches were asked for, and this server has no calibrated threshold: ask with a min_score of your "
            "own, or serve with --threshold"
        )
    return max(least, threshold)


def _pooled(encoded: Sequence[Encoded | ReidError]) -> Embedding | ReidError:
    """The embedding of an image, or of a track: the mean of those of its images, of unit length again."""
    if len(encoded) == 1:
        (one,) = encoded
        return one if isinstance(one, ReidError) else one.embedding
    embeddings = []
    for place, one in enumerate(encoded, start=1):
        if isinstance(one, ReidError):
            return _of_image(one, place)
        embeddings.append(one.embedding)
    try:
        pooled, _ = pool(np.stack(embeddings), ["asked for"] * len(embeddings))
    except EmbeddingError as error:
        return QueryError(f"the images of the track have nothing in common: {error}")
    vector: Embedding = pooled[0]
    return vector


def _of_image(error: ReidError, place: int) -> ReidError:
    return type(error)(f"image {place} of the track: {error}") if isinstance(error, ImageError) else error
