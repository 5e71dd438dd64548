"""An epoch of adaptation: the target is clustered by the network as it is, and learnt from."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import monotonic

import numpy as np

from reidserve.datasets import path_to_text
from reidserve.embed import Embeddings
from reidserve.errors import ExportError
from reidserve.export.adapt.clusters import Clusters, find_clusters, pair_f_score, unit_centres
from reidserve.export.adapt.lesson import learn, make_lesson
from reidserve.export.adapt.record import AdaptRecord
from reidserve.export.adapt.settings import AdaptSettings
from reidserve.export.adapt.steps import Step, draw_steps, load
from reidserve.export.adapt.target import Target
from reidserve.export.train import Material
from reidserve.export.train.epoch import check_finite, diverged, learning_rates, prepare
from reidserve.export.train.learner import Learner
from reidserve.export.train.optimiser import set_rate
from reidserve.export.train.validation import embed

_NAMED = 3


@dataclass(frozen=True, slots=True, eq=False)
class Adaptation:
    """What is adapted to what, and how.

    Attributes:
        learner: its network's classifier is the source's.
        source: labelled images.
        target: images without labels.
        how: they are clustered and learnt from.
    """

    learner: Learner
    source: Material
    target: Target
    how: AdaptSettings


def learn_epoch(
    adaptation: Adaptation, epoch: int, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> AdaptRecord:
    """Cluster the target and learn from it, epochs counted from 1; `progress` hears of the steps of all epochs.

    The classifier of the clusters begins as their unit centres, and the optimiser without memory, as in MMT (Ge et
    al., 2020, "Mutual Mean-Teaching"): each epoch's classes are new.

    Raises:
        ExportError: there are fewer than two clusters, or the loss, or afterwards a weight, is no finite number.
    """
    learner, source, target, how = adaptation.learner, adaptation.source, adaptation.target, adaptation.how
    settings, start = learner.settings, monotonic()
    embeddings = embed(learner.network, target.pictures.pixels, mean=settings.input.mean, std=settings.input.std)
    if not np.isfinite(embeddings).all():
        raise ExportError(diverged("an embedding is not finite", epoch, "before its first step"))
    clusters = _cluster(embeddings, how, epoch)
    steps = draw_steps(source.labels, clusters, how.mode, settings, epoch=epoch)
    rates = learning_rates(settings, epoch, batches=len(steps))
    prepare(learner, epoch)
    lesson = make_lesson(learner, how.mode, unit_centres(embeddings, clusters.labels))
    losses = []
    with closing(load(steps, source, target, clusters, settings, epoch=epoch)) as loading:
        for number, (pixels, rate) in enumerate(zip(loading, rates, strict=True), 1):
            set_rate(lesson.optimiser, rate)
            losses.append(learn(lesson, pixels))
            if not math.isfinite(losses[-1].total):
                where = f"step {number} ({_name(adaptation, pixels.step)})"
                raise ExportError(diverged(f"the loss is {losses[-1].total:g}", epoch, where))
            progress((epoch - 1) * len(steps) + number, settings.epochs * len(steps))
    check_finite(learner.network, epoch)
    return AdaptRecord(
        epoch=epoch,
        loss=float(np.mean([loss.total for loss in losses])),
        source_loss=_mean([loss.source for loss in losses]),
        target_loss=_mean([loss.target for loss in losses]),
        step_losses=tuple(loss.total for loss in losses),
        images_per_second=sum(map(len, steps)) / (monotonic() - start),
        lr=rates[-1],
        clusters=len(clusters),
        noise=clusters.noise,
        pair_f=None if target.identities is None else pair_f_score(clusters.labels, target.identities),
    )


def _cluster(embeddings: Embeddings, how: AdaptSettings, epoch: int) -> Clusters:
    clusters = find_clusters(embeddings, how)
    if len(clusters) < 2:
        advice = "a higher eps, or fewer min_samples" if clusters.noise > 0.5 else "a lower eps"
        raise ExportError(
            f"epoch {epoch}: {len(embeddings)} target images fall into {len(clusters)} clusters, {clusters.noise:.0%} "
            f"of them into none, by {how.distance} distance with eps {how.eps:g} and min_samples {how.min_samples}: "
            f"two are needed; give {advice} and start over with --force"
        )
    return clusters


def _mean(terms: Sequence[float | None]) -> float | None:
    known = [term for term in terms if term is not None]
    return float(np.mean(known)) if known else None


def _name(adaptation: Adaptation, step: Step) -> str:
    """The first images of each domain that were learnt from."""
    crops = [adaptation.source.train.crops[row] for row in step.source[:_NAMED]]
    crops += [adaptation.target.pictures.crops[row] for row in step.target[:_NAMED]]
    return f"{len(step)} images, with {', '.join(path_to_text(crop.path) for crop in crops)}"
