"""Writes, searches and kills, briefly: benchmarks/consistency.py is the long one."""

import json
import runpy
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reidserve.index import Origin, Record
from reidserve.index.storage.store import create_store

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "consistency.py"


@pytest.fixture(scope="module")
def consistency():
    return runpy.run_path(str(BENCHMARK))


@pytest.fixture
def told(consistency):
    """What is known of a gallery of three generations, and two searches of it."""
    log, change = consistency["Log"](states={"w0": {}}), consistency["Change"]
    log.acknowledge("w0", 1, 3, change({"a": (1, 7), "b": (2, 8), "c": (3, 7)}))
    log.acknowledge("w0", 2, 1, change({"a": (6, 7)}))
    log.acknowledge("w0", 3, 1, change(gone=frozenset(["b", "nobody"])))
    seven, eight = (float(np.vecdot(consistency["vector_of"](n), consistency["query_of"](4))) for n in (7, 8))
    first = sorted([("a", seven), ("b", eight), ("c", seven)], key=lambda hit: -hit[1])
    answer = consistency["Answer"]
    # What is equal is in the order of writing, and "a" was written again.
    log.answers = [
        answer(3, 4, 5, None, ("c", "a"), (seven, seven)),
        answer(1, 4, 5, None, *zip(*first, strict=True)),
        answer(2, 4, 5, 1, ("a",), (seven,)),
    ]
    return log


def test_each_answer_is_held_against_brute_force_at_its_generation(consistency, told):
    assert consistency["compare"](told) == 3
    for place, wrong in [
        (0, {"ids": ("a", "c")}),
        (0, {"generation": 1}),
        (0, {"scores": tuple(np.nextafter(np.float32(score), np.float32(2)) for score in told.answers[0].scores)}),
        (0, {"ids": ("c",), "scores": told.answers[0].scores[:1]}),
        (2, {"camera": 2}),
        (2, {"generation": 4}),
    ]:
        mistaken = replace(told, answers=[*told.answers])
        mistaken.answers[place] = replace(told.answers[place], **wrong)
        with pytest.raises(consistency["Wrong"]):
            consistency["compare"](mistaken)


def test_a_write_that_says_more_or_less_than_it_did_is_noticed(consistency, told):
    for changed in (0, 2):
        with pytest.raises(consistency["Wrong"], match="should have been"):
            told.acknowledge("w0", 4, changed, consistency["Change"]({"d": (9, 1)}))
    with pytest.raises(consistency["Wrong"], match="told of two writes"):
        told.acknowledge("w0", 3, 1, consistency["Change"]({"d": (9, 1)}))


def test_what_a_kill_left_is_what_was_under_way_as_a_whole(consistency, tmp_path: Path):
    log, change = consistency["Log"](states={"w0": {}, "w1": {}, "i": {}}), consistency["Change"]
    held = {"a": (1, 7), "b": (2, 8), "i14": (-2, 62)}

    def record(name: str) -> Record:
        return Record(consistency["entry_of"](name, held[name]), bytes(32), consistency["vector_of"](held[name][1]))

    with closing(create_store(tmp_path / "g", Origin("0" * 64, "fp32/none", consistency["DIM"]))) as store:
        store.upsert([record("a"), record("b")])
        store.upsert([record("i14")])
    log.pending = {
        "w0": change({"a": held["a"], "b": held["b"]}),
        "w1": change(gone=frozenset(["x"])),
        "i2": change({"i14": held["i14"]}),
        "i3": change({"i21": (-3, 93)}),
    }
    settled = replace(log, pending=dict(log.pending), states={name: {} for name in log.states}, changes={})
    consistency["settle"](tmp_path / "g" / "gallery.db", settled, 2)
    assert settled.states == {"w0": {"a": (1, 7), "b": (2, 8)}, "w1": {}, "i": {"i14": (-2, 62)}}
    assert (settled.counts["in"], settled.counts["out"], settled.pending) == (2, 2, {})
    # Half of what was asked for.
    half = replace(log, pending={"w0": change({**log.pending["w0"].put, "c": (3, 1)}), "i2": log.pending["i2"]})
    with pytest.raises(consistency["Wrong"], match="only a part"):
        consistency["settle"](tmp_path / "g" / "gallery.db", half, 2)
    # What nobody asked for.
    nobody = replace(log, pending={}, changes={1: change()})
    with pytest.raises(consistency["Wrong"], match="which nobody had sent"):
        consistency["settle"](tmp_path / "g" / "gallery.db", nobody, 2)


def test_a_server_that_is_killed_beside_writes_and_searches_loses_nothing_and_answers_like_brute_force():
    ran = subprocess.run(
        [sys.executable, "-P", BENCHMARK, "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    report = json.loads(ran.stdout.splitlines()[-1])
    assert (ran.returncode, report["holds"], report["wrong"]) == (0, True, ""), ran.stderr
    assert report["kills"] == 2
    assert report["searches_equal_to_brute_force"] >= 100
    assert all(report[kind] for kind in ("upsert", "update", "delete", "import", "snapshot"))
