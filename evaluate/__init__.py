"""The offline harness: Rank@k, mAP and mINP of exactly what is deployed."""

from reidserve.evaluate.crops import embed_crops
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.metrics import Report, evaluate

__all__ = ["Labelled", "Report", "embed_crops", "evaluate"]
