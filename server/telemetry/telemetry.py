"""Telemetry: what a server says of its calls, in logs always, in metrics and traces where these were asked for."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from reidserve.errors import ConfigError
from reidserve.server.call import Arrival
from reidserve.server.telemetry.logs import log_call
from reidserve.server.telemetry.record import Record, current

if TYPE_CHECKING:
    from reidserve.server.deployment import Deployment
    from reidserve.server.telemetry.metrics import Metrics
    from reidserve.server.telemetry.traces import Traces

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Telemetry.render` gives."""

AT_THE_DOOR = frozenset({"NOT_SERVING", "PERMISSION_DENIED", "RATE_LIMITED", "UNAUTHENTICATED"})
"""Reasons for which a call is turned away before a pipeline sees it; of the others the pipeline tells."""

INSTALL = "pip install 'reidserve[telemetry]'"


class Telemetry:
    """Counts, traces and logs calls; without metrics and traces it only logs them and gives them their ids.

    Attributes:
        counts: whether there are metrics to be rendered.
    """

    def __init__(self, metrics: "Metrics | None" = None, traces: "Traces | None" = None) -> None:
        self.counts = metrics is not None
        self._metrics = metrics
        self._traces = traces

    def call(self, method: str, arrival: Arrival) -> "_Telling":
        """One call, from its arrival to its end: the block's end, or the error or cancellation that leaves it.

        Whoever answers sets the record's code, reason, images and caller. An error that leaves the block while the
        code is OK was planned by nobody (INTERNAL). A cancelled call's caller has gone, or its deadline has come.
        """
        record = Record(method, arrival.request_id, arrival.peer, arrival.transport)
        if self._traces is not None:
            record.trace = self._traces.begin(record, arrival.metadata)
        return _Telling(record, arrival.deadline, self._end)

    def stage(self, name: str, seconds: float) -> None:
        """A stage of the call that this task works for took so long; told in their order, when they end or later."""
        if self._metrics is not None:
            self._metrics.stage(name, seconds)
        if (record := current.get()) is not None and record.trace is not None:
            record.trace.stage(name, seconds)

    def batch(self, images: int, seconds: float) -> None:
        """The engine computed so many images together in so long; from any thread."""
        if self._metrics is not None:
            self._metrics.batch(images, seconds)

    def rejected(self, reason: str) -> None:
        """The pipeline turned a call away, for the reason of an error."""
        if self._metrics is not None:
            self._metrics.rejected(reason)

    def watch(self, deployment: "Deployment") -> None:
        """Show from now on what a deployment serves, each time that metrics are rendered."""
        if self._metrics is not None:
            self._metrics.watch(deployment)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format (CONTENT_TYPE); on the event loop, where the deployment changes.

        Raises:
            ConfigError: nobody asked for metrics.
        """
        if self._metrics is None:
            raise ConfigError("this server counts nothing: start it with --metrics")
        return self._metrics.render()

    def close(self) -> None:
        """Export what traces there are still, for 3 seconds at most."""
        if self._traces is not None:
            self._traces.close()

    def _end(self, record: Record) -> None:
        seconds = record.seconds
        if self._metrics is not None:
            self._metrics.call(record.method, record.code, seconds)
            if record.reason in AT_THE_DOOR:
                self._metrics.rejected(record.reason)
        if record.trace is not None:
            record.trace.end(record)
        log_call(record, seconds)


class _Telling:
    """The record of a call while a block lasts; its end is told. (A generator would cost a refusal a tenth more.)"""

    __slots__ = ("_before", "_deadline", "_end", "_record")

    def __init__(self, record: Record, deadline: float | None, end: Callable[[Record], None]) -> None:
        self._record = record
        self._deadline = deadline
        self._end = end

    def __enter__(self) -> Record:
        self._before = current.get()
        current.set(self._record)
        return self._record

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self._record.code = _code_of_cancelled(self._deadline)
        elif error is not None and self._record.code == "OK":
            self._record.code = "INTERNAL"
        current.set(self._before)
        self._end(self._record)


def open_telemetry(*, metrics: bool = False, otlp: str | None = None, ratio: float = 1.0) -> Telemetry:
    """Telemetry with what was asked for, and nothing else.

    Args:
        metrics: count for Prometheus.
        otlp: the URL of the OTLP/HTTP collector that gets traces; None for no traces.
        ratio: how many of the calls that come without a trace begin one, 0 to 1.

    Raises:
        ConfigError: the packages for it are not installed, or the URL or the ratio is none.
    """
    counting, tracing = None, None
    try:
        if metrics:
            from reidserve.server.telemetry.metrics import Metrics

            counting = Metrics()
        if otlp is not None:
            from reidserve.server.telemetry.traces import Traces

            tracing = Traces(otlp, ratio=ratio)
    except ImportError as error:
        what = "metrics" if counting is None and metrics else "traces"
        raise ConfigError(f"{what} need packages that are not installed ({error.name}): {INSTALL}") from error
    return Telemetry(counting, tracing)


def _code_of_cancelled(deadline: float | None) -> str:
    # gRPC cancels a call at its deadline as it does one whose caller has gone.
    return "DEADLINE_EXCEEDED" if deadline is not None and time.monotonic() >= deadline else "CANCELLED"
