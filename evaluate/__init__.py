"""The offline harness: Rank@k, mAP and mINP of exactly what is deployed."""

from reidserve.evaluate.crops import embed_crops
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.metrics import Report, evaluate
from reidserve.evaluate.picture import draw_rankings
from reidserve.evaluate.tuning import KindReport, tune

__all__ = ["KindReport", "Labelled", "Report", "draw_rankings", "embed_crops", "evaluate", "tune"]
