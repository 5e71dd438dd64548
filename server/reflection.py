"""Reflection: gRPC says which calls there are, to those who may know."""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import (
    ServerReflectionServicer,
    add_ServerReflectionServicer_to_server,
)

from reidserve.errors import ReidError
from reidserve.server.call import Arrival, join_metadata
from reidserve.server.guard.gate import Gate
from reidserve.server.wire.status import abort

_Context = grpc.aio.ServicerContext[bytes, bytes]


def enable_reflection(server: grpc.aio.Server, services: Sequence[str], gate: Gate) -> None:
    """Let a server describe these services to callers of the admin scope, and to anyone where there are no keys."""
    described = _Reflection((*services, reflection.SERVICE_NAME), gate)
    add_ServerReflectionServicer_to_server(described, server)  # type: ignore[no-untyped-call]


class _Reflection(ServerReflectionServicer):
    def __init__(self, services: Sequence[str], gate: Gate) -> None:
        self._open: Any = reflection.aio.ReflectionServicer(services)
        self._gate = gate

    async def ServerReflectionInfo(  # noqa: N802  # gRPC's name
        self, request_iterator: AsyncIterable[reflection_pb2.ServerReflectionRequest], context: _Context
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """Answer a call, or refuse it."""
        metadata = join_metadata(context.invocation_metadata() or ())
        arrival = Arrival(metadata, peer="", transport="grpc")
        try:
            self._gate.admit(arrival).check("admin")
        except ReidError as error:
            await abort(context, error, arrival.request_id)
        async for response in self._open.ServerReflectionInfo(request_iterator, context):
            yield response
