"""The Python client; it pulls in no ML package."""

from reidserve.client.aio import AsyncClient
from reidserve.client.client import Client
from reidserve.client.connection import DEFAULT_TARGET, KEY_VARIABLE, Tls
from reidserve.client.filters import Filter
from reidserve.client.galleries import (
    Deleted,
    Entry,
    Fault,
    Gallery,
    Imported,
    NewEntry,
    Snapshot,
    Updated,
    Written,
)
from reidserve.client.models import Model, ModelFacts, Reloaded
from reidserve.client.results import Hit, Ranked, SearchResult
from reidserve.client.searches import Rerank, Search, SearchOptions
from reidserve.errors import (
    AccessError,
    BusyError,
    NotFoundError,
    QueryError,
    RefusedError,
    RequestError,
    TimedOutError,
    UnavailableError,
)

__all__ = [
    "DEFAULT_TARGET",
    "KEY_VARIABLE",
    "AccessError",
    "AsyncClient",
    "BusyError",
    "Client",
    "Deleted",
    "Entry",
    "Fault",
    "Filter",
    "Gallery",
    "Hit",
    "Imported",
    "Model",
    "ModelFacts",
    "NewEntry",
    "NotFoundError",
    "QueryError",
    "Ranked",
    "RefusedError",
    "Reloaded",
    "RequestError",
    "Rerank",
    "Search",
    "SearchOptions",
    "SearchResult",
    "Snapshot",
    "TimedOutError",
    "Tls",
    "UnavailableError",
    "Updated",
    "Written",
]
