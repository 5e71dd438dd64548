"""Hostile callers, briefly: benchmarks/hostile.py is the long one."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "hostile.py"


def test_a_server_answers_hostile_callers_in_words_and_serves_on():
    run = subprocess.run(
        [sys.executable, "-P", BENCHMARK, "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.stdout, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert (report["wrong"], report["logged_faults"]) == ([], [])
    assert (run.returncode, report["holds"], report["exit"]) == (0, True, 0), run.stderr
    assert report["calls"] == 1_500
    # Each is there, and the server was not kept from answering by refusing everything.
    assert len(report["kinds"]) == 13
    assert min(report["kinds"].values()) > 50
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"} <= set(report["codes"])
