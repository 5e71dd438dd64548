"""Listening: the port of gRPC, bound before anything is loaded; two servers never share one."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from reidserve.errors import ServerError
from reidserve.server.guard.gate import Gate
from reidserve.server.guard.tls import Certificate, grpc_credentials
from reidserve.server.guard.watched import Watched
from reidserve.server.health import Health
from reidserve.server.reflection import enable_reflection
from reidserve.server.settings import Settings
from reidserve.server.wire.calls import Calls
from reidserve.server.wire.handlers import handlers
from reidserve.server.wire.methods import Method
from reidserve.server.wire.service import services

_LAST_WORDS_SECONDS = 1.0  # for replies that are on their way when the last call is done
_UNLIMITED = 2**20
_KEEPALIVE_MILLISECONDS = 60_000


@asynccontextmanager
async def listening(
    settings: Settings,
    calls: Calls,
    methods: Sequence[Method],
    checks: Health,
    gate: Gate,
    certificate: Watched[Certificate] | None,
) -> AsyncIterator[str]:
    """Take calls while the block lasts, which gets the address with its port.

    Raises:
        ServerError: the address cannot be listened on.
    """
    server = grpc.aio.server(
        options=[
            # Otherwise two servers would share a port in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.message_bytes),
            # A caller whose machine is gone holds nothing for longer; gRPC would take two hours to notice.
            ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
            # Above 1,000 waiting calls gRPC cancels some at random, without a word: admission is the pipeline's.
            ("grpc.server.max_pending_requests", _UNLIMITED),
            ("grpc.server.max_pending_requests_hard_limit", _UNLIMITED),
        ],
    )
    server.add_generic_rpc_handlers(handlers(calls, methods))
    add_HealthServicer_to_server(checks.servicer, server)
    if settings.reflection:
        enable_reflection(server, (*services(methods), health.SERVICE_NAME), gate)
    port = _bind(server, settings.listen, certificate)
    try:
        await server.start()
        yield f"{settings.listen.rpartition(':')[0]}:{port}"
        await server.stop(_LAST_WORDS_SECONDS)
    finally:
        await server.stop(0)


def _bind(server: grpc.aio.Server, address: str, certificate: Watched[Certificate] | None) -> int:
    try:
        if certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, grpc_credentials(certificate))
    except RuntimeError as error:
        raise ServerError(f"{address} cannot be listened on: is the port in use?") from error
