"""Protocols whose gallery is drawn: one image per identity, in seeded trials that are averaged."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from reidserve.datasets import JUNK
from reidserve.errors import EvaluationError
from reidserve.evaluate.evaluation import Evaluation, evaluate, joined_trials
from reidserve.evaluate.labelled import Labelled, Labels
from reidserve.evaluate.rule import MARKET, Places, Rule


def evaluate_one_per_identity(
    images: Labelled,
    *,
    rule: Rule = MARKET,
    trials: int = 10,
    seed: int = 0,
    impostors: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """The protocol of VehicleID (Liu et al., 2016): each trial draws one image per identity and asks by the rest.

    Raises:
        EvaluationError: no identity has two images.
    """
    runs = []
    for trial in range(trials):
        drawn = _one_per_pid(images.labels, np.arange(len(images)), np.random.default_rng((seed, trial)))
        rest = np.setdiff1d(np.arange(len(images)), drawn)
        if not len(rest):
            raise EvaluationError(f"each of {len(drawn)} identities has one image only: nothing is left to search with")
        runs.append(_part(images.take(rest), images, drawn, rule, impostors=impostors))
        progress(trial + 1, trials)
    return joined_trials(runs)


def evaluate_single_shot(
    query: Labelled,
    gallery: Labelled,
    *,
    rule: Rule = MARKET,
    trials: int = 100,
    seed: int = 0,
    impostors: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """The single-gallery-shot protocol of CUHK03 (Li et al., 2014): each trial draws one gallery image per identity.

    The images drawn for a query are from other cameras than its own.

    Raises:
        EvaluationError: a query's camera is not known.
    """
    camids = np.array([camid or "" for camid in query.labels.camids])
    if not all(query.labels.camids):
        raise EvaluationError("a gallery that is drawn from other cameras needs the camera of every query")
    gallery_camids = np.array([camid or "" for camid in gallery.labels.camids])
    runs = []
    for trial in range(trials):
        random = np.random.default_rng((seed, trial))
        parts = []
        for camid in sorted(set(camids.tolist())):
            drawn = _one_per_pid(gallery.labels, np.flatnonzero(gallery_camids != camid), random)
            parts.append(_part(query.take(np.flatnonzero(camids == camid)), gallery, drawn, rule, impostors=impostors))
        runs.append(joined_trials(parts))
        progress(trial + 1, trials)
    sizes = [run.gallery_size for run in runs]
    return replace(joined_trials(runs), gallery_size=max(sizes))


def _one_per_pid(labels: Labels, places: Places, random: np.random.Generator) -> Places:
    """One of `places` per pid, drawn evenly, in their order; junk and what has no pid is left out."""
    shuffled = [place for place in random.permutation(places).tolist() if labels.pids[place] not in (None, JUNK)]
    _, first = np.unique([str(labels.pids[place]) for place in shuffled], return_index=True)
    return np.sort(np.array(shuffled, np.intp)[first])


def _part(query: Labelled, gallery: Labelled, drawn: Places, rule: Rule, *, impostors: bool) -> Evaluation:
    """An evaluation against what was drawn, whose places are those of the whole gallery."""
    return evaluate(query, gallery.take(drawn), rule=rule, impostors=impostors).of_part(gallery.labels, drawn)
