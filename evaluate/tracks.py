"""Image to track: the gallery's entries are tracks, the images of one vehicle that one camera took in one go."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from reidserve.errors import EvaluationError
from reidserve.evaluate.evaluation import Evaluation, evaluate, evaluate_scores
from reidserve.evaluate.labelled import Labelled, Labels
from reidserve.evaluate.rule import MARKET, Rule
from reidserve.index.search.ranking import Scores, every_score
from reidserve.index.tracks import pool

Similarity = Literal["nearest", "mean"]

_SCORE_BYTES = 64 * 2**20


def evaluate_tracks(
    query: Labelled,
    gallery: Labelled,
    tracks: Sequence[str],
    *,
    similarity: Similarity = "nearest",
    rule: Rule = MARKET,
    impostors: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Rank tracks for each query; `tracks` says which one each of the gallery's images is of.

    A track's score is that of its nearest image (VeRi-776; Liu et al., 2016), or that of the mean of its embeddings,
    normalised. What is dropped and right is decided by a track's pid and camera.

    Raises:
        EvaluationError: a track has images of several pids or cameras.
        EmbeddingError: a track's embeddings cancel out and have no mean.
    """
    labels, order, starts = _group(gallery.labels, tracks)
    if similarity == "mean":
        pooled, _ = pool(gallery.embeddings[order], [tracks[place] for place in order])
        return evaluate(query, Labelled(pooled, labels), rule=rule, impostors=impostors, progress=progress)
    vectors = np.ascontiguousarray(gallery.embeddings[order])

    def chunks() -> Iterator[tuple[slice, Scores]]:
        step = max(1, _SCORE_BYTES // (4 * len(vectors)))
        for start in range(0, len(query), step):
            part = slice(start, min(start + step, len(query)))
            yield part, np.maximum.reduceat(every_score(query.embeddings[part], vectors), starts, axis=1)

    return evaluate_scores(chunks(), query.labels, labels, rule=rule, impostors=impostors, progress=progress)


def _group(gallery: Labels, tracks: Sequence[str]) -> tuple[Labels, list[int], list[int]]:
    """Labels of tracks in order of appearance, the images' places track by track, and where each track starts."""
    if len(tracks) != len(gallery):
        raise EvaluationError(f"{len(gallery)} gallery images, and {len(tracks)} say which track they are of")
    members: dict[str, list[int]] = {}
    for place, track in enumerate(tracks):
        members.setdefault(track, []).append(place)
    for track, places in members.items():
        kinds = {(gallery.pids[place], gallery.camids[place]) for place in places}
        if len(kinds) > 1:
            raise EvaluationError(f"track {track!r} has images of several pids or cameras: {sorted(map(str, kinds))}")
    firsts = np.array([places[0] for places in members.values()], np.intp)
    order = [place for places in members.values() for place in places]
    starts = np.cumsum([0, *map(len, members.values())])[:-1].tolist()
    # A track is no image: which of its images is the query's own does not tell it from the others.
    labels = gallery.take(firsts)
    return Labels(labels.pids, labels.camids, [None] * len(labels)), order, starts
