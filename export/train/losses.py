"""The losses: of scores, of features before the neck, and of features and the learned centres of their classes.

Nothing else imports pytorch-metric-learning.
"""

from collections.abc import Callable

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ArcFaceLoss, CircleLoss, CosFaceLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from reidserve.export.train.sections import LossSettings
from reidserve.export.train.settings import Settings

_NEARLY_ONE = 1 - 1e-6
"""The largest cosine that is taken: the angle of 1 itself has no gradient."""


def make_loss(settings: Settings, *, classes: int, dim: int) -> "Loss":
    """The loss of features (N, dim) of so many classes; with parts, of (N, parts, dim)."""
    return Loss(settings.loss, classes=classes, dim=dim, parts=settings.network.parts or 1)


class Loss(nn.Module):
    """Scores (N, classes), features (N, dim) before the neck and labels (N,) int64 to one number.

    Each term is a mean over the batch; they are weighted and summed. With parts in the middle of scores and features,
    parts are compared with the same parts of other images, and their losses are summed (PCB, Sun et al., 2018). It is
    computed in float32, also under autocast: distances of what is near are small differences of large numbers.
    """

    def __init__(self, settings: LossSettings, *, classes: int, dim: int, parts: int) -> None:
        super().__init__()
        self._settings = settings
        self._classification = _make_classification(settings)
        self._metric = _make_metric(settings)
        # Nothing by chance: they move to where the features are.
        centres = torch.zeros(parts, classes, dim) if settings.centre_weight else None
        self.centres = None if centres is None else nn.Parameter(centres)

    def forward(self, scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, differentiable."""
        if scores.ndim == 2:
            scores, features = scores[:, None], features[:, None]
        with torch.autocast(scores.device.type, enabled=False):
            scores, features = scores.float(), features.float()
            total = torch.stack([self._classification(part, labels) for part in scores.unbind(1)]).sum()
            if self._metric is not None:
                losses = [self._metric(part, labels) for part in features.unbind(1)]
                total = total + self._settings.metric_weight * torch.stack(losses).sum()
            if self.centres is not None:
                centres = self.centres[:, labels].transpose(0, 1)
                total = total + self._settings.centre_weight * centre_loss(features, centres)
        return total


def centre_loss(features: Tensor, centres: Tensor) -> Tensor:
    """Half the squared distance of (N, parts, dim) features to their centres, mean over N and sum over parts.

    Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016.
    """
    return (features - centres).square().sum(dim=(1, 2)).mean() / 2


class MarginSoftmax(nn.Module):
    """Cross-entropy of cosines (N, classes) to their labels, that of the own class made harder by a margin.

    arcface: cos(angle + margin), Deng et al., CVPR 2019; cosface: cosine - margin, Wang et al., CVPR 2018; circle:
    both weighted by how far they are from their optimum, Sun et al., "Circle Loss", CVPR 2020.
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self._scale = settings.classification_scale
        self._harder = _make_margin(settings)
        self._cross_entropy = nn.CrossEntropyLoss(label_smoothing=settings.smoothing)

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        target, others = self._harder(scores.clamp(-_NEARLY_ONE, _NEARLY_ONE))
        own = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels[:, None], True)
        loss: Tensor = self._cross_entropy(self._scale * torch.where(own, target, others), labels)
        return loss


class HardTriplet(nn.Module):
    """Triplets of each feature (N, dim) with its farthest positive and nearest negative in the batch.

    Hermans et al., "In Defense of the Triplet Loss", 2017, by Euclidean distance: max(0, positive - negative + margin),
    or with a soft margin log(1 + exp(positive - negative)).
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        soft = settings.metric == "soft-triplet"
        distance = LpDistance(normalize_embeddings=False)
        self._hardest = BatchHardMiner(distance=distance)
        # The library's own mean leaves triplets without a loss out.
        self._triplet = TripletMarginLoss(
            margin=0 if soft else settings.margin, smooth_loss=soft, distance=distance, reducer=MeanReducer()
        )

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The mean loss."""
        loss: Tensor = self._triplet(features, labels, self._hardest(features, labels))
        return loss


def _make_classification(settings: LossSettings) -> nn.Module:
    if settings.classification == "softmax":
        # Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
        return nn.CrossEntropyLoss(label_smoothing=settings.smoothing)
    return MarginSoftmax(settings)


def _make_margin(settings: LossSettings) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What turns cosines into logits, had they been of the own class and of another."""
    margin = settings.classification_margin
    if settings.classification == "circle":

        def circle(cosines: Tensor) -> tuple[Tensor, Tensor]:
            far_from_one, far_from_zero = (1 + margin - cosines.detach()).relu(), (cosines.detach() + margin).relu()
            return far_from_one * (cosines - 1 + margin), far_from_zero * (cosines - margin)

        return circle
    # The library's losses hold a classifier of their own: of them only what a margin does to a cosine is taken.
    library = {"arcface": ArcFaceLoss, "cosface": CosFaceLoss}[settings.classification]
    harder = library(num_classes=1, embedding_size=1, margin=margin).modify_cosine_of_target_classes
    return lambda cosines: (harder(cosines), cosines)


def _make_metric(settings: LossSettings) -> nn.Module | None:
    if settings.metric == "none":
        return None
    if settings.metric == "circle":
        # Over all pairs of cosines of the batch, Sun et al., CVPR 2020.
        circle: nn.Module = CircleLoss(m=settings.margin, gamma=settings.circle_scale, reducer=MeanReducer())
        return circle
    return HardTriplet(settings)
