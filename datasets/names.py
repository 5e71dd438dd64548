"""File names as text: Linux names are bytes, databases and protocols want Unicode."""

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_LOOKS_ENCODED = re.compile("%(?=[0-9A-Fa-f]{2})")


def path_to_text(path: Path) -> str:
    """A path as valid Unicode: bytes that are not UTF-8 become %XX, and a % that would read as one becomes %25.

    Two paths never give one text, and ordinary names (also "100%.jpg") stay as they are.
    """
    text = _LOOKS_ENCODED.sub("%25", os.fspath(path))
    return _NOT_UTF8.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", text)


def text_to_path(text: str) -> Path:
    """The path that `path_to_text` made this text of."""
    # unquote_to_bytes leaves a % alone that no two hexadecimal digits follow.
    return Path(os.fsdecode(unquote_to_bytes(text)))
