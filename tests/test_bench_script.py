"""The benchmarks' common runner, with small benchmarks of its own, and the arithmetic of its roofs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

ROOT = Path(__file__).parents[1]
EVERY = ROOT / "benchmarks" / "every.py"

MACHINE = {
    "holds": True,
    "processor": "Abacus",
    "cores": 2,
    "caches": {"L2": "2048K"},
    "instructions": [],
    "memory_GB": 8.0,
    "copy_GB_per_second": {"1": 50.0, "64": 10.0},
    "read_GB_per_second": 20.0,
    "product_GFLOP_per_second": {"fp32/numpy-cpu": 80, "fp32/torch-cpu": 100, "int8/onnxruntime-cpu": 900},
    "versions": {"numpy": "2"},
}


def write_benchmark(folder: Path, name: str, report: dict | str, *, code: int = 0) -> None:
    """A benchmark that says so much; in its report stands whether it was asked to be quick."""
    said = f"print({report!r})" if isinstance(report, str) else f"print(json.dumps({report!r} | {{'quick': quick}}))"
    (folder / f"{name}.py").write_text(
        f"import json, sys\nquick = '--quick' in sys.argv\nprint('on the way')\n{said}\nsys.exit({code})\n"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    benchmarks = tmp_path / "benchmarks"
    benchmarks.mkdir()
    write_benchmark(benchmarks, "machine", MACHINE)
    write_benchmark(benchmarks, "fast", {"holds": True, "ratio": 1.25, "big": 12345, "versions": {"torch": "3"}})
    return benchmarks


def run_every(folder: Path, *asked: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-P",
        EVERY,
        "--folder",
        folder,
        "--kept",
        folder.parent / "build" / "bench.json",
        *asked,
    ]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)


def kept(folder: Path) -> dict:
    return json.loads((folder.parent / "build" / "bench.json").read_text())


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_all_benchmarks_are_run_and_said_in_a_table_and_a_file(folder: Path):
    ran = run_every(folder, "--quick")
    assert ran.returncode == 0, ran.stderr
    assert row(ran.stdout, "fast")[:3] == ["fast", "yes", "ratio 1.25; big 12,345"]
    record = kept(folder)
    said = f"Abacus, 2 cores (L2 2048K), 8.0 GB, load {record['load_before']} before; numpy 2, torch 3. **Quick"
    assert said in ran.stdout
    assert (record["holds"], record["quick"], list(record["benchmarks"])) == (True, True, ["machine", "fast"])
    assert record["benchmarks"]["fast"]["quick"] is True
    assert record["versions"] == {"numpy": "2", "torch": "3"}
    assert run_every(folder).returncode == 0
    assert kept(folder)["benchmarks"]["fast"]["quick"] is False


@pytest.mark.parametrize(
    ("report", "code"),
    [({"holds": False, "ratio": 2.0}, 1), ({"holds": True, "ratio": 2.0}, 1), ({"ratio": 2.0}, 0), ("no report", 0)],
)
def test_one_that_does_not_hold_fails_the_run_and_is_shown(folder: Path, report: dict | str, code: int):
    write_benchmark(folder, "slow", report, code=code)
    ran = run_every(folder)
    assert ran.returncode == 1
    assert row(ran.stdout, "slow")[1] == "NO"
    assert row(ran.stdout, "fast")[1] == "yes"
    assert kept(folder)["holds"] is False
    only = run_every(folder, "fast")
    assert (only.returncode, list(kept(folder)["benchmarks"])) == (0, ["machine", "fast"])


def test_an_unknown_name_is_refused_with_the_known_ones(folder: Path):
    ran = run_every(folder, "quick")
    assert ran.returncode == 2
    assert "no benchmark quick; there are fast, machine" in ran.stderr


def test_markdown_fills_its_place_on_the_page_and_nothing_else(folder: Path, tmp_path: Path):
    run_every(folder)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench -->\nformer\n<!-- end -->\nafter\n")
    assert run_every(folder, "--markdown", page).returncode == 0
    once = page.read_text()
    assert once.startswith("before\n<!-- bench -->\n20")
    assert once.endswith("\n<!-- end -->\nafter\n")
    assert "former" not in once
    assert row(once, "fast")[2] == "ratio 1.25; big 12,345"
    run_every(folder, "--markdown", page)
    assert page.read_text() == once
    page.write_text("no place\n")
    refused = run_every(folder, "--markdown", page)
    assert refused.returncode == 1
    assert "has 0 places for the tables" in refused.stderr


def test_the_page_has_a_place_for_the_tables():
    assert len(load("every")["PLACE"].findall((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"))) == 1


def test_the_script_hands_its_arguments_on():
    script = ROOT / "scripts" / "bench"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == 'exec .venv/bin/python -P benchmarks/every.py "$@"'


def load(name: str) -> dict:
    """A benchmark's functions, without running it."""
    if name != "every":
        pytest.importorskip("torch", reason="needs the [train] extra")
    return runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


