"""Reflection: gRPC says which calls there are, to those who may know."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
from grpc_reflection.v1alpha import reflection

from reidserve.errors import ReidError
from reidserve.server.call import Arrival, join_metadata
from reidserve.server.guard.gate import Gate
from reidserve.server.wire.status import abort

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def enable_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Let a server describe these services."""
    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server)


class ReflectionGate(grpc.aio.ServerInterceptor):
    """Lets callers of the admin scope reflect, and anyone where there are no keys."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[_Request, _Response] | None"]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[_Request, _Response] | None":
        """Answer a call, or refuse it."""
        if handler_call_details.method.startswith(f"/{reflection.SERVICE_NAME}/"):
            metadata = join_metadata(handler_call_details.invocation_metadata)
            arrival = Arrival(metadata, peer="", transport="grpc")
            try:
                self._gate.admit(arrival).check("admin")
            except ReidError as error:
                return _refusal(error, arrival.request_id)
        return await continuation(handler_call_details)


def _refusal(error: ReidError, request_id: str) -> "grpc.RpcMethodHandler[_Request, _Response]":
    async def refuse(requests: object, context: _Context) -> None:
        await abort(context, error, request_id)

    return grpc.stream_stream_rpc_method_handler(refuse)
