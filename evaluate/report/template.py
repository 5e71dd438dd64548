"""Pages that need nothing else, filled from templates. Nothing else imports Jinja2."""

import base64
import io
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image as Pillow

_QUALITY = 80


def fill(package: str, template: str, **values: object) -> str:
    """A package's template filled with values and, as `style`, the house's style sheet; all that is not ours is
    escaped.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "file_name": _file_name}
    style = Markup(_read("reidserve.evaluate.report", "page.css"))
    return environment.from_string(_read(package, template)).render(style=style, **values)


def data_uri(picture: Pillow.Image) -> str:
    """A picture as a JPEG within a page."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _percent(share: float | None, digits: int = 2) -> str:
    # A figure and its unit stand on one line.
    return "–" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _file_name(source: str) -> str:
    return source.rpartition("/")[2] or source


def _read(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
