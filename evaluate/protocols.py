"""Protocols: which evaluation a dataset is scored by, and what may be done to embeddings first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reidserve.datasets import ProtocolName
from reidserve.errors import EvaluationError
from reidserve.evaluate.evaluation import Evaluation, evaluate, evaluate_scores
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.rule import MARKET, Judge, Places, Rule
from reidserve.evaluate.tracks import Similarity, evaluate_tracks
from reidserve.evaluate.trials import evaluate_one_per_identity, evaluate_single_shot
from reidserve.index.expansion import expand
from reidserve.index.rerank import Reranking, rerank_in_chunks
from reidserve.index.search.flat import rank_bare
from reidserve.index.search.ranking import Scores

TRIALS = {"cuhk03-single-shot": 100, "vehicleid": 10}
"""How often a gallery is drawn, as the papers did."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How queries and a gallery are scored.

    Attributes:
        name: "market1501" ranks the whole gallery; "cuhk03-single-shot" and "vehicleid" draw it; "image-to-track"
            ranks tracks.
        rule: which entries count.
        trials: how often a gallery is drawn, where it is; None as often as the paper did.
        seed: of what is drawn.
        similarity: of a track, where tracks are ranked.
    """

    name: ProtocolName = "market1501"
    rule: Rule = MARKET
    trials: int | None = None
    seed: int = 0
    similarity: Similarity = "nearest"

    def evaluate(
        self,
        query: Labelled,
        gallery: Labelled,
        *,
        tracks: Sequence[str] | None = None,
        impostors: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> Evaluation:
        """Score embeddings; of VehicleID the gallery alone is looked at, which holds all images.

        Raises:
            EvaluationError: the data do not allow the protocol.
        """
        trials = self.trials or TRIALS.get(self.name, 1)
        match self.name:
            case "vehicleid":
                return evaluate_one_per_identity(
                    gallery, rule=self.rule, trials=trials, seed=self.seed, impostors=impostors, progress=progress
                )
            case "cuhk03-single-shot":
                return evaluate_single_shot(
                    query,
                    gallery,
                    rule=self.rule,
                    trials=trials,
                    seed=self.seed,
                    impostors=impostors,
                    progress=progress,
                )
            case "image-to-track":
                if tracks is None:
                    raise EvaluationError("image-to-track needs to know which track each gallery image is of")
                return evaluate_tracks(
                    query,
                    gallery,
                    tracks,
                    similarity=self.similarity,
                    rule=self.rule,
                    impostors=impostors,
                    progress=progress,
                )
            case _:
                return evaluate(query, gallery, rule=self.rule, impostors=impostors, progress=progress)


def evaluate_reranked(
    query: Labelled,
    gallery: Labelled,
    *,
    how: Reranking,
    rule: Rule = MARKET,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Score the order that k-reciprocal encoding gives the whole gallery; what counts for no query takes no part in it.

    Scores of the outcomes are negative distances.
    """
    places = _counting(query, gallery, rule)
    kept = gallery.take(places)

    def chunks() -> Iterator[tuple[slice, Scores]]:
        for part, distances in rerank_in_chunks(query.embeddings, kept.embeddings, how, progress=progress):
            yield part, -distances

    evaluation = evaluate_scores(chunks(), query.labels, kept.labels, rule=rule)
    return replace(evaluation.of_part(gallery.labels, places), gallery_size=len(gallery))


def evaluate_expanded(
    query: Labelled,
    gallery: Labelled,
    *,
    count: int,
    alpha: float,
    rule: Rule = MARKET,
    impostors: bool = False,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Score queries that were averaged with the `count` best entries they found, whatever these are of."""
    places = _counting(query, gallery, rule)
    kept = gallery.take(places)
    ranking = rank_bare(query.embeddings, kept.embeddings, top_k=count)
    expanded = Labelled(expand(query.embeddings, ranking, kept.embeddings.__getitem__, alpha=alpha), query.labels)
    evaluation = evaluate(expanded, kept, rule=rule, impostors=impostors, progress=progress)
    return replace(evaluation.of_part(gallery.labels, places), gallery_size=len(gallery))


def _counting(query: Labelled, gallery: Labelled, rule: Rule) -> Places:
    """The gallery's places without those that count for no query, such as junk."""
    return np.setdiff1d(np.arange(len(gallery)), Judge(rule, query.labels, gallery.labels).never)
