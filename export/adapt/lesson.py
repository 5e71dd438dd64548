"""What is learnt in an epoch of adaptation: one backbone and neck, and a classifier for each domain."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reidserve.embed import Embeddings
from reidserve.export.adapt.settings import Mode
from reidserve.export.adapt.steps import Pixels
from reidserve.export.model.classifier import Classifier
from reidserve.export.train.learner import Learner, memory_format
from reidserve.export.train.optimiser import make_optimiser
from reidserve.export.train.validation import normalise


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What learns in an epoch.

    Attributes:
        mode: from which domains, and how.
        learner: its network's own classifier is the source's.
        clusters: the classifier of the target's clusters.
        optimiser: of both; without memory, as there were other classes before.
    """

    mode: Mode
    learner: Learner
    clusters: Classifier
    optimiser: Optimizer

    @property
    def identities(self) -> Classifier:
        """The classifier of the source's identities."""
        classifier = self.learner.network.classifier
        assert classifier is not None, "a network that learns has classes"
        return classifier


def make_lesson(learner: Learner, mode: Mode, centres: Embeddings) -> Lesson:
    """The lesson of an epoch for which the network is prepared, with the centres (C, dim) of C clusters."""
    assert learner.network.classifier is not None, "a network that learns has classes"
    clusters = classifier_like(learner.network.classifier, centres)
    added = {f"clusters.{name}": parameter for name, parameter in clusters.named_parameters()}
    optimiser = make_optimiser({**learner.learnable, **added}, {}, learner.settings.optim)
    return Lesson(mode, learner, clusters, optimiser)


def classifier_like(classifier: Classifier, centres: Embeddings) -> Classifier:
    """A classifier of the same make with these centres (C, dim) for rows, and biases of 0 if it has any."""
    like = copy.deepcopy(classifier)
    like.weight = nn.Parameter(torch.tensor(centres, device=classifier.weight.device))
    if like.bias is not None:
        like.bias = nn.Parameter(torch.zeros(len(centres), device=classifier.weight.device))
    return like


@dataclass(frozen=True, slots=True)
class Loss:
    """What a step made smaller.

    Attributes:
        total: the sum of its terms.
        source: that of the source's images; None where it is not learnt from, or not by itself.
        target: likewise of the target's.
    """

    total: float
    source: float | None
    target: float | None


def learn(lesson: Lesson, pixels: Pixels) -> Loss:
    """Take a step, but not where its loss is no finite number."""
    terms, clip = losses(lesson, pixels), lesson.learner.settings.optim.clip
    total = torch.stack([*terms.values()]).sum()
    if total.isfinite():
        lesson.optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        if clip:
            moving = [parameter for group in lesson.optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(moving, clip)
        lesson.optimiser.step()
    source, target = (terms[name].item() if name in terms else None for name in ("source", "target"))
    return Loss(total.item(), source, target)


def losses(lesson: Lesson, pixels: Pixels) -> dict[str, Tensor]:
    """A loss for each domain with its own classifier, or in mode "mixed" one over the classes of both."""
    network, loss, settings = lesson.learner.network, lesson.learner.loss, lesson.learner.settings
    source, target, images = (each.to(settings.device) for each in (pixels.source, pixels.target, pixels.images))
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
        seen = normalise(images, mean=settings.input.mean, std=settings.input.std)
        # In one pass: a norm sees both domains at once, as its running statistics do.
        before, after = network.features(seen.contiguous(memory_format=memory_format(settings)))
        known, found = lesson.identities(after), lesson.clusters(after)
    if lesson.mode == "mixed":
        labels = torch.cat([source, target + known.shape[1]])
        return {"mixed": loss(torch.cat([known, found], dim=1), before, labels)}
    own = len(source)
    terms = {"target": loss(found[own:], before[own:], target)}
    if lesson.mode == "joint":
        terms["source"] = loss(known[:own], before[:own], source)
    return terms