def test_few_products_a_number_are_bound_by_bandwidth_and_many_by_arithmetic():
    roof = load("every")["product_roof"]
    # 4 * 1000 * (1 + 999) bytes in 1 ms: 4 GB/s of 20
    one = roof("one", MACHINE, sides=(1, 999, 1000), seconds=0.001)
    assert (one.rate, one.ceiling, one.share, one.bound) == ("4.0 GB/s", "20.0 GB/s", 0.2, "bandwidth")
    # 2 * 1000 * 1000 * 1000 FLOP in 40 ms: 50 GFLOP/s of the best library's 100
    many = roof("many", MACHINE, sides=(1000, 1000, 1000), seconds=0.04)
    assert (many.rate, many.ceiling, many.share, many.bound) == ("50.0 GFLOP/s", "100.0 GFLOP/s", 0.5, "arithmetic")


def test_a_search_and_a_server_stand_under_their_roofs():
    reports = {
        "machine": MACHINE,
        "gallery": {
            "entries": 999,
            "dim": 1000,
            "one_query_product_ms": 0.5,
            "one_exact_query_over_product": 2.0,
            "batch_product_ms_a_query": 0.02,
            "batch_product_over_exact": 0.5,
            "build_over_bare": 0.97,
        },
        "search": {"one_client_time_over_bare": 1.25, "eight_clients_time_over_bare": 0.8},
    }
    found = {roof.what: roof for roof in load("every")["roofs"](reports)}
    assert found["search, 1 query in 999 x 1000"].share == 0.2
    # 2 * 999 * 1000 FLOP in 0.04 ms
    assert found["search, 512 queries in 999 x 1000"].rate == "49.9 GFLOP/s"
    assert found["build of a gallery"].share == 0.97
    assert found["server, one client"].share == 0.8
    served = {"served_over_bare_fp32": 0.97, "served_over_bare_int8": 0.9}
    found = {roof.what: roof.share for roof in load("every")["roofs"]({**reports, "serve": served})}
    assert (found["server, 16 clients, fp32"], found["server, 16 clients, int8"]) == (0.97, 0.9)


def test_engines_are_shown_by_batch_and_the_one_of_the_ratios_under_its_roof(folder: Path):
    row_of = {"engine": "int8/openvino-cpu", "p50_ms": 40.0, "of_peak": 0.4, "of_roof": 0.5, "roof": "bandwidth"}
    rows = [row_of | {"batch": 1, "GFLOP_per_second": 300.0}, row_of | {"batch": 8, "GFLOP_per_second": 400.0}]
    rows.append({"engine": "fp16/tensorrt", "batch": 8, "p50_ms": 1.0})
    peaks = {"int8/openvino-cpu": 1000, "fp32/openvino-cpu": 2000}
    report = {"holds": True, "rows": rows, "ratios_at_batch": 8, "peak_GFLOP_per_second": peaks, "int8_over_fp32": 3.2}
    write_benchmark(folder, "artifact", report)
    ran = run_every(folder)
    assert ran.returncode == 0, ran.stderr
    assert row(ran.stdout, "artifact")[2] == "int8_over_fp32 3.2"
    assert ran.stdout.count("| int8/openvino-cpu ") == 2
    assert row(ran.stdout, "fp16/tensorrt")[:3] == ["fp16/tensorrt", "8", "1.0"]
    under = row(ran.stdout, "embedding, int8/openvino-cpu, batch 8")
    assert under[1:] == ["400 GFLOP/s", "800 GFLOP/s (products alone: 1,000)", "0.5", "bandwidth"]


def test_only_right_products_are_taken_for_a_peak():
    machine = load("machine")
    for precision in ("fp32", "fp16", "int8"):
        chain = machine["Chain"](precision, 96)
        for session in machine["sessions"](chain.model().SerializeToString(), precision):
            product = session(chain.given)
            assert chain.accepts(product), session.engine
            assert not chain.accepts(product[::-1]), session.engine
    plain = machine["Chain"]("fp32", 96)
    assert plain.accepts(machine["multiply"](plain.rows, plain.weights))
    assert not plain.accepts(machine["multiply"](plain.rows, plain.weights.T))


def test_copies_and_readings_are_measured_and_right():
    machine = load("machine")
    rates, copied = machine["measure_copying"]([1, 4], 1)
    assert (list(rates), copied) == (["1", "4"], True)
    assert all(0.1 < rate < 10_000 for rate in rates.values())
    rate, read = machine["measure_reading"](256, 1)
    assert read
    assert 0.01 < rate < 10_000


@pytest.fixture(scope="module")
def artifact() -> dict:
    return load("artifact")


