"""A picture of ranked galleries: each row a query and its best gallery crops, framed and marked right or wrong."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageDraw, ImageOps

from reidserve.datasets import text_to_path
from reidserve.embed import decode, read_image
from reidserve.evaluate.shown import Shown
from reidserve.index.storage.folders import new_file

RIGHT, WRONG, QUERY = (34, 139, 72), (200, 50, 47), (60, 70, 82)
PAPER, INK = (250, 249, 246), (60, 70, 82)

_CELL = (72, 144)
_FRAME, _GAP, _MARGIN, _HEAD = 4, 6, 14, 30
_BADGE = 18


def draw_rankings(shown: Sequence[Shown], out: Path, *, top_k: int = 10) -> None:
    """Write a PNG of queries, a row each, with their `top_k` best gallery crops; what the rule drops is not shown.

    The file is whole or, if it fails, what it was.

    Raises:
        ImageError: an image cannot be read any more.
        OSError: the picture cannot be written.
    """
    width, height = (side + 2 * _FRAME for side in _CELL)
    canvas = Pillow.new(
        "RGB",
        (2 * _MARGIN + (top_k + 1) * (width + _GAP) + _GAP, 2 * _MARGIN + _HEAD + len(shown) * (height + _GAP)),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), "query", fill=INK, font_size=14)
    title = "best gallery crops: green with a tick right, red with a cross wrong"
    draw.text((_MARGIN + width + 2 * _GAP, _MARGIN), title, fill=INK, font_size=14)
    for line, ranked in enumerate(shown):
        top = _MARGIN + _HEAD + line * (height + _GAP)
        hits = [hit for hit in ranked.hits if hit.verdict != "dropped"][:top_k]
        canvas.paste(_framed(ranked.source, QUERY), (_MARGIN, top))
        for column, hit in enumerate(hits, start=1):
            framed = _framed(hit.source, RIGHT if hit.verdict == "right" else WRONG)
            mark(framed, right=hit.verdict == "right")
            canvas.paste(framed, (_MARGIN + column * (width + _GAP) + _GAP, top))
    with new_file(out) as partial:
        canvas.save(partial, "PNG")


def fit_crop(source: str, size: tuple[int, int]) -> Pillow.Image:
    """The image of a source, as large as fits into `size`, (width, height) pixels.

    Raises:
        ImageError: it cannot be decoded.
        OSError: it cannot be read.
    """
    return ImageOps.contain(Pillow.fromarray(decode(read_image(text_to_path(source)))), size)


def _framed(source: str | None, colour: tuple[int, int, int]) -> Pillow.Image:
    cell = Pillow.new("RGB", _CELL, PAPER)
    if source is not None:
        crop = fit_crop(source, _CELL)
        cell.paste(crop, ((_CELL[0] - crop.width) // 2, (_CELL[1] - crop.height) // 2))
    return ImageOps.expand(cell, _FRAME, colour)


def mark(framed: Pillow.Image, *, right: bool) -> None:
    """Draw a tick or a cross into the lower right corner: red and green are one colour to some."""
    draw = ImageDraw.Draw(framed)
    left, top = framed.width - _BADGE, framed.height - _BADGE
    draw.rectangle((left, top, framed.width, framed.height), fill=RIGHT if right else WRONG)
    tick, cross = [[(4, 9), (8, 13), (14, 5)]], [[(5, 5), (13, 13)], [(5, 13), (13, 5)]]
    for stroke in tick if right else cross:
        draw.line([(left + x, top + y) for x, y in stroke], fill=PAPER, width=3)
