"""A gallery's place: a folder, or a name on a Milvus server."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reidserve.datasets import path_to_text
from reidserve.errors import GalleryError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_SERVER = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_FORM = "expected milvus://HOST:PORT/NAME, or milvus:///FOLDER/FILE.db/NAME for a Milvus Lite file"


@dataclass(frozen=True, slots=True)
class GalleryUrl:
    """A gallery in Milvus; as text, `milvus://host:19530/mall`.

    Attributes:
        scheme: what holds it.
        address: `host:port`, or the absolute path of a Milvus Lite file.
        name: the gallery's: letters, digits and underscores.

    Raises:
        GalleryError: an address or a name that no such gallery can have.
    """

    scheme: Literal["milvus"]
    address: str
    name: str

    def __post_init__(self) -> None:
        if "@" in self.address:
            raise GalleryError("a gallery's URL must not hold a user or a password: set MILVUS_TOKEN instead")
        if not self.address.startswith("/") and not _SERVER.fullmatch(self.address):
            raise GalleryError(f"{self.address!r} is no server of galleries: {_FORM}")
        if not _NAME.fullmatch(self.name) or "__" in self.name:
            raise GalleryError(
                f"a gallery in Milvus is named by letters, digits and single underscores, got {self.name!r}: {_FORM}"
            )

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}/{self.name}"


Place = Path | GalleryUrl


def parse_place(text: str) -> Place:
    """The folder or the URL that a text names.

    Raises:
        GalleryError: a URL of nothing that holds galleries.
    """
    found = _SCHEME.match(text)
    if found is None:
        return Path(text)
    address, _, name = text[found.end() :].rpartition("/")
    if found.group() != "milvus://":
        raise GalleryError(f"{found.group()} names nothing that holds galleries: {_FORM}")
    return GalleryUrl("milvus", address, name)


def place_text(place: Place) -> str:
    """A place as messages name it."""
    return str(place) if isinstance(place, GalleryUrl) else path_to_text(place)
