"""Pictures in rows, each with a few words below."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont, ImageOps

from reidserve.embed import Image
from reidserve.evaluate.picture import INK, PAPER

_CELL = (84, 144)
_MARGIN, _GAP, _BETWEEN, _LINE = 14, 6, 26, 16
_HEAD, _TEXT = 15, 12
_ASPECT = 1.4


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture with words.

    Attributes:
        picture: not larger than `fit` gives, but for a frame.
        words: a line each, below it.
    """

    picture: Pillow.Image
    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Row:
    """Cells side by side.

    Attributes:
        name: above them; "" for none.
        cells: at least one.
    """

    name: str
    cells: Sequence[Cell]


def fit(image: Image) -> Pillow.Image:
    """An image as large as a cell lets it be."""
    return ImageOps.contain(Pillow.fromarray(image), _CELL)


def draw_rows(title: str, rows: Sequence[Row]) -> Pillow.Image:
    """The rows under a title, as many of them side by side as make the picture a little wider than high."""
    width = max(sum(cell.picture.width + _GAP for cell in row.cells) for row in rows)
    height = max(_row_height(row) for row in rows)
    columns = min(
        range(1, len(rows) + 1),
        key=lambda count: abs(math.log((width + _BETWEEN) * count / (height * math.ceil(len(rows) / count)) / _ASPECT)),
    )
    down = math.ceil(len(rows) / columns)
    font = ImageFont.load_default(_HEAD)
    canvas = Pillow.new(
        "RGB",
        (
            max(columns * (width + _BETWEEN) - _BETWEEN, math.ceil(font.getlength(title))) + 2 * _MARGIN,
            down * height + 2 * _MARGIN + 2 * _LINE,
        ),
        PAPER,
    )
    ImageDraw.Draw(canvas).text((_MARGIN, _MARGIN), title, fill=INK, font=font)
    for place, row in enumerate(rows):
        left, top = _MARGIN + place // down * (width + _BETWEEN), _MARGIN + 2 * _LINE + place % down * height
        _draw_row(canvas, row, left, top)
    return canvas


def to_png(picture: Pillow.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _row_height(row: Row) -> int:
    lines = max(len(cell.words) for cell in row.cells) + bool(row.name)
    return max(cell.picture.height for cell in row.cells) + _LINE * lines + 2 * _GAP


def _draw_row(canvas: Pillow.Image, row: Row, left: int, top: int) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    if row.name:
        draw.text((left, top), row.name, fill=INK, font=font)
        top += _LINE
    for cell in row.cells:
        canvas.paste(cell.picture, (left, top))
        for line, words in enumerate(cell.words):
            place = (left, top + cell.picture.height + line * _LINE)
            draw.text(place, _shortened(words, font, cell.picture.width), fill=INK, font=font)
        left += cell.picture.width + _GAP


def _shortened(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(words) <= width:
        return words
    fitting = [count for count in range(len(words)) if font.getlength(words[:count] + "…") <= width]
    return words[: fitting[-1]] + "…"
