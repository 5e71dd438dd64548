"""The offline harness: Rank@k, mAP and mINP of exactly what is deployed."""

from reidserve.evaluate.agreement import Nearest, find_nearest
from reidserve.evaluate.crops import CropEmbedder, Embedded, embed_crops, embed_parts, labels_of
from reidserve.evaluate.evaluation import Evaluation, evaluate, evaluate_rankings, evaluate_scores
from reidserve.evaluate.labelled import Labelled, Labels, digest_labels
from reidserve.evaluate.metrics import Metrics
from reidserve.evaluate.preflight import Preflight, check_labels
from reidserve.evaluate.rule import MARKET, Rule
from reidserve.evaluate.tuning import KindReport, tune

__all__ = [
    "MARKET",
    "CropEmbedder",
    "Embedded",
    "Evaluation",
    "KindReport",
    "Labelled",
    "Labels",
    "Metrics",
    "Nearest",
    "Preflight",
    "Rule",
    "check_labels",
    "digest_labels",
    "embed_crops",
    "embed_parts",
    "evaluate",
    "evaluate_rankings",
    "evaluate_scores",
    "find_nearest",
    "labels_of",
    "tune",
]
