"""The Python client; it pulls in no ML package."""

from reidserve.client.client import DEFAULT_TARGET, Client, Hit, SearchResult
from reidserve.client.filters import Filter
from reidserve.errors import RequestError

__all__ = ["DEFAULT_TARGET", "Client", "Filter", "Hit", "RequestError", "SearchResult"]
