"""The crasher, briefly: benchmarks/crash.py is the long one."""

import json
import subprocess
import sys
from pathlib import Path

CRASHER = Path(__file__).parents[1] / "benchmarks" / "crash.py"


def test_what_a_killed_writer_had_acknowledged_is_there_and_nothing_is_there_by_half():
    run = subprocess.run(
        [sys.executable, "-P", CRASHER, "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    report = json.loads(run.stdout.splitlines()[-1])
    assert (run.returncode, report["holds"], report["wrong"]) == (0, True, ""), run.stderr
    assert report["kills"] == 15
    assert report["acknowledged"] > 0
    assert report["inside"] + report["outside"] > 0
