"""What a server says of itself: metrics, traces, logs."""

from reidserve.server.telemetry.record import Record
from reidserve.server.telemetry.telemetry import CONTENT_TYPE, Telemetry, open_telemetry

__all__ = ["CONTENT_TYPE", "Record", "Telemetry", "open_telemetry"]