def small_model():
    weights = [("w", (8, 3, 3, 3)), ("b", (8,)), ("g", (4, 1, 3, 3)), ("m", (8 * 4 * 2, 5))]
    nodes = [
        helper.make_node("Cast", ["crops"], ["numbers"], to=1),
        helper.make_node("Transpose", ["numbers"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "w", "b"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["embeddings"]),
    ]
    ends = [
        helper.make_tensor_value_info("crops", 2, ["N", 8, 4, 3]),
        helper.make_tensor_value_info("embeddings", 1, ["N", 5]),
    ]
    tensors = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in weights if name != "g"]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_flops_and_tensors_are_counted_from_the_graph(artifact):
    convolution, product = artifact["operators_of"](small_model())
    # 8 channels of 4 x 2, each the sum of 27 products; 3 x 8 x 4 numbers in, 64 out
    assert (convolution.flops, convolution.activations, convolution.weights) == (2 * 64 * 27, 96 + 64, 216 + 8)
    assert (product.flops, product.activations, product.weights) == (2 * 64 * 5, 64 + 5, 320)


def test_the_least_time_is_each_operators_longer_one(artifact):
    ceilings = artifact["Ceilings"](
        {"fp32/a-cpu": 50.0, "fp32/b-cpu": 100.0, "int8/a-cpu": 400.0}, {100: 8.0, 10**6: 4.0}
    )
    operators = [artifact["Operator"](flops=1000, activations=0, weights=1), artifact["Operator"](10, 99, 1)]
    assert ceilings.bandwidth(100) == 8.0
    assert ceilings.bandwidth(101) == 4.0
    assert ceilings.bandwidth(10**9) == 4.0
    # fp32, two images: 20 s of products; 4 * (2 * 99 + 1) bytes at 4 a second
    found = artifact["place_under"](ceilings, operators, "fp32/b-cpu, unfolded", 2, 438.0)
    assert found["of_roof"] == pytest.approx((20 + 199) / 438, abs=5e-4)
    assert (found["of_peak"], found["roof"]) == (pytest.approx(2020 / 438 / 100, abs=5e-4), "bandwidth")
    assert artifact["place_under"](ceilings, operators[:1], "int8/a-cpu", 2, 10.0)["roof"] == "arithmetic"
    assert artifact["place_under"](ceilings, operators, "fp32/tensorrt", 2, 1.0) == {}


def embed_plainly(batch: np.ndarray) -> np.ndarray:
    rows = batch.reshape(len(batch), -1).astype(np.float32) - 128
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_what_is_timed_is_checked(artifact):
    batch = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
    reference, other = "fp32/onnxruntime-cpu", "fp32/openvino-cpu"

    def mixing(batch: np.ndarray) -> np.ndarray:
        return embed_plainly(batch) + np.float32(1e-4) * (len(batch) == 8)

    def placed(batch: np.ndarray) -> np.ndarray:
        return embed_plainly(batch) + np.float32(1e-4) * (np.arange(len(batch)) == 3)[:, np.newaxis]

    def swapped(batch: np.ndarray) -> np.ndarray:
        return embed_plainly(np.ascontiguousarray(batch[..., ::-1]))

    check = artifact["check"]
    right, found = check({reference: embed_plainly, other: embed_plainly}, batch)
    assert right
    assert found[other] == {"cosine": 1.0, "batch_changes": 0.0}
    for wrong in (mixing, placed, swapped):
        assert not check({reference: embed_plainly, other: wrong}, batch)[0], wrong
    # Where all crops embed alike, no cosine shows anything.
    assert not check({reference: lambda batch: np.tile(embed_plainly(batch[:1] * 0 + 1), (len(batch), 1))}, batch)[0]


def test_ratios_are_held_to_their_bounds(artifact):
    within = artifact["within_bounds"]
    assert within({"int8_over_fp32": 3.0, "fp32_over_eager": 1.6})
    assert within({"fp32_over_eager": 1.6})
    assert not within({"int8_over_fp32": 2.9, "fp32_over_eager": 1.6})
    assert not within({"int8_over_fp32": 3.0, "fp32_over_eager": 1.5})


@pytest.mark.slow
def test_the_artifact_benchmark_holds_and_says_what_it_timed():
    ran = subprocess.run(
        [sys.executable, "-P", ROOT / "benchmarks" / "artifact.py", "--quick"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    report = json.loads(ran.stdout.splitlines()[-1])
    assert (ran.returncode, report["holds"]) == (0, True), ran.stderr
    engines = {row["engine"] for row in report["rows"]}
    assert {"fp32/onnxruntime-cpu", "int8/onnxruntime-cpu", "fp32/torch-cpu"} <= engines
    assert {row["batch"] for row in report["rows"]} == {1, 8}
    assert all(row["p50_ms"] <= row["p99_ms"] for row in report["rows"])
    assert set(report["checks"]) == engines
