"""Where galleries may be, one list for every test that is of all of them."""

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from reidserve.index import GalleryUrl, Origin, Place
from reidserve.index.places import open_gallery
from reidserve.index.seam import Gallery, Rows
from reidserve.index.storage.store import create_store

BACKENDS = ["folder", "milvus-lite", pytest.param("milvus", marks=pytest.mark.slow)]
"""The real server answers each change of a collection in a second or so: minutes, not seconds."""

_names = itertools.count()


class Backend:
    """Something that holds galleries.

    Attributes:
        name: of BACKENDS.
        address: where Milvus is; None for folders.
    """

    def __init__(self, name: str, folder: Path, address: str | None) -> None:
        self.name = name
        self.address = address
        self._folder = folder

    def free_place(self) -> Place:
        """A place where there is no gallery yet."""
        number = next(_names)
        if self.address is None:
            return self._folder / f"g{number}.gallery"
        return GalleryUrl("milvus", self.address, f"g{number}")

    def make(self, place: Place, origin: Origin) -> Rows:
        """The rows of a new gallery, to be written."""
        if isinstance(place, Path):
            return create_store(place, origin)
        from reidserve.index.milvus import make_rows

        return make_rows(place, origin)

    @contextmanager
    def opened(self, origin: Origin) -> Iterator[Gallery]:
        """A new gallery, open to write."""
        place = self.free_place()
        self.make(place, origin).close()
        with closing(open_gallery(place, write=True)) as gallery:
            yield gallery


@contextmanager
def lite_folder() -> Iterator[Path]:
    """A folder for Milvus Lite, whose server in this process is stopped at the end."""
    pytest.importorskip("milvus_lite", reason="needs the [test] extra")
    from milvus_lite.server_manager import server_manager_instance

    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        finally:
            server_manager_instance.release_server(f"{folder}/lite.db")
