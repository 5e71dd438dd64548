"""A picture of ranked galleries: each row a query and its best gallery crops, framed right or wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageOps

from reidserve.datasets import text_to_path
from reidserve.embed import decode, read_image
from reidserve.evaluate.labelled import Labelled
from reidserve.evaluate.metrics import average_precision
from reidserve.evaluate.positives import MarketRule, rank_positives

RIGHT, WRONG, QUERY = (34, 139, 72), (200, 50, 47), (60, 70, 82)
PAPER, INK = (250, 249, 246), (60, 70, 82)

_CELL = (72, 144)
_FRAME, _GAP, _MARGIN, _HEAD = 4, 6, 14, 30


def draw_rankings(query: Labelled, gallery: Labelled, out: Path, *, rows: int = 6, top_k: int = 10) -> None:
    """Write a PNG of `rows` queries, from the best ranked to the worst, and their `top_k` best gallery crops.

    What the rule of Market-1501 drops is not shown; ties stand in gallery order, as everywhere.

    Raises:
        ImageError: an image cannot be read any more.
        OSError: the picture cannot be written.
    """
    chosen = choose_queries(query, gallery, rows)
    width, height = (side + 2 * _FRAME for side in _CELL)
    canvas = Pillow.new(
        "RGB",
        (2 * _MARGIN + (top_k + 1) * (width + _GAP) + _GAP, 2 * _MARGIN + _HEAD + len(chosen) * (height + _GAP)),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), "query", fill=INK, font_size=14)
    draw.text(
        (_MARGIN + width + 2 * _GAP, _MARGIN), "best gallery crops: green right, red wrong", fill=INK, font_size=14
    )
    for line, place in enumerate(chosen):
        top = _MARGIN + _HEAD + line * (height + _GAP)
        ranked = best_of(query, gallery, place, top_k)
        sources = [(query.sources[place], QUERY), *((gallery.sources[row], _colour(hit)) for row, hit in ranked)]
        for column, (source, colour) in enumerate(sources):
            left = _MARGIN + column * (width + _GAP) + (_GAP if column else 0)
            canvas.paste(_framed(source, colour), (left, top))
    canvas.save(out, "PNG")


def choose_queries(query: Labelled, gallery: Labelled, rows: int) -> list[int]:
    """Queries that can be answered, spread evenly from the best average precision to the worst."""
    scored = [
        (-average_precision(positives), place)
        for place, positives in enumerate(rank_positives(query, gallery))
        if len(positives.ranks)
    ]
    ordered = [place for _, place in sorted(scored)]
    steps = np.linspace(0, len(ordered) - 1, min(rows, len(ordered)))
    return [ordered[round(step)] for step in steps]


def best_of(query: Labelled, gallery: Labelled, place: int, top_k: int) -> Sequence[tuple[int, bool]]:
    """The best gallery rows for one query, best first, and whether each is right."""
    counts, right = MarketRule(query, gallery).judge(place)
    rows = np.flatnonzero(counts)
    scores = np.vecdot(gallery.embeddings[rows], query.embeddings[place])
    best = rows[np.lexsort((rows, -scores))][:top_k]
    return [(int(row), bool(right[row])) for row in best]


def _colour(hit: bool) -> tuple[int, int, int]:
    return RIGHT if hit else WRONG


def _framed(source: str | None, colour: tuple[int, int, int]) -> Pillow.Image:
    cell = Pillow.new("RGB", _CELL, PAPER)
    if source is not None:
        crop = ImageOps.contain(Pillow.fromarray(decode(read_image(text_to_path(source)))), _CELL)
        cell.paste(crop, ((_CELL[0] - crop.width) // 2, (_CELL[1] - crop.height) // 2))
    return ImageOps.expand(cell, _FRAME, colour)
