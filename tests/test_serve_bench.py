"""The benchmarks of a server under load, briefly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _export():
    pytest.importorskip("torch", reason="needs the [train] extra")


def run(name: str) -> dict:
    """What a benchmark says."""
    ran = subprocess.run(
        [sys.executable, "-P", BENCHMARKS / f"{name}.py", "--quick"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert (report["name"], report["holds"], report["quick"]) == (name, True, True)
    return report


def test_a_server_under_load_answers_as_the_bare_work_does_and_is_held_against_it():
    report = run("serve")
    for precision in ("fp32", "int8"):
        assert report[f"equal_answers_{precision}"] is True
        assert 0 < report[f"served_over_bare_{precision}"] < 10
        assert 0 < report[f"one_client_over_bare_{precision}"] < 100
        assert 1 <= report[f"batch_size_{precision}"] <= report["clients"]
    assert report["free_calls_per_core_second"] > 0
    assert {"server/queries", "server/wire", "other threads"} <= set(report["free_microseconds"])


def test_an_overloaded_server_answers_or_refuses_every_call():
    report = run("overload")
    assert set(report["codes"]) == {"OK", "RESOURCE_EXHAUSTED"}
    assert report["goodput_over_capacity"] > 0
    assert report["memory_MB"] > 0


@pytest.mark.slow
def test_processes_that_share_nothing_answer_as_one_does():
    report = run("workers")
    for precision in ("fp32", "int8"):
        assert report[f"equal_answers_{precision}"] is True
        assert 0 < report[f"one_over_many_{precision}"] < 10
        assert report[f"memory_of_many_over_one_{precision}"] > 0


@pytest.mark.slow
def test_a_peer_answers_as_the_server_does():
    report = run("peer")  # installs it
    for precision in ("fp32", "int8"):
        assert report[f"equal_answers_{precision}"] is True
        assert report[f"scores_apart_{precision}"] < 1e-5
        assert report[f"ours_over_peer_{precision}"] > 0
