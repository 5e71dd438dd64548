"""A server that is offered ten times what it can do.

    python -P benchmarks/overload.py [--quick]

First its capacity is measured: the images per second that many clients get who ask again as soon as they are answered.
Then calls come at ten times that rate, for a minute, whatever becomes of those before them. What is answered in time
must stay near capacity, refusals must come at once, what is let in must wait no longer than the queue is long, and the
server's memory must not grow. Clients are a process of their own and have the last core to themselves where there are
two or more: ten times a server's capacity is work for them too. The network, the gallery and the clients are those of
benchmarks/serve.py.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from reidserve.server.queries.limits import DEFAULTS

TIMES = 10
CAPACITY_CLIENTS = 32
LEAST_GOODPUT = 0.9
REFUSED_SECONDS = 0.05
QUEUE_SLACK = 1.25
"""What is let in may take so many times as long as a full queue does at the measured goodput."""
FLAT = 1.05
"""Memory at the end over memory after a third of the time."""
MOST_OFFERED = 1_500
"""Calls/s, with --quick: the small network is faster than clients can ask."""

_SAMPLE_SECONDS = 0.2
_ANSWERS = {"OK", "RESOURCE_EXHAUSTED"}

Figures = dict[str, Any]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="seconds: ResNet-18-IBN-a at 64x32, 1,000 entries")
    quick = bool(arguments.parse_args().quick)
    serve = runpy.run_path(str(Path(__file__).with_name("serve.py")), run_name="serve")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        serve["prepare"](work, quick=quick)
        with ExitStack() as processes:
            *servers, last = sorted(os.sched_getaffinity(0))
            with on_cores({last}):
                clients = processes.enter_context(serve["clients_beside"]())
            with on_cores(set(servers) or {last}):
                server, said = processes.enter_context(serve["serving"](work, "fp32"))
            ask = partial(clients, said["listening"], work / "images")
            capacity = ask(do="closed", clients=CAPACITY_CLIENTS, seconds=1 if quick else 20)["rate"]
            rate = min(TIMES * capacity, MOST_OFFERED) if quick else TIMES * capacity
            with watching(server.pid) as memory:
                overloaded = ask(do="open", rate=rate, seconds=4 if quick else 60)
            after = ask(do="closed", clients=CAPACITY_CLIENTS, seconds=0.5 if quick else 10)["rate"]
    figures = figures_of(capacity, after, overloaded, memory)
    right = set(overloaded["codes"]) == _ANSWERS
    report = {
        "name": "overload",
        "holds": right and (quick or within_bounds(figures)),
        "quick": quick,
        **figures,
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio", "pillow")},
    }
    print(json.dumps(report))
    return 0 if report["holds"] else 1


def figures_of(capacity: float, after: float, overloaded: Figures, memory: list[float]) -> Figures:
    goodput, p99 = overloaded["goodput"], overloaded["p99"]
    third = len(memory) // 3
    return {
        "server_cores": max(1, len(os.sched_getaffinity(0)) - 1),
        "capacity": round(capacity, 1),
        "offered_over_capacity": round(overloaded["offered"] / capacity, 2),
        "goodput_over_capacity": round(goodput / capacity, 3),
        "accepted_p99_seconds": round(p99.get("OK", 0.0), 3),
        "accepted_p99_over_queue": round(p99.get("OK", 0.0) * goodput / DEFAULTS.images_in_flight, 3),
        "refused_p99_ms": round(1000 * p99.get("RESOURCE_EXHAUSTED", 0.0), 1),
        "capacity_after_over_before": round(after / capacity, 3),
        "clients_cores": round(overloaded["cpu"], 2),
        "memory_MB": round(median(memory[-third:]), 1),
        "memory_end_over_third": round(median(memory[-third:]) / median(memory[third : 2 * third]), 3),
        "codes": overloaded["codes"],
    }


def within_bounds(figures: Figures) -> bool:
    return bool(
        figures["goodput_over_capacity"] >= LEAST_GOODPUT
        and figures["refused_p99_ms"] <= 1000 * REFUSED_SECONDS
        and figures["accepted_p99_over_queue"] <= QUEUE_SLACK
        and figures["memory_end_over_third"] <= FLAT
    )


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Processes that are started in the block stay on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def watching(process: int) -> Iterator[list[float]]:
    """The resident memory of a process, MB, sampled while the block lasts."""
    memory, ended = list[float](), threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            resident = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            memory.append(resident * os.sysconf("SC_PAGE_SIZE") / 1e6)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
