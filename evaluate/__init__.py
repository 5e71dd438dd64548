"""The offline harness: Rank@k, mAP and mINP of exactly what is deployed."""

from reidserve.evaluate.crops import embed_crops
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.metrics import Report, evaluate
from reidserve.evaluate.picture import draw_rankings

__all__ = ["Labelled", "Report", "draw_rankings", "embed_crops", "evaluate"]
