"""The losses: label-smoothed cross-entropy on scores, batch-hard triplets on features before the neck.

Nothing else imports pytorch-metric-learning.
"""

from collections.abc import Callable

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from reidserve.export.train.settings import Settings

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""scores (N, classes), features (N, dim), labels (N,) int64 -> a number."""


def make_loss(settings: Settings) -> Loss:
    """The sum of the two losses, each a mean over the batch.

    Cross-entropy with smoothed labels: Szegedy et al., 2016; triplets of each image with its farthest positive and
    its nearest negative: Hermans et al., 2017, with the margin and the Euclidean distance of Luo et al., 2019.
    """
    cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    distance = LpDistance(normalize_embeddings=False)
    hardest = BatchHardMiner(distance=distance)
    # The library's own mean leaves triplets without a loss out.
    triplet = TripletMarginLoss(margin=settings.margin, distance=distance, reducer=MeanReducer())

    def loss(scores: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        total: Tensor = cross_entropy(scores, labels) + triplet(features, labels, hardest(features, labels))
        return total

    return loss
