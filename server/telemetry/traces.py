"""Traces over OTLP/HTTP. Nothing else imports opentelemetry."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from reidserve.errors import ConfigError
from reidserve.server.telemetry.record import Record

PATH = "/v1/traces"
EXPORT_SECONDS = 5.0
"""How long a collector may take to take a batch of spans; the one after it waits, and what has no room is dropped."""

MOST_WAITING = 4096
"""Spans that wait for the collector."""

MOST_STAGES = 64
"""Stages of one call that get a span: a stream may have any number of them."""

CLOSING_SECONDS = 3.0

# As OpenTelemetry's conventions have it: the other codes are the caller's doing.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

_logger = logging.getLogger(__name__)


class Traces:
    """One span per call, with a child for each of its stages, in the trace that the caller's `traceparent` names.

    A call that comes with a trace is traced if that is; of the others, a share begin one. Spans leave in batches, from
    a thread of their own; no call waits for the collector.

    Raises:
        ConfigError: the endpoint is no URL, or the ratio is not 0 to 1.
    """

    def __init__(self, endpoint: str, *, ratio: float = 1.0) -> None:
        if not 0 <= ratio <= 1:
            raise ConfigError(f"the share of calls that begin a trace must be 0 to 1, got {ratio:g}")
        url = endpoint_url(endpoint)
        # It says so of each batch and of each span that finds no room, at the pace of the calls: `_Telling` does once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._exporter = _Telling(OTLPSpanExporter(url, timeout=EXPORT_SECONDS), where=urlsplit(url).netloc)
        resource = Resource.create({"service.name": "reidserve", "service.version": version("reidserve")})
        self._provider = TracerProvider(ParentBasedTraceIdRatio(ratio), resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=MOST_WAITING))
        self._tracer = self._provider.get_tracer("reidserve.server")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, record: Record, metadata: Mapping[str, str]) -> "CallTrace":
        """The span of a call that has just come in."""
        service, _, method = record.method.partition("/")
        parent = self._propagator.extract(metadata)
        span = self._tracer.start_span(
            record.method,
            parent,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": record.transport,
                "rpc.service": service,
                "rpc.method": method,
                "reidserve.request_id": record.request_id,
            },
        )
        return CallTrace(self._tracer, span)

    def close(self) -> None:
        """Export what waits, for CLOSING_SECONDS at most: a collector that is gone holds up nobody's end."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces-closing", daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)


class CallTrace:
    """A call's span, and those of its stages, which come one after another."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._stages: list[tuple[str, int, int]] = []  # each with its length and when it was told, nanoseconds

    @property
    def id(self) -> str:
        """32 hexadecimal digits that name the trace which it belongs to."""
        return format_trace_id(self._span.get_span_context().trace_id)

    def stage(self, name: str, seconds: float) -> None:
        """A part of the call took so long; it ended now, or where the stage that is told next began."""
        if self._span.is_recording() and len(self._stages) < MOST_STAGES:
            self._stages.append((name, round(seconds * 1e9), time.time_ns()))

    def end(self, record: Record) -> None:
        """The call is over."""
        if not self._span.is_recording():
            return
        parent, until = set_span_in_context(self._span), time.time_ns()
        for name, length, told in reversed(self._stages):
            until = min(until, told)
            self._tracer.start_span(name, parent, start_time=until - length).end(until)
            until -= length
        self._span.set_attribute("rpc.response.status_code", record.code)
        self._span.set_attribute("reidserve.images", record.images)
        if record.reason:
            self._span.set_attribute("reidserve.reason", record.reason)
        if record.code in _FAULTS:
            self._span.set_status(StatusCode.ERROR, record.reason)
        self._span.end()


class _Telling(SpanExporter):
    """An exporter that says when spans begin to be lost, and when they are not any more."""

    def __init__(self, exporter: SpanExporter, *, where: str) -> None:
        self._exporter = exporter
        self._where = where.rpartition("@")[2]
        self._losing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        losing = result is not SpanExportResult.SUCCESS
        if losing and not self._losing:
            _logger.warning(
                "traces are lost: the collector at %s does not take them (is it running, is the URL right?); calls go "
                "on, and this is said once",
                self._where,
            )
        if self._losing and not losing:
            _logger.warning("traces are exported to %s again", self._where)
        self._losing = losing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def endpoint_url(endpoint: str) -> str:
    """Where traces are posted: the URL as it is, with /v1/traces where it has no path.

    Raises:
        ConfigError: it is no URL of http or https with a host.
    """
    try:
        parts = urlsplit(endpoint)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        parts, known = urlsplit(""), None
    if not known:
        raise ConfigError("traces need a collector's URL, such as http://127.0.0.1:4318; what was given is none")
    return parts._replace(path=PATH).geturl() if parts.path in ("", "/") else endpoint
