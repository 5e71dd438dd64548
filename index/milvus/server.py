"""A Milvus server, reached through pymilvus, its failures told as ours. Nothing else imports pymilvus."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from reidserve.embed import Embeddings
from reidserve.errors import BackendUnavailableError, GalleryError
from reidserve.index.milvus.conditions import Expression
from reidserve.index.milvus.layout import TEXT_BYTES

MOST_HITS = 16_384
"""The most that Milvus answers at once, by its default quota."""

READ_SECONDS, WRITE_SECONDS, CHANGE_SECONDS = 10.0, 10.0, 60.0
"""How long Milvus may take to read, to write, and to make or load a collection."""

AWAY_SECONDS = 1.0
"""After a failure the next calls fail at once for so long, rather than each waiting for its deadline."""

_TEMPLATES_SINCE = (2, 5)

_CHANNEL = {"grpc.keepalive_permit_without_calls": False, "grpc.keepalive_time_ms": 300_000}
"""A gRPC server may hang up on who pings it more often (Milvus Lite does); a deadline notices a dead connection."""

# Milvus' own codes (pkg/util/merr) of what asking again does not mend.
_COLLECTION_NOT_FOUND = 100
_ALIAS_NOT_FOUND = 1600
_LASTING = (range(100, 101), range(102, 103), range(700, 703), range(1100, 1200), range(1600, 1603), range(1700, 1800))

_Result = TypeVar("_Result")


class MissingError(GalleryError):
    """Milvus has no collection of that name."""


class Server:
    """A connection to one server; safe from any thread. It is made with the first call, and again when it was lost.

    Any call raises BackendUnavailableError where the server is away or does not answer in time, and GalleryError
    where it answers that it cannot do it.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: MilvusClient | None = None
        self._templates = False
        self._connecting = threading.Lock()
        self._away_until = 0.0
        # What it would say, our errors say.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def close(self) -> None:
        """Let go of the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def search(
        self, collection: str, queries: Embeddings, where: Expression, *, limit: int, fields: Sequence[str]
    ) -> list[list[Mapping[str, Any]]]:
        """For each of (Q, dim) queries what scores best, best first: `entity` with the fields, and `distance`."""
        return self._call(
            lambda client, text: client.search(
                collection,
                list(queries),
                **text,
                limit=limit,
                output_fields=list(fields),
                search_params={"metric_type": "IP"},
                consistency_level="Session",
                timeout=READ_SECONDS,
            ),
            where,
        )

    def query(
        self, collection: str, where: Expression, *, fields: Sequence[str], newest: bool = False, limit: int = MOST_HITS
    ) -> list[dict[str, Any]]:
        """The entities of which an expression holds, in no order; `newest` waits for what anybody has written."""
        return self._call(
            lambda client, text: client.query(
                collection,
                **text,
                output_fields=list(fields),
                limit=limit,
                consistency_level="Strong" if newest else "Session",
                timeout=READ_SECONDS,
            ),
            where,
        )

    def count(self, collection: str, where: Expression) -> int:
        """Of how many entities an expression holds."""
        (found,) = self._call(
            lambda client, text: client.query(
                collection,
                **text,
                output_fields=["count(*)"],
                consistency_level="Session",
                timeout=READ_SECONDS,
            ),
            where,
        )
        return int(found["count(*)"])

    def upsert(self, collection: str, entities: Sequence[Mapping[str, Any]]) -> None:
        """Write entities by their id, in one call."""
        self._call(lambda client, _: client.upsert(collection, list(entities), timeout=WRITE_SECONDS))

    def delete(self, collection: str, where: Expression) -> None:
        """Remove entities by an expression of ids."""
        self._call(lambda client, text: client.delete(collection, **text, timeout=WRITE_SECONDS), where)

    def create(self, collection: str, dim: int) -> None:
        """Make an empty collection, searched exactly, and load it."""

        def create(client: MilvusClient, _: object) -> None:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=TEXT_BYTES)
            for name in ("pid", "camid", "source"):
                schema.add_field(name, DataType.VARCHAR, max_length=TEXT_BYTES)
            schema.add_field("content", DataType.VARCHAR, max_length=64)
            for name in ("row", "timestamp", "crc32"):
                schema.add_field(name, DataType.INT64)
            schema.add_field("attributes", DataType.JSON)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
            index = client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="IP")
            # One shard: a write is one message of Milvus' log.
            client.create_collection(
                collection,
                schema=schema,
                index_params=index,
                num_shards=1,
                consistency_level="Session",
                timeout=CHANGE_SECONDS,
            )
            client.load_collection(collection, timeout=CHANGE_SECONDS)

        self._call(create)

    def load(self, collection: str) -> str:
        """See that a collection is in Milvus' memory; the kind of its index.

        Raises:
            MissingError: there is none.
        """

        def load(client: MilvusClient, _: object) -> str:
            client.load_collection(collection, timeout=CHANGE_SECONDS)
            (name,) = client.list_indexes(collection, field_name="vector", timeout=READ_SECONDS)
            return str(client.describe_index(collection, name, timeout=READ_SECONDS)["index_type"])

        return self._call(load)

    def collection(self, alias: str) -> str | None:
        """The collection that an alias stands for, None where there is no such alias."""
        try:
            return str(
                self._call(lambda client, _: client.describe_alias(alias, timeout=READ_SECONDS))["collection_name"]
            )
        except MissingError:
            return None

    def has(self, collection: str) -> bool:
        """Whether there is a collection, or an alias, of that name."""
        return bool(self._call(lambda client, _: client.has_collection(collection, timeout=READ_SECONDS)))

    def point(self, alias: str, collection: str) -> None:
        """Let an alias stand for a collection, in one step."""
        known = self.collection(alias) is not None

        def point(client: MilvusClient, _: object) -> None:
            change = client.alter_alias if known else client.create_alias
            change(collection, alias, timeout=WRITE_SECONDS)

        self._call(point)

    def drop(self, collection: str) -> None:
        """Remove a collection and all that is in it."""
        self._call(lambda client, _: client.drop_collection(collection, timeout=CHANGE_SECONDS))

    def _call(
        self, call: Callable[[MilvusClient, dict[str, Any]], _Result], where: Expression | None = None
    ) -> _Result:
        if time.monotonic() < self._away_until:
            raise BackendUnavailableError(
                f"Milvus at {self.address} did not answer a moment ago: try again", retry_after=AWAY_SECONDS
            )
        try:
            client = self._connected()
            return call(client, {} if where is None else self._said(where))
        except (MilvusException, grpc.RpcError, OSError, ValueError) as error:
            raise self._told(error) from error

    def _connected(self) -> MilvusClient:
        with self._connecting:
            if self._client is None:
                uri = self.address if self.address.startswith("/") else f"http://{self.address}"
                client = MilvusClient(
                    uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=READ_SECONDS, grpc_options=_CHANNEL
                )
                self._templates = _takes_templates(client.get_server_version(timeout=READ_SECONDS))
                self._client = client
            return self._client

    def _said(self, where: Expression) -> dict[str, Any]:
        if self._templates:
            return {"filter": where.text, "filter_params": dict(where.values)}
        return {"filter": where.inlined()}

    def _told(self, error: Exception) -> Exception:
        code = error.code if isinstance(error, MilvusException) else None
        said = str(error)
        if isinstance(error, MilvusException):
            said = error.message
        elif isinstance(error, grpc.Call):
            said = error.details()
        said = said[:500]
        if code in (_COLLECTION_NOT_FOUND, _ALIAS_NOT_FOUND) or ("not found" in said and "lias" in said):
            return MissingError(f"Milvus at {self.address}: {said}")
        if isinstance(code, int) and any(code in some for some in _LASTING):
            return GalleryError(f"Milvus at {self.address} refuses: {said}")
        self._away_until = time.monotonic() + AWAY_SECONDS
        return BackendUnavailableError(
            f"Milvus at {self.address} does not answer: {said}; what was acknowledged is kept there, try again",
            retry_after=AWAY_SECONDS,
        )


def _takes_templates(version: str) -> bool:
    """Whether a server takes the values of an expression apart from its words."""
    numbers = version.removeprefix("v").split(".")[:2]
    return all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) >= _TEMPLATES_SINCE


def as_array(entities: Sequence[Mapping[str, Any]], dim: int) -> Embeddings:
    """The vectors (n, dim) of entities."""
    vectors = np.empty((len(entities), dim), np.float32)
    for place, entity in enumerate(entities):
        vectors[place] = entity["vector"]
    return vectors
