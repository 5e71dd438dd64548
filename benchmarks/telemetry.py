"""What counting and tracing add to a call.

    python -P benchmarks/telemetry.py [--quick]

A call with three stages is told to a server's telemetry, with nothing asked for, with metrics, with a trace that its
caller does not sample, and with one that it does (to a collector that never answers). In turns; the best turn of each
counts, as whatever else runs only adds. All that was counted must be there. In a full run metrics must cost less than
100 microseconds a call.
"""

import argparse
import json
import re
import socket
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version

from reidserve.server.call import Arrival
from reidserve.server.telemetry import Telemetry, open_telemetry

METHOD = "reid.v1.SearchService/Search"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
CALLS, ROUNDS = 2000, 15
QUICK_CALLS, QUICK_ROUNDS = 200, 2
MOST_MICROSECONDS = 100.0


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="no figure counts")
    quick = arguments.parse_args().quick
    calls, rounds = (QUICK_CALLS, QUICK_ROUNDS) if quick else (CALLS, ROUNDS)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        counting = open_telemetry(metrics=True)
        tracing = open_telemetry(otlp=f"http://127.0.0.1:{silent.getsockname()[1]}")
        ways = {
            "plain": (open_telemetry(), {}),
            "metrics": (counting, {}),
            "unsampled": (tracing, {"traceparent": f"{TRACEPARENT}0"}),
            "sampled": (tracing, {"traceparent": f"{TRACEPARENT}1"}),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds):
            for name, (telemetry, metadata) in ways.items():
                best[name] = min(best[name], seconds_a_call(telemetry, metadata, calls))
    counted = counts(counting) == {
        "reidserve_requests_total": calls * rounds,
        "reidserve_stage_seconds_count": calls * rounds * 3,
    }
    added = {
        f"{name}_us": round((seconds - best["plain"]) * 1e6, 1) for name, seconds in best.items() if name != "plain"
    }
    holds = counted and (quick or added["metrics_us"] < MOST_MICROSECONDS)
    report = {
        "name": "telemetry",
        "holds": holds,
        "quick": quick,
        "plain_us": round(best["plain"] * 1e6, 1),
        **added,
        "counted": counted,
        "calls": calls * rounds,
        "versions": {name: version(name) for name in ("reidserve", "prometheus_client", "opentelemetry-sdk")},
    }
    print(json.dumps(report))
    return 0 if holds else 1


def seconds_a_call(telemetry: Telemetry, metadata: Mapping[str, str], calls: int) -> float:
    arrival = Arrival(metadata, "ipv4:127.0.0.1:5", "grpc")
    start = time.perf_counter()
    for _ in range(calls):
        with telemetry.call(METHOD, arrival) as record:
            for stage in ("decode", "embed", "search"):
                telemetry.stage(stage, 0.001)
            record.images = 1
    return (time.perf_counter() - start) / calls


def counts(telemetry: Telemetry) -> dict[str, int]:
    """How many calls and stages were counted."""
    found = re.findall(
        r"^(reidserve_requests_total|reidserve_stage_seconds_count)\{.*\} (\S+)$",
        telemetry.render().decode(),
        re.MULTILINE,
    )
    return {name: sum(int(float(value)) for of, value in found if of == name) for name, _ in found}


if __name__ == "__main__":
    sys.exit(main())
