"""A call, as metrics, traces and logs know it while it lasts."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


class Trace(Protocol):
    """The span of a call."""

    @property
    def id(self) -> str:
        """32 hexadecimal digits that name the trace which it belongs to."""
        ...

    def stage(self, name: str, seconds: float) -> None:
        """A part of the call took so long; it ended now, or where the stage that is told next began."""
        ...

    def end(self, record: "Record") -> None:
        """The call is over."""
        ...


@dataclass(slots=True, eq=False)
class Record:
    """What is told of one call when it ends; whoever answers it fills in what it knows.

    Attributes:
        method: its full name, such as "reid.v1.SearchService/Search".
        request_id: names it in logs, traces and errors.
        peer: where it comes from.
        transport: "grpc" or "http".
        caller: the name of its key; empty until that is known.
        images: how many images it carries.
        code: the name of the gRPC status that it ends with.
        reason: of the error that it ends with; empty where there is none.
        trace: its span; None where it is not traced.
    """

    method: str
    request_id: str
    peer: str
    transport: str
    caller: str = ""
    images: int = 0
    code: str = "OK"
    reason: str = ""
    trace: Trace | None = None
    _born: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the call came in."""
        return time.perf_counter() - self._born


current: ContextVar[Record | None] = ContextVar("reidserve_call", default=None)
"""The call that a task works for; tasks that it starts inherit it, threads do not."""
