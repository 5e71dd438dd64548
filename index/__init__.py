"""Embeddings become a gallery: durable in SQLite, searched in memory. Everything that ranks lives here."""

from reidserve.index.build import BuildReport, Item, add_images, build_gallery
from reidserve.index.entry import Entry, Hit
from reidserve.index.filters import Condition, Filter
from reidserve.index.forgetting import Forgotten, forget_entries
from reidserve.index.gallery import FolderGallery, open_writer, read_kinds, read_snapshot
from reidserve.index.grammar import format_filter, parse_filter
from reidserve.index.place import GalleryUrl, Place, parse_place
from reidserve.index.places import open_gallery
from reidserve.index.rebuild import rebuild_gallery
from reidserve.index.seam import Gallery, Snapshot
from reidserve.index.search.coverage import IndexDevice, IndexKind
from reidserve.index.search.ranking import MAX_TOP_K, Ranking
from reidserve.index.search.snapshot import FolderSnapshot
from reidserve.index.storage.database import Origin
from reidserve.index.storage.rows import Record, Written

__all__ = [
    "MAX_TOP_K",
    "BuildReport",
    "Condition",
    "Entry",
    "Filter",
    "FolderGallery",
    "FolderSnapshot",
    "Forgotten",
    "Gallery",
    "GalleryUrl",
    "Hit",
    "IndexDevice",
    "IndexKind",
    "Item",
    "Origin",
    "Place",
    "Ranking",
    "Record",
    "Snapshot",
    "Written",
    "add_images",
    "build_gallery",
    "forget_entries",
    "format_filter",
    "open_gallery",
    "open_writer",
    "parse_filter",
    "parse_place",
    "read_kinds",
    "read_snapshot",
    "rebuild_gallery",
]
