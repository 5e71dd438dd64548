"""The Python client; it pulls in no ML package."""

from reidserve.client.client import DEFAULT_TARGET, Client, Rerank
from reidserve.client.filters import Filter
from reidserve.client.results import Entry, Gallery, Hit, Ranked, SearchResult
from reidserve.errors import RequestError

__all__ = [
    "DEFAULT_TARGET",
    "Client",
    "Entry",
    "Filter",
    "Gallery",
    "Hit",
    "Ranked",
    "RequestError",
    "Rerank",
    "SearchResult",
]
