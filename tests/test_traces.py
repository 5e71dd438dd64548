"""Traces against a real collector on a port of its own: one that takes them, one that is gone, one that hangs."""

import asyncio
import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from reidserve.errors import ConfigError
from reidserve.proto.reid.v1 import reid_pb2
from reidserve.server.call import Arrival
from reidserve.server.telemetry import Telemetry, open_telemetry, traces
from reidserve.server.telemetry.traces import endpoint_url
from tests.conftest import BIN

SEARCH = "reid.v1.SearchService/Search"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector that keeps what it gets."""

    def __init__(self, port: int = 0) -> None:
        self.paths: list[str] = []
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}
        super().__init__(("127.0.0.1", port), _Taking)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, name: str) -> Span:
        (span,) = (span for span in self.spans if span.name == name)
        return span

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in sent.resource_spans:
            self.server.resource |= {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *said: object) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


def arrival(**metadata: str) -> Arrival:
    return Arrival({name.replace("_", "-"): value for name, value in metadata.items()}, "ipv4:1.2.3.4:5", "grpc")


def one_call(telemetry: Telemetry, **metadata: str) -> None:
    with telemetry.call(SEARCH, arrival(**metadata)) as record:
        telemetry.stage("decode", 0.003)
        telemetry.stage("search", 0.001)
        record.images = 2


def attributes(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}


def test_a_call_is_a_span_of_the_callers_trace_with_a_child_for_each_stage(collector):
    telemetry = open_telemetry(otlp=collector.url)
    one_call(telemetry, traceparent=f"00-{TRACE}-{PARENT}-01", x_request_id="ours")
    telemetry.close()
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.resource["service.name"] == "reidserve"
    call, decode, search = (collector.named(name) for name in (SEARCH, "decode", "search"))
    assert len(collector.spans) == 3
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.kind == Span.SPAN_KIND_SERVER
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": "reid.v1.SearchService",
        "rpc.method": "Search",
        "rpc.response.status_code": "OK",
        "reidserve.request_id": "ours",
        "reidserve.images": 2,
    }
    for child, seconds in ((decode, 0.003), (search, 0.001)):
        assert (child.trace_id.hex(), child.parent_span_id) == (TRACE, call.span_id)
        assert child.end_time_unix_nano - child.start_time_unix_nano == round(seconds * 1e9)
        assert child.end_time_unix_nano <= call.end_time_unix_nano
    # Told in one moment, as a pipeline does: they came one after the other all the same.
    assert decode.end_time_unix_nano == search.start_time_unix_nano


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [("INTERNAL", "INTERNAL", Status.STATUS_CODE_ERROR), ("NOT_FOUND", "ENTRY_NOT_FOUND", Status.STATUS_CODE_UNSET)],
)
def test_what_was_our_fault_is_an_error_and_what_was_the_callers_is_not(collector, code, reason, status):
    telemetry = open_telemetry(otlp=collector.url)
    with telemetry.call(SEARCH, arrival()) as record:
        record.code, record.reason = code, reason
    telemetry.close()
    span = collector.named(SEARCH)
    assert span.status.code == status
    assert attributes(span)["reidserve.reason"] == reason


@pytest.mark.parametrize(
    ("ratio", "traceparent", "traced"),
    [
        (1.0, None, True),
        (0.0, None, False),
        (0.0, f"00-{TRACE}-{PARENT}-01", True),
        (1.0, f"00-{TRACE}-{PARENT}-00", False),
        (1.0, "what is this", True),
        (1.0, f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01", True),
    ],
)
def test_a_callers_trace_decides_and_else_the_share(collector, ratio, traceparent, traced):
    telemetry = open_telemetry(otlp=collector.url, ratio=ratio)
    one_call(telemetry, **({} if traceparent is None else {"traceparent": traceparent}))
    telemetry.close()
    assert [span.name for span in collector.spans if span.name == SEARCH] == [SEARCH] * traced
    assert len(collector.spans) in (0, 3)


def test_calls_that_run_at_once_keep_their_stages_apart(collector):
    telemetry = open_telemetry(otlp=collector.url)

    async def call(name: str) -> None:
        with telemetry.call(SEARCH, arrival(x_request_id=name)):
            await asyncio.sleep(0.001)
            telemetry.stage("decode", int(name) / 1e9)
            await asyncio.gather(*(asyncio.create_task(stage("search", int(name) / 1e9)) for _ in range(2)))

    async def stage(name: str, seconds: float) -> None:
        await asyncio.sleep(0.001)
        telemetry.stage(name, seconds)

    async def all_of_them() -> None:
        await asyncio.gather(*(call(str(number)) for number in range(1, 21)))

    asyncio.run(all_of_them())
    telemetry.stage("decode", 1.0)  # of no call
    telemetry.close()
    calls = {span.span_id: attributes(span)["reidserve.request_id"] for span in collector.spans if span.name == SEARCH}
    stages = [span for span in collector.spans if span.name != SEARCH]
    assert len(calls) == 20
    assert len(stages) == 60
    for span in stages:
        assert str(span.end_time_unix_nano - span.start_time_unix_nano) == calls[span.parent_span_id]


def test_a_stage_that_was_told_when_it_ended_ends_then(collector):
    telemetry = open_telemetry(otlp=collector.url)
    with telemetry.call(SEARCH, arrival()):
        telemetry.stage("decode", 0.001)
        told = time.time_ns()
        time.sleep(0.02)
        telemetry.stage("search", 0.001)
    telemetry.close()
    assert abs(collector.named("decode").end_time_unix_nano - told) < 10_000_000


def test_a_stream_of_any_length_has_so_many_stages(collector):
    telemetry = open_telemetry(otlp=collector.url)
    with telemetry.call(SEARCH, arrival()):
        for _ in range(1000):
            telemetry.stage("embed", 0.001)
    telemetry.close()
    assert len(collector.spans) == 1 + traces.MOST_STAGES


def test_a_real_server_traces_a_call_and_logs_it_with_the_same_names(collector, model, gallery, tmp_path):
    command = [BIN / "reid-serve", "--model", model, "--gallery", gallery, "--listen", "127.0.0.1:0", "--json"]
    asked = ["--otlp", collector.url, "--log-format", "json", "--log-level", "debug"]
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen([*map(str, command), *asked], stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        target = json.loads(process.stdout.readline())["listening"]
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "ours"))
        request = reid_pb2.SearchRequest(entry_id="0001_c1s1_000000_00.png").SerializeToString()
        with grpc.insecure_channel(target) as channel:
            channel.unary_unary(f"/{SEARCH}")(request, metadata=metadata, timeout=30)
        process.terminate()
        assert process.wait(30) == 0
    call, search = collector.named(SEARCH), collector.named("search")
    assert (call.trace_id.hex(), call.parent_span_id.hex(), search.parent_span_id) == (TRACE, PARENT, call.span_id)
    said = [json.loads(line) for line in log.read_text().splitlines()]
    (line,) = [line for line in said if line.get("method") == SEARCH]
    assert (line["request_id"], line["trace_id"], line["code"]) == ("ours", TRACE, "OK")


def test_nothing_is_traced_where_nobody_asked_and_nobody_elses_tracer_is_taken(collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    before = trace.get_tracer_provider()
    for telemetry in (open_telemetry(), open_telemetry(metrics=True)):
        one_call(telemetry, traceparent=f"00-{TRACE}-{PARENT}-01")
        telemetry.close()
    assert collector.paths == []
    open_telemetry(otlp=collector.url).close()
    assert trace.get_tracer_provider() is before


def test_a_collector_that_is_gone_is_said_once_and_again_when_it_is_back(caplog, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setattr(traces, "EXPORT_SECONDS", 0.1)
    collector = Collector()
    port, url = collector.server_address[1], f"{collector.url.replace('//', '//me:secret@')}/v1/traces"
    collector.stop()
    telemetry = open_telemetry(otlp=url)
    with caplog.at_level(logging.DEBUG):
        for _ in range(5):
            one_call(telemetry)
            time.sleep(0.1)
        (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert f"the collector at 127.0.0.1:{port} does not take them" in said
        assert "secret" not in caplog.text
        back = Collector(port)
        for _ in range(50):
            one_call(telemetry)
            time.sleep(0.1)
            if caplog.records[-1].getMessage() == f"traces are exported to 127.0.0.1:{port} again":
                break
        telemetry.close()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2
    assert SEARCH in {span.name for span in back.spans}
    back.stop()


def test_a_collector_that_hangs_holds_up_neither_calls_nor_the_end(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setattr(traces, "EXPORT_SECONDS", 2.0)
    monkeypatch.setattr(traces, "CLOSING_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        telemetry = open_telemetry(otlp=f"http://127.0.0.1:{silent.getsockname()[1]}")
        one_call(telemetry)
        held, _ = silent.accept()  # the exporter waits for an answer from here on
        start = time.monotonic()
        # More spans than there is room for.
        for _ in range(2000):
            one_call(telemetry)
        telemetry.close()
        assert time.monotonic() - start < 2.0
        held.close()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector.example/", "https://collector.example/v1/traces"),
        ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
        ("https://collector.example/otlp/v1/traces?tenant=a", "https://collector.example/otlp/v1/traces?tenant=a"),
    ],
)
def test_traces_are_posted_to_the_endpoint_that_was_named(given, url):
    assert endpoint_url(given) == url


@pytest.mark.parametrize(
    "given", ["", "127.0.0.1:4318", "grpc://collector:4317", "http://", "http://me:secret@:1", "http://h:99999"]
)
def test_what_is_no_url_is_refused_without_repeating_it(given):
    with pytest.raises(ConfigError, match="traces need a collector's URL") as refusal:
        open_telemetry(otlp=given)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_nothing_to_all(ratio):
    with pytest.raises(ConfigError, match="0 to 1"):
        open_telemetry(otlp="http://127.0.0.1:4318", ratio=ratio)
