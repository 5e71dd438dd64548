"""Embeddings become a gallery: durable in SQLite, searched in memory. Everything that ranks lives here."""

from reidserve.index.build import BuildReport, build_gallery
from reidserve.index.entry import Entry, Hit
from reidserve.index.gallery import Gallery, open_gallery, read_snapshot
from reidserve.index.ranking import Ranking
from reidserve.index.snapshot import MAX_TOP_K, Snapshot
from reidserve.index.store import Origin

__all__ = [
    "MAX_TOP_K",
    "BuildReport",
    "Entry",
    "Gallery",
    "Hit",
    "Origin",
    "Ranking",
    "Snapshot",
    "build_gallery",
    "open_gallery",
    "read_snapshot",
]
