"""Logs: one line each, for people or for machines, with the id of the call that it is about."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from reidserve.server.telemetry.record import Record, current

LogFormat = Literal["pretty", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

LONGEST = 4000
"""Characters of a message or a traceback: what a caller sent may be part of either."""

OURS = "reidserve"

_FACTS = "reidserve_facts"
_FAULTS = frozenset({"UNKNOWN", "INTERNAL", "DATA_LOSS"})
_BYTES = re.compile(r"""(?<![\w"'])b(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_logger = logging.getLogger(__name__)


def start_logs(log_format: LogFormat, log_level: LogLevel, stream: TextIO | None = None) -> None:
    """Log to a stream, stderr where none is given: what we say from a level on, what libraries say from warnings on.

    It takes the place of what was set up before. So that they are kept in line, libraries must not set up logging of
    their own: uvicorn is started with `log_config=None` and `access_log=False`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_is_news)
    handler.setFormatter(JsonLines() if log_format == "json" else PrettyLines())
    least = logging.getLevelNamesMapping()[log_level.upper()]
    logging.basicConfig(level=max(least, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger(OURS).setLevel(least)
    logging.captureWarnings(True)


def log_call(record: Record, seconds: float) -> None:
    """The one line of a call that ended: at debug, or as an error where it was our fault."""
    level = logging.ERROR if record.code in _FAULTS else logging.DEBUG
    if not _logger.isEnabledFor(level):
        return
    facts = {
        "request_id": record.request_id,
        "method": record.method,
        "code": record.code,
        "reason": record.reason,
        "seconds": round(seconds, 6),
        "images": record.images,
        "caller": record.caller,
        "peer": record.peer,
        "transport": record.transport,
        "trace_id": "" if record.trace is None else record.trace.id,
    }
    _logger.log(level, "call", extra={_FACTS: {name: fact for name, fact in facts.items() if fact != ""}})


class PrettyLines(logging.Formatter):
    """Time, level, message, then facts as name=value; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as lines."""
        facts = "".join(f" {name}={value}" for name, value in _facts_of(record).items())
        line = f"{_when(record):%Y-%m-%d %H:%M:%S},{record.msecs:03.0f} {record.levelname} {_message_of(record)}{facts}"
        trace = _traceback_of(self, record)
        return _escaped(line) + "".join(f"\n    {_escaped(part)}" for part in trace.splitlines())


class JsonLines(logging.Formatter):
    """An object a line: time, level, logger and message, then facts, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        said: dict[str, Any] = {
            "time": _when(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message_of(record),
            **_facts_of(record),
        }
        if trace := _traceback_of(self, record):
            said["traceback"] = trace
        return json.dumps(said)


def _is_news(record: logging.LogRecord) -> bool:
    # gRPC's word, with its traceback, for an answer to somebody who has gone meanwhile.
    return not (record.name.startswith("grpc") and str(record.msg).startswith("ExecuteBatchError raised in core"))


def _when(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _facts_of(record: logging.LogRecord) -> Mapping[str, Any]:
    facts: Mapping[str, Any] | None = getattr(record, _FACTS, None)
    if facts is not None:
        return facts
    call = current.get()
    return {} if call is None else {"request_id": call.request_id}


def _message_of(record: logging.LogRecord) -> str:
    return _without_bytes(record.getMessage())[:LONGEST]


def _traceback_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return _without_bytes(formatter.formatException(record.exc_info))[-LONGEST:] if record.exc_info else ""


def _without_bytes(text: str) -> str:
    """A text without what bytes look like in it: images are bytes, embeddings are, and keys may be."""
    return _BYTES.sub("<bytes>", text)


def _escaped(line: str) -> str:
    """A text that stays on one line and can be written in UTF-8, whatever a caller has put into it."""
    whole = line.encode("utf-8", "backslashreplace").decode("utf-8")
    return _NOT_IN_A_LINE.sub(lambda found: f"\\x{ord(found[0]):02x}", whole)
