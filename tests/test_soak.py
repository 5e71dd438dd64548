"""The soak, briefly: benchmarks/soak.py is the long one."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"


def run(*arguments: str) -> tuple[int, dict]:
    ran = subprocess.run(
        [sys.executable, "-P", SOAK, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.stdout, ran.stderr
    return ran.returncode, json.loads(ran.stdout.splitlines()[-1])


def test_calls_of_every_kind_end_as_they_may_and_leave_nothing():
    code, report = run("--quick")
    assert (code, report["holds"], report["wrong"]) == (0, True, []), json.dumps(report)
    assert report["calls"] == 6000
    kinds = {name.split()[0] for name in report["ended"]}
    assert kinds == {
        "image", "batch", "embedding", "entry", "embed", "gallery", "listed",
        "cancelled", "late", "left", "no_image", "no_entry", "no_message",
    }  # fmt: skip
    for ended in ("cancelled OK", "cancelled CANCELLED", "late OK", "late DEADLINE_EXCEEDED"):
        assert report["ended"].get(ended, 0) > 0, report
    assert report["exit_code"] == 0


@pytest.mark.slow
def test_an_engine_that_keeps_its_images_does_not_hold():
    code, report = run("--quick", "--calls", "2400", "--leak", "20000")
    assert (code, report["holds"], report["wrong"]) == (1, False, [])
    # About six in ten calls are embedded.
    assert 8_000 < report["memory_bytes_a_call"] < 20_000


@pytest.fixture(scope="module")
def soak() -> dict:
    return runpy.run_path(str(SOAK))


def states(soak: dict, memories: list[float]) -> list:
    return [soak["State"](1000 * place, round(memory), 20, 10, 50, 0) for place, memory in enumerate(memories, start=1)]


def test_growth_is_that_of_the_rounds_after_the_warm_up_whatever_single_ones_do(soak):
    growing = [1e6 * (place < 10) + 16_000 * place for place in range(50)]
    assert soak["growth_of"](states(soak, growing)) == pytest.approx(16)
    growing[20] += 5e8
    growing[40] -= 5e8
    assert soak["growth_of"](states(soak, growing)) == pytest.approx(16, abs=0.5)
    assert soak["growth_of"](states(soak, [5e7 * min(place, 9) for place in range(50)])) == 0


def test_counts_are_flat_if_none_is_above_those_of_the_warm_up(soak):
    assert soak["is_flat"]([10, 20, 20, 22, 18, 20, 20, 22, 20, 20], 2)
    assert not soak["is_flat"]([10, 20, 20, 20, 20, 20, 20, 20, 20, 23], 2)


def test_a_server_that_counts_other_calls_than_were_answered_is_wrong(soak):
    for counted, wrong in ((9, False), (10, False), (8, True), (11, True)):
        tally = soak["Tally"]()
        tally.states.append(soak["State"](10, 0, 20, 10, 50, counted))
        for code in ["OK"] * 9 + ["CANCELLED"]:
            tally.count("cancelled", code, right=True)
        tally.check_counts()
        assert bool(tally.wrong) is wrong
