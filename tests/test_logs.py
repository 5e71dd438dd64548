"""What is logged: lines that machines or people read, with the id of their call, and never what was sent."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator

import grpc
import pytest
import uvicorn

from reidserve.server.call import Arrival
from reidserve.server.telemetry import Telemetry, open_telemetry
from reidserve.server.telemetry.logs import LONGEST, LogFormat, LogLevel, start_logs

SEARCH = "reid.v1.SearchService/Search"
SENT = b"\x89PNG\r\n\x1a\n and so on"
OURS = logging.getLogger("reidserve.server.anything")


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger("reidserve")
    before = root.handlers[:], root.level, ours.level
    root.handlers = []
    yield
    root.handlers, root.level, ours.level = before
    logging.captureWarnings(False)


@pytest.fixture
def telemetry() -> Telemetry:
    return open_telemetry()


def logging_to(log_format: LogFormat = "json", log_level: LogLevel = "info") -> io.TextIOWrapper:
    """Logs into a file of strict UTF-8, as a terminal's or a container's is."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    start_logs(log_format, log_level, stream)
    return stream


def text(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


def lines(stream: io.TextIOWrapper) -> list[dict]:
    return [json.loads(line) for line in text(stream).splitlines()]


def arrival(**metadata: str) -> Arrival:
    return Arrival({name.replace("_", "-"): value for name, value in metadata.items()}, "ipv4:1.2.3.4:5", "grpc")


def test_a_call_is_one_line_at_debug(telemetry):
    stream = logging_to("json", "debug")
    with telemetry.call(SEARCH, arrival(x_request_id="ours-1")) as record:
        record.images, record.caller, record.code, record.reason = 2, "shop", "NOT_FOUND", "ENTRY_NOT_FOUND"
    (line,) = lines(stream)
    seconds, when = line.pop("seconds"), line.pop("time")
    assert 0 < seconds < 1
    assert when.endswith("Z")
    assert line == {
        "level": "debug",
        "logger": "reidserve.server.telemetry.logs",
        "message": "call",
        "request_id": "ours-1",
        "method": SEARCH,
        "code": "NOT_FOUND",
        "reason": "ENTRY_NOT_FOUND",
        "images": 2,
        "caller": "shop",
        "peer": "ipv4:1.2.3.4:5",
        "transport": "grpc",
    }


def test_calls_are_no_lines_above_debug_unless_they_failed_by_our_fault(telemetry):
    stream = logging_to("json", "error")
    for code in ("OK", "NOT_FOUND", "UNAVAILABLE", "INTERNAL"):
        with telemetry.call(SEARCH, arrival()) as record:
            record.code = code
    assert [(line["level"], line["code"]) for line in lines(stream)] == [("error", "INTERNAL")]


def test_a_traced_call_names_its_trace():
    trace = "0af7651916cd43dd8448eb211c80319c"
    tracing = open_telemetry(otlp="http://127.0.0.1:9", ratio=0)
    stream = logging_to("json", "debug")
    with tracing.call(SEARCH, arrival(traceparent=f"00-{trace}-b7ad6b7169203331-00")):
        pass
    assert lines(stream)[0]["trace_id"] == trace
    tracing.close()


def test_what_is_said_during_a_call_has_its_id_and_what_is_said_outside_has_none(telemetry):
    stream = logging_to()

    async def work() -> None:
        await asyncio.sleep(0)
        OURS.warning("in a task")

    async def call(name: str) -> None:
        with telemetry.call(SEARCH, arrival(x_request_id=name)):
            await asyncio.gather(work(), asyncio.create_task(work()))

    async def calls() -> None:
        await asyncio.gather(call("a"), call("b"))
        OURS.warning("outside")

    asyncio.run(calls())
    found = [(line["message"], line.get("request_id")) for line in lines(stream)]
    assert sorted(found[:4]) == [("in a task", "a")] * 2 + [("in a task", "b")] * 2
    assert found[4:] == [("outside", None)]


def test_people_get_a_line_with_facts_and_a_traceback_below(telemetry):
    stream = logging_to("pretty")
    with telemetry.call(SEARCH, arrival(x_request_id="ours-1")):
        try:
            raise KeyError("it")
        except KeyError:
            OURS.exception("failed with %s", "that")
    first, *rest = text(stream).splitlines()
    assert first.endswith(" ERROR failed with that request_id=ours-1")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    KeyError: 'it'"


@pytest.mark.parametrize("log_format", ["pretty", "json"])
@pytest.mark.parametrize(
    "said", ["one\ntwo", "one\r\x1b[2Ktwo", "one\u2028two", "one\x85two", "file-\udcff.jpg", "snow ☃"]
)
def test_a_message_is_one_line_whatever_is_in_it(log_format, said):
    stream = logging_to(log_format)
    OURS.warning("got %s", said)
    assert len(text(stream).splitlines()) == 1
    if log_format == "json":
        assert lines(stream)[0]["message"] == f"got {said}"


@pytest.mark.parametrize("log_format", ["pretty", "json"])
def test_neither_images_nor_keys_are_logged(telemetry, log_format):
    stream = logging_to(log_format, "debug")
    with telemetry.call(SEARCH, arrival(authorization="Bearer rs_s3cret", x_request_id="ours")):
        OURS.warning("got %r", SENT)
        OURS.warning(f"got {SENT!r} and {[SENT]} and {bytearray(SENT)!r}")
        try:
            raise ValueError(SENT, b'it\'s "quoted" PNG')
        except ValueError:
            OURS.exception("failed")
    told = text(stream)
    # One, three, and in the traceback one of the source and two of the error.
    assert told.count("<bytes>") == 7
    assert "PNG" not in told
    assert "s3cret" not in told


def test_a_long_message_is_cut():
    stream = logging_to()
    OURS.warning("x" * 10 * LONGEST)
    assert len(lines(stream)[0]["message"]) == LONGEST


@pytest.mark.filterwarnings("default")
def test_libraries_are_kept_in_line():
    stream = logging_to("json", "debug")

    async def app(scope: object, receive: object, send: object) -> None:
        """Nothing."""

    uvicorn.Config(app, log_config=None, access_log=False)
    logging.getLogger("uvicorn.access").info("GET /")
    for name in ("uvicorn.error", "grpc", "faiss.loader", "asyncio"):
        logging.getLogger(name).info("loading faiss with AVX512")
        logging.getLogger(name).error("failed")
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    found = [(line["logger"], line["level"]) for line in lines(stream)]
    assert found == [
        ("uvicorn.error", "error"),
        ("grpc", "error"),
        ("faiss.loader", "error"),
        ("asyncio", "error"),
        ("py.warnings", "warning"),
    ]


async def test_an_answer_to_somebody_who_goes_meanwhile_is_no_news():
    stream = logging_to("json", "debug")
    said = Said()
    logging.getLogger("grpc").addHandler(said)

    async def answer(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(max(0, context.time_remaining() + float(raw)))
        await context.abort(grpc.StatusCode.NOT_FOUND, "is anybody there?")

    def ask(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/Call")
            calls = [method.future(b"%f" % (place % 20 / 4000 - 0.0025), timeout=0.05) for place in range(400)]
            codes = {call.code() for call in calls}
        # Whose deadline the server saw first was cancelled by it.
        gone = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
        assert codes <= {*gone, grpc.StatusCode.NOT_FOUND}

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        for _ in range(50):
            await asyncio.to_thread(ask, port)
            if said.messages:
                break
    finally:
        await server.stop(1)
        logging.getLogger("grpc").removeHandler(said)
    assert said.messages
    assert text(stream) == ""


class Said(logging.Handler):
    """What a logger was told."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.mark.parametrize(("level", "said"), [("debug", "dive"), ("info", "ive"), ("warning", "ve"), ("error", "e")])
def test_ours_is_logged_from_the_level_on_that_was_asked_for(level, said):
    stream = logging_to("json", level)
    for name in ("debug", "info", "error"):
        getattr(OURS, name)(name[0])
    OURS.warning("v")
    assert sorted(line["message"] for line in lines(stream)) == sorted(said)


def test_logs_that_are_started_again_are_not_said_twice():
    logging_to()
    stream = logging_to()
    OURS.warning("once")
    assert len(lines(stream)) == 1
