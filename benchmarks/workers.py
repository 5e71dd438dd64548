"""One server process on all cores, against one for each core.

    python -P benchmarks/workers.py [--quick]

What several processes on one port could gain: the network and the gallery of benchmarks/serve.py are served by one
reid-serve that has all cores, and by as many as there are cores with one each, which share nothing. As many clients ask
the one or are divided among the many, turn by turn in one run, and the answers must be equal. It holds if one process
does nine tenths of what many do, in the precision in which it does worst: as long as it does, a server has no workers.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

LEAST_OF_MANY = 0.9

Figures = dict[str, Any]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="seconds: ResNet-18-IBN-a at 64x32, 1,000 entries")
    quick = bool(arguments.parse_args().quick)
    overload = runpy.run_path(str(Path(__file__).with_name("overload.py")), run_name="overload")
    serve = runpy.run_path(str(Path(__file__).with_name("serve.py")), run_name="serve")
    precisions = serve["PRECISIONS"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        serve["prepare"](work, quick=quick)
        figures = {precision: measure(serve | overload, work, precision, quick=quick) for precision in precisions}
    right = all(found["equal_answers"] for found in figures.values())
    report = {
        "name": "workers",
        "holds": right and (quick or min(found["one_over_many"] for found in figures.values()) >= LEAST_OF_MANY),
        "quick": quick,
        "cores": len(os.sched_getaffinity(0)),
        **{f"{name}_{precision}": value for precision in precisions for name, value in figures[precision].items()},
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio", "pillow")},
    }
    print(json.dumps(report))
    return 0 if report["holds"] else 1


def measure(parts: dict[str, Any], work: Path, precision: str, *, quick: bool) -> Figures:
    seconds, turns = (0.5, 1) if quick else (5.0, 5)
    clients, cores = parts["CLIENTS"], sorted(os.sched_getaffinity(0))
    with ExitStack() as opened, ThreadPoolExecutor(len(cores)) as together:
        groups = [opened.enter_context(parts["clients_beside"]()) for _ in cores]
        one, said = opened.enter_context(parts["serving"](work, precision, "--read-only"))
        ask_one = partial(groups[0], said["listening"], work / "images")
        many, ask_many = [], []
        for core, group in zip(cores, groups, strict=True):
            with parts["on_cores"]({core}):
                process, said = opened.enter_context(parts["serving"](work, precision, "--read-only"))
            many.append(process)
            ask_many.append(partial(group, said["listening"], work / "images"))
        expected = ask_one(do="answers")
        equal = all(ask(do="answers") == expected for ask in ask_many)
        rates: dict[str, list[float]] = {"one": [], "many": []}
        for _ in range(turns):
            rates["one"].append(ask_one(do="closed", clients=clients, seconds=seconds)["rate"])
            asking = [
                together.submit(ask, do="closed", clients=clients // len(cores), seconds=seconds) for ask in ask_many
            ]
            rates["many"].append(sum(asked.result()["rate"] for asked in asking))
        memory = sum(map(resident, many)) / resident(one)
    return {
        "equal_answers": equal,
        "one_over_many": round(median(rates["one"]) / median(rates["many"]), 3),
        "memory_of_many_over_one": round(memory, 2),
    }


def resident(process: Any) -> int:  # noqa: ANN401  # a Popen of bytes or of text
    """Pages of memory."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])


if __name__ == "__main__":
    sys.exit(main())
