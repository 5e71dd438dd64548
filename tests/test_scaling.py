"""The model of many servers, worked out by hand, as the page has it, and held against two servers."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARK = ROOT / "benchmarks" / "scaling.py"
PAGE = ROOT / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def scaling():
    return runpy.run_path(str(BENCHMARK), run_name="scaling")


@pytest.fixture
def told(scaling):
    """Round numbers: 10 ms of a core for an image, one entry of 1,024 bytes."""
    return scaling["Assumptions"](
        dim=256,
        rows_fetched=9,
        peak_queries_per_second=100,
        mean_over_peak=0.5,
        busy_at_peak=0.5,
        images_per_core_second=125,
        served_over_engine=0.8,
        read_gb_per_core_second=10,
        quantised_over_exact=0.5,
        server_cores=4,
        server_memory_gb=1,
        largest_server_gb=100,
        entry_memory_bytes=1000,
        node_cores=8,
        node_memory_gb=10,
        node_memory_filled=0.5,
        milvus_entry_bytes=976,
        graph_over_vectors=2.0,
        segment_gb=0.512,
        segment_ms=2,
        query_bytes=9_000,
        answer_bytes=1_000,
        dollars_per_core_hour=0.1,
        dollars_per_gb_hour=0.01,
    )


def test_a_folder_is_held_whole_by_every_server_and_read_for_every_query(scaling, told):
    found = scaling["plan"]("folder", 10**6, told)
    # 1.024 GB of rows, 0.08 of codes, 1 of texts, 1 of the server itself.
    assert found.server_gb == pytest.approx(3.104)
    # 100/s x (10 ms + 0.5 x 1.024 GB / 10 GB/s) = 6.12 cores, 12.24 at half load: four servers and a spare one.
    assert found.servers == 5
    assert (found.nodes, found.nodes_gb, found.milvus_mb_per_second) == (0, 0, 0)
    assert found.callers_mb_per_second == pytest.approx(1.0)
    # 5 x (0.4 + 0.03104) dollars an hour for 180,000 queries.
    assert found.dollars_per_million == pytest.approx(5 * 0.43104 / 0.18)


def test_a_folder_that_no_machine_holds_has_no_servers(scaling, told):
    assert scaling["plan"]("folder", 10**8, told).servers is None


def test_milvus_has_as_many_nodes_as_memory_or_processors_need(scaling, told):
    exact = scaling["plan"]("Milvus, exact", 10**7, told)
    # 20 GB by 5 each: 4. 10.24 GB read 100 times a second at 10 GB/s: 102.4 cores, 204.8 at half load: 26 of 8.
    assert (exact.nodes, exact.nodes_gb) == (26, pytest.approx(20.0))
    graph = scaling["plan"]("Milvus, graph", 10**7, told)
    # 30.24 GB by 5 each: 7. 20 segments of 2 ms, 100 times a second: 4 cores, 8 at half load: 1.
    assert (graph.nodes, graph.nodes_gb) == (7, pytest.approx(30.24))
    # 1 core at full load, 2 at half: one server and a spare one, as large as an empty one.
    assert (graph.servers, graph.server_gb) == (2, 1)
    # The query's row and nine fetched ones, 1,024 bytes each, and what the hits say: 11,240 bytes a query.
    assert graph.milvus_mb_per_second == pytest.approx(1.124)
    assert graph.dollars_per_million == pytest.approx((2 * 0.41 + 7 * 0.9) / 0.18)


def test_the_page_has_the_models_table_and_every_assumption(scaling):
    page = PAGE.read_text(encoding="utf-8")
    assert scaling["table"](scaling["plans"]()) in page
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.,]+) \|", page, flags=re.MULTILINE))
    assumed = scaling["Assumptions"]()._asdict()
    assert {name: float(value.replace(",", "")) for name, value in rows.items()} == assumed


def test_shares_are_of_the_calls_that_both_could_get(scaling):
    spent = scaling["Spent"]
    found = [[spent(1.0, 100, 0, 0, 0, 0)], [spent(1.0, 200, 0, 0, 0, 0)]]
    assert scaling["shares"]([7, 5], [7 + 100 + 80, 5 + 120], found) == [0.4, 0.6]


def test_the_model_goes_from_one_server_to_two(scaling):
    spent = scaling["Spent"]
    one, two = [spent(80.0, 100, 0.010, 0.001, 0, 0.001)], [spent(150.0, 200, 0.011, 0.001, 0, 0.001)]
    found = scaling["compare"]([one, two], 2)
    assert found["one_over_model"] == 0.8
    # Two cores have 12 ms each to do for a query: 166.7 a second, where one server's own core ends at 100.
    assert found["two_over_one_by_the_model"] == 1.667
    assert found["two_over_model"] == 0.9
    assert found["two_over_one"] == 1.875


def test_two_servers_behind_a_proxy_answer_as_one_does_and_share_the_calls():
    pytest.importorskip("torch", reason="needs the [train] extra")
    if shutil.which("haproxy") is None:
        pytest.skip("needs haproxy, which .ci/run installs")
    ran = subprocess.run(
        [sys.executable, "-P", BENCHMARK, "--quick"], capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert (report["name"], report["holds"], report["quick"]) == ("scaling", True, True)
    assert report["equal_answers"] is True
    assert sum(report["shares"]) == pytest.approx(1, abs=0.002)
    assert all(
        report[name] > 0 for name in ("two_over_one", "two_over_model", "server_ms_a_query", "client_ms_a_query")
    )
