"""Servers that fail when a test says: one that answers as it is told to, and the real one on a port that stays."""

import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.conftest import BIN

Answer = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class Scripted:
    """A running server.

    Attributes:
        target: its host:port.
        calls: the method of each call, and what metadata came with it.
    """

    target: str = ""
    calls: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def count(self, name: str) -> int:
        return sum(method.endswith(f"/{name}") for method, _ in self.calls)


@contextmanager
def scripted(
    answers: Mapping[str, Answer], *, credentials: grpc.ServerCredentials | None = None, listen: str = "127.0.0.1:0"
) -> Iterator[Scripted]:
    """A server of these methods; a stream's request is an iterator of bytes, another's bytes."""
    said = Scripted()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            said.calls.append((details.method, {key: str(value) for key, value in details.invocation_metadata}))
            answer = answers.get(details.method.rpartition("/")[2])
            if answer is None:
                return None
            if details.method.endswith("/ImportEntries"):
                return grpc.stream_stream_rpc_method_handler(answer)
            if details.method.endswith("/Rank"):
                return grpc.unary_stream_rpc_method_handler(answer)
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(8), handlers=[Handler()], options=[("grpc.so_reuseport", 0)])
    add = server.add_insecure_port if credentials is None else lambda at: server.add_secure_port(at, credentials)
    said.target = f"127.0.0.1:{add(listen)}"
    server.start()
    try:
        yield said
    finally:
        server.stop(0).wait()


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str = "",
    *,
    message: str = "no",
    retry_after: float | None = None,
    request_id: str = "",
) -> NoReturn:
    """End a call as reid-serve does."""
    details = []
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="reidserve", metadata={"request_id": request_id})
        details.append(packed(info))
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(retry_after * 1e9))
        details.append(packed(retry))
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
    raise AssertionError("abort returned")


def packed(detail: Any) -> any_pb2.Any:
    box = any_pb2.Any()
    box.Pack(detail)
    return box


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(port: int, *arguments: object) -> subprocess.Popen[str]:
    """A real reid-serve, which prints a line when it is ready."""
    command = [str(BIN / "reid-serve"), "--listen", f"127.0.0.1:{port}", "--json", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
