"""Where galleries and models are, as every command takes them: a folder, or a URL of another server."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reidserve.commands.console import quiet_grpc
from reidserve.errors import GalleryError, UsageError

if TYPE_CHECKING:
    from reidserve.embed import ModelPlace
    from reidserve.index.place import Place

# A URL has colons of its own.
_PLACES = re.compile(r"[a-z]+://[^/]*/[^:]*|[^:]+")
_URL = re.compile(r"[a-z]+:")


def split_places(_: object, text: str, *, delimiter: str | None = None) -> list[str]:
    """The places in a variable of the environment, separated by colons."""
    return _PLACES.findall(text)


def read_place(text: str) -> "Place":
    """The folder, or the URL, that a text names.

    Raises:
        UsageError: it is a URL of nothing that holds galleries.
    """
    from reidserve.index.place import parse_place

    try:
        return parse_place(text)
    except GalleryError as error:
        raise UsageError(str(error)) from error


def read_model(text: str) -> "ModelPlace":
    """The artifact's folder, or the URL, that a text names.

    Raises:
        UsageError: it is a URL of nothing that computes models.
    """
    quiet_grpc()
    from reidserve.embed import parse_model

    return parse_model(text)


def refuse_memory(place: "Place", max_memory: int | None) -> None:
    """See that no memory is spoken of where a gallery takes none of a server's.

    Raises:
        UsageError: it is.
    """
    if max_memory is not None and not isinstance(place, Path):
        raise UsageError(f"--max-memory is of folders, whose entries a server has in memory; {place} is in Milvus")


def refuse_index(place: "Place", kind: str) -> None:
    """See that no index of ours is spoken of where a gallery has its own.

    Raises:
        UsageError: it is.
    """
    if kind != "auto" and not isinstance(place, Path):
        raise UsageError(f"--index is of folders, which are searched in memory; {place} is searched by Milvus")


def refuse_thumbnails(place: "Place", thumbnails: bool) -> None:
    """See that no thumbnails are asked for where none are kept.

    Raises:
        UsageError: they are.
    """
    if thumbnails and not isinstance(place, Path):
        raise UsageError(f"--thumbnails are kept in folders, {place} is in Milvus: show sources, --sources-root")


def _check_folder(_: object, folder: Path | None) -> None:
    if folder is not None and _URL.fullmatch(folder.parts[0] if folder.parts else ""):
        raise ValueError(
            "this needs a gallery's folder, which a URL is not: reid-index copy moves a gallery from Milvus into one"
        )


GalleryFolder = Annotated[Path, Parameter(validator=_check_folder)]
"""A gallery's folder, where nothing else will do."""
