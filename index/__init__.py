"""Embeddings become a gallery: durable in SQLite, searched in memory. Everything that ranks lives here."""

from reidserve.index.build import BuildReport, Item, add_images, build_gallery
from reidserve.index.entry import Entry, Hit
from reidserve.index.filters import Condition, Filter
from reidserve.index.gallery import Gallery, open_gallery, open_writer, read_kinds, read_snapshot
from reidserve.index.grammar import format_filter, parse_filter
from reidserve.index.rebuild import rebuild_gallery
from reidserve.index.search.coverage import IndexDevice, IndexKind
from reidserve.index.search.ranking import Ranking
from reidserve.index.search.snapshot import MAX_TOP_K, Snapshot
from reidserve.index.storage.database import Origin
from reidserve.index.storage.rows import Record, Written

__all__ = [
    "MAX_TOP_K",
    "BuildReport",
    "Condition",
    "Entry",
    "Filter",
    "Gallery",
    "Hit",
    "IndexDevice",
    "IndexKind",
    "Item",
    "Origin",
    "Ranking",
    "Record",
    "Snapshot",
    "Written",
    "add_images",
    "build_gallery",
    "format_filter",
    "open_gallery",
    "open_writer",
    "parse_filter",
    "read_kinds",
    "read_snapshot",
    "rebuild_gallery",
]
