"""What a trained network says of images: the class of each, and rankings of the gallery."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from reidserve.embed import Batch
from reidserve.evaluate import Labelled, evaluate, labels_of
from reidserve.evaluate.picture import RIGHT, WRONG, draw_rankings, mark
from reidserve.evaluate.shown import choose_spread, show
from reidserve.export.checkpoints import Feed
from reidserve.export.model import Network
from reidserve.export.train.material import Material, Trial
from reidserve.export.train.report.cells import Cell, Row, draw_rows, fit
from reidserve.export.train.validation import embed, normalise

_SHOWN = 32
_ACROSS = 8
_FRAME = 4
_QUERIES = 6


def predict(network: Network, pixels: Batch, feed: Feed) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The class (N,) of pixels (N, height, width, 3), and how sure the classifier is of it, (N,) from 0 to 1.

    A network in parts answers with the mean of their scores.
    """
    assert network.classifier is not None, "it was trained"
    with torch.inference_mode():
        seen = normalise(torch.from_numpy(np.array(pixels)), mean=feed.mean, std=feed.std)
        _, after = network.features(seen.contiguous())
        scores = network.classifier(after)
        if scores.ndim == 3:
            scores = scores.mean(1)
        probabilities, classes = scores.softmax(1).max(1)
    return classes.numpy(), probabilities.numpy()


def draw_predictions(network: Network, material: Material, feed: Feed) -> Pillow.Image:
    """Images with their pid and the one that the classifier says, framed right or wrong.

    They are spread over the images that were held out or, where there are none, over those that were learnt from.
    """
    pids = {label: str(crop.pid) for label, crop in zip(material.labels.tolist(), material.train.crops, strict=True)}
    kind, pictures, labels = "training", material.train, material.labels
    if material.held_out is not None and material.held_out_labels is not None:
        kind, pictures, labels = "held-out", material.held_out, material.held_out_labels
    rows = np.linspace(0, len(pictures) - 1, min(_SHOWN, len(pictures))).round().astype(np.int64)
    classes, probabilities = predict(network, pictures.pixels[rows], feed)
    right = classes == labels[rows]
    cells = []
    for place, row in enumerate(rows.tolist()):
        framed = ImageOps.expand(fit(pictures.pixels[row]), _FRAME, RIGHT if right[place] else WRONG)
        mark(framed, right=bool(right[place]))
        said, sure = pids[int(classes[place])], f"{probabilities[place]:.0%} sure"
        cells.append(Cell(framed, [f"is {pids[int(labels[row])]}", f"said {said}", sure]))
    title = f"{kind} images, and what the classifier says: {right.sum()} of {len(rows)} right"
    return draw_rows(title, [Row("", cells[start : start + _ACROSS]) for start in range(0, len(cells), _ACROSS)])


def draw_trial(network: Network, trial: Trial, feed: Feed, out: Path) -> None:
    """Write a PNG of queries, spread from the best found to the worst, with the best of the gallery for each.

    Raises:
        ImageError: an image cannot be read any more.
        OSError: it cannot be written.
    """
    query, gallery = (
        Labelled(embed(network, part.pixels, mean=feed.mean, std=feed.std), labels_of(part.crops))
        for part in (trial.query, trial.gallery)
    )
    evaluation = evaluate(query, gallery)
    draw_rankings(show(evaluation, query, gallery, choose_spread(evaluation, _QUERIES)), out)
