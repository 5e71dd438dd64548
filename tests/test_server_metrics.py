"""What a server counts, the board that shows it, and the page that explains it."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from reidserve.client import Client
from reidserve.errors import ConfigError, RequestError
from reidserve.index import open_gallery
from reidserve.server.call import Arrival
from reidserve.server.telemetry import CONTENT_TYPE, Telemetry, open_telemetry
from tests.conftest import BIN

ROOT = Path(__file__).parents[1]
BOARD = ROOT / "deploy" / "grafana" / "reidserve.json"
PAGE = ROOT / "docs" / "monitoring.md"
LEFT_OUT = {"process_virtual_memory_bytes"}
"""What is not on the board: address space says nothing of use beside resident memory."""

SEARCH, EMBED = "reid.v1.SearchService/Search", "reid.v1.SearchService/Embed"
NAME = re.compile(r"\b(?:reidserve|process)_[a-z_]+\b")


@dataclass
class Pipeline:
    """As much of a pipeline as is watched."""

    embedder: Any
    galleries: dict[str, Any]
    in_flight: int = 3
    waiting: int = 2


@dataclass
class Served:
    pipeline: Pipeline
    reloads: int = 0


@dataclass
class Deployment:
    served: Served | None = None


def arrival(*, deadline: float | None = None, **metadata: str) -> Arrival:
    return Arrival(
        {name.replace("_", "-"): value for name, value in metadata.items()}, "ipv4:1.2.3.4:5", "grpc", deadline
    )


def samples(telemetry: Telemetry) -> dict[tuple, float]:
    """Values by name and labels; what says when a count began is left out."""
    return read(telemetry.render().decode())


def read(text: str) -> dict[tuple, float]:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def telemetry() -> Telemetry:
    return open_telemetry(metrics=True)


@pytest.fixture
def deployment(embedder, gallery):
    opened = open_gallery(gallery, identity=embedder.contract.identity)
    yield Deployment(Served(Pipeline(embedder, {"crops": opened}), reloads=4))
    opened.close()


def use(telemetry: Telemetry) -> None:
    """Everything that a server tells."""
    with telemetry.call(SEARCH, arrival()) as record:
        for stage in ("decode", "embed", "search"):
            telemetry.stage(stage, 0.002)
        record.images = 1
    telemetry.batch(3, 0.02)
    telemetry.rejected("OVERLOADED")


def test_calls_are_counted_by_method_and_status(telemetry):
    for code in ("OK", "OK", "NOT_FOUND"):
        with telemetry.call(SEARCH, arrival()) as record:
            record.code = code
    with telemetry.call(EMBED, arrival()):
        pass
    found = samples(telemetry)
    counted = {name: value for name, value in found.items() if name[0] == "reidserve_requests_total"}
    assert counted == {
        ("reidserve_requests_total", ("code", "OK"), ("method", SEARCH)): 2,
        ("reidserve_requests_total", ("code", "NOT_FOUND"), ("method", SEARCH)): 1,
        ("reidserve_requests_total", ("code", "OK"), ("method", EMBED)): 1,
    }
    assert found["reidserve_request_seconds_count", ("method", SEARCH)] == 3
    assert found["reidserve_request_seconds_bucket", ("le", "30.0"), ("method", EMBED)] == 1


def test_a_calls_seconds_are_those_of_its_block(telemetry):
    with telemetry.call(SEARCH, arrival()):
        time.sleep(0.03)
    found = samples(telemetry)
    assert found["reidserve_request_seconds_bucket", ("le", "0.025"), ("method", SEARCH)] == 0
    assert found["reidserve_request_seconds_sum", ("method", SEARCH)] >= 0.03


@pytest.mark.parametrize(
    ("error", "set_to", "left", "code"),
    [
        (RuntimeError("a bug"), None, None, "INTERNAL"),
        (RuntimeError("refused"), "NOT_FOUND", None, "NOT_FOUND"),
        (asyncio.CancelledError(), None, None, "CANCELLED"),
        (asyncio.CancelledError(), None, 60.0, "CANCELLED"),
        (asyncio.CancelledError(), None, -0.001, "DEADLINE_EXCEEDED"),
        (GeneratorExit(), None, None, "CANCELLED"),
    ],
)
def test_an_error_that_leaves_a_call_decides_its_status(telemetry, error, set_to, left, code):
    deadline = None if left is None else time.monotonic() + left

    def fail() -> None:
        with telemetry.call(SEARCH, arrival(deadline=deadline)) as record:
            record.code = set_to or record.code
            raise error

    with pytest.raises(type(error)):
        fail()
    assert samples(telemetry)["reidserve_requests_total", ("code", code), ("method", SEARCH)] == 1


def test_stages_batches_and_refusals_are_counted(telemetry):
    use(telemetry)
    telemetry.batch(32, 0.2)
    found = samples(telemetry)
    assert {
        stage: found["reidserve_stage_seconds_count", ("stage", stage)] for stage in ("decode", "embed", "search")
    } == {
        "decode": 1,
        "embed": 1,
        "search": 1,
    }
    assert found["reidserve_stage_seconds_sum", ("stage", "embed")] == pytest.approx(0.002)
    assert found[("reidserve_batch_images_sum",)] == 35
    assert found["reidserve_batch_images_bucket", ("le", "4.0")] == 1
    assert found[("reidserve_batch_seconds_sum",)] == pytest.approx(0.22)
    assert found["reidserve_rejected_total", ("reason", "OVERLOADED")] == 1


def test_names_that_nobody_knows_share_one_label(telemetry):
    use(telemetry)
    before = len(samples(telemetry))
    for number in range(100):
        with telemetry.call(f"no.Service/Number{number}", arrival()) as record:
            record.code = f"CODE_{number}"
        telemetry.stage(f"stage {number}", 0.001)
        telemetry.rejected(f"REASON_{number}")
    found = samples(telemetry)
    assert found["reidserve_requests_total", ("code", "other"), ("method", "other")] == 100
    assert found["reidserve_rejected_total", ("reason", "other")] == 100
    # A counter, two histograms of 15 buckets with their sums and counts, a counter.
    assert len(found) - before == 1 + 17 + 17 + 1


@pytest.mark.parametrize("reason", ["RATE_LIMITED", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_SERVING"])
def test_a_call_that_is_turned_away_at_the_door_is_counted_as_rejected(telemetry, reason):
    assert samples(telemetry)["reidserve_rejected_total", ("reason", reason)] == 0
    with telemetry.call(SEARCH, arrival()) as record:
        record.code, record.reason = "UNAVAILABLE", reason
    with telemetry.call(SEARCH, arrival()) as record:
        record.code, record.reason = "NOT_FOUND", "ENTRY_NOT_FOUND"
    found = samples(telemetry)
    assert found["reidserve_rejected_total", ("reason", reason)] == 1
    assert sum(value for name, value in found.items() if name[0] == "reidserve_rejected_total") == 1


def test_every_reason_and_method_of_ours_has_its_own_label(telemetry):
    for reason in ("RATE_LIMITED", "DEADLINE_EXCEEDED", "ENGINE_STUCK", "UNAUTHENTICATED", "PERMISSION_DENIED"):
        telemetry.rejected(reason)
    for method in ("GalleryService/ImportEntries", "ModelService/Reload", "SearchService/BatchSearch"):
        with telemetry.call(f"reid.v1.{method}", arrival()):
            pass
    found = samples(telemetry)
    assert not any(("reason", "other") in name or ("method", "other") in name for name in found)


def test_no_count_is_lost_between_threads(telemetry):
    def count() -> None:
        for _ in range(500):
            use(telemetry)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(telemetry)
    assert found["reidserve_requests_total", ("code", "OK"), ("method", SEARCH)] == 2000
    assert found[("reidserve_batch_images_sum",)] == 6000


def test_what_is_served_is_shown_as_it_is_when_it_is_asked_for(telemetry, deployment, embedder, gallery):
    telemetry.watch(deployment)
    found = samples(telemetry)
    snapshot = deployment.served.pipeline.galleries["crops"].snapshot
    assert found[("reidserve_images_in_flight",)] == 3
    assert found[("reidserve_queue_images",)] == 2
    assert found["reidserve_gallery_entries", ("gallery", "crops")] == len(snapshot) == 40
    assert found["reidserve_gallery_generation", ("gallery", "crops")] == snapshot.generation > 0
    assert found[("reidserve_reloads_total",)] == 4
    (model,) = (name for name in found if name[0] == "reidserve_model_info")
    identity = embedder.contract.identity
    assert model[1:] == (("engine", "fp32/onnxruntime-cpu"), ("identity", identity), ("unverified", "false"))
    deployment.served.pipeline.in_flight = 0
    assert samples(telemetry)[("reidserve_images_in_flight",)] == 0
    deployment.served = None
    shown = {name[0] for name in samples(telemetry)}
    assert not shown & {"reidserve_gallery_entries", "reidserve_model_info", "reidserve_images_in_flight"}


def test_another_deployment_takes_the_place_of_the_one_that_was_watched(telemetry, deployment):
    telemetry.watch(Deployment())
    telemetry.watch(deployment)
    assert samples(telemetry)[("reidserve_reloads_total",)] == 4


def test_the_process_is_shown(telemetry):
    found = samples(telemetry)
    assert found[("process_resident_memory_bytes",)] > 2**20
    assert found[("process_cpu_seconds_total",)] > 0
    assert found[("process_open_fds",)] >= 3


def test_servers_count_apart_and_nothing_is_counted_for_the_whole_process(telemetry):
    other = open_telemetry(metrics=True)
    use(telemetry)
    assert ("reidserve_batch_images_sum",) in samples(telemetry)
    assert samples(other)[("reidserve_batch_images_sum",)] == 0
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("reidserve")]


def test_nothing_is_counted_where_nobody_asked(deployment):
    silent = open_telemetry()
    silent.watch(deployment)
    use(silent)
    assert not silent.counts
    with pytest.raises(ConfigError, match="--metrics"):
        silent.render()
    with silent.call(SEARCH, arrival(x_request_id="ours-1")) as record:
        assert record.request_id == "ours-1"
    silent.close()


@pytest.mark.parametrize(
    ("asked", "package", "module", "what"),
    [
        ({"metrics": True}, "prometheus_client", "metrics", "metrics"),
        ({"otlp": "http://127.0.0.1:4318"}, "opentelemetry.sdk.trace", "traces", "traces"),
    ],
)
def test_asking_without_the_packages_says_how_to_install_them(monkeypatch, asked, package, module, what):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"reidserve.server.telemetry.{module}", raising=False)
    with pytest.raises(ConfigError, match=rf"{what} need .*pip install 'reidserve\[telemetry\]'"):
        open_telemetry(**asked)
    open_telemetry()


def test_the_format_is_the_one_that_is_named(telemetry):
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    assert b"# TYPE reidserve_requests_total counter\n" in telemetry.render()


@pytest.fixture(scope="module")
def scraped(model, gallery, crops) -> str:
    """What Prometheus would read of a real server that was used."""
    command = [BIN / "reid-serve", "--model", model, "--gallery", gallery, "--listen", "127.0.0.1:0", "--json"]
    asked = ["--http", "127.0.0.1:0", "--metrics"]
    with subprocess.Popen([*map(str, command), *asked], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with Client(ready["listening"]) as client:
            for path in sorted(crops.iterdir())[:3]:
                client.search(path)
            with pytest.raises(RequestError):
                client.search_entry("nobody")
        with urllib.request.urlopen(f"http://{ready['http']}/metrics", timeout=10) as reply:
            assert reply.headers["content-type"] == CONTENT_TYPE
            text = reply.read().decode()
        process.terminate()
        assert process.wait(30) == 0
    return text


@pytest.fixture(scope="module")
def names(scraped) -> set[str]:
    return {name[0] for name in read(scraped)}


def test_a_real_server_shows_what_it_was_asked_and_what_it_serves(scraped):
    found = read(scraped)
    assert found["reidserve_requests_total", ("code", "OK"), ("method", SEARCH)] == 3
    assert found["reidserve_requests_total", ("code", "NOT_FOUND"), ("method", SEARCH)] == 1
    assert found["reidserve_stage_seconds_count", ("stage", "decode")] == 3
    assert found["reidserve_stage_seconds_count", ("stage", "search")] == 3
    assert found[("reidserve_batch_images_sum",)] == 3
    assert found["reidserve_gallery_entries", ("gallery", "crops")] == 40
    assert found[("reidserve_images_in_flight",)] == 0
    assert found[("reidserve_queue_images",)] == 0
    assert found[("reidserve_reloads_total",)] == 0
    assert found["reidserve_rejected_total", ("reason", "OVERLOADED")] == 0


def family_of(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def expressions(board: dict) -> list[str]:
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return asked + [variable["definition"] for variable in board["templating"]["list"] if variable["type"] == "query"]


def test_the_board_asks_for_metrics_that_there_are_and_for_all_of_them(names):
    board = json.loads(BOARD.read_text())
    asked = {name for expression in expressions(board) for name in NAME.findall(expression)}
    assert asked <= names
    assert {family_of(name) for name in names} - {family_of(name) for name in asked} == LEFT_OUT


def test_the_boards_labels_are_those_of_the_metrics(scraped):
    labels: dict[str, set[str]] = {}
    for sample in read(scraped):
        labels.setdefault(sample[0], set()).update(name for name, _ in sample[1:])
    for expression in expressions(json.loads(BOARD.read_text())):
        scraped = {"job", "instance", "le"}
        named = set().union(*(labels[name] for name in NAME.findall(expression))) | scraped
        by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        matched = set(re.findall(r"(\w+)=~", expression))
        assert by | matched <= named, expression


def test_the_board_takes_its_data_source_from_a_variable_and_no_panel_hides_another():
    board = json.loads(BOARD.read_text())
    panels = board["panels"]
    assert board["schemaVersion"] >= 41
    assert len({panel["id"] for panel in panels}) == len(panels)
    sources = {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"}
    assert sources == {"${datasource}"}
    assert (
        board["templating"]["list"][0] | {"type": "datasource", "query": "prometheus"} == board["templating"]["list"][0]
    )
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    for expression in expressions(board):
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")


def test_the_page_explains_every_metric_and_no_other(names):
    page = PAGE.read_text(encoding="utf-8")
    rows = {match for line in page.splitlines() if line.startswith("| `") for match in NAME.findall(line.split("|")[1])}
    assert rows == {family_of(name) for name in names}
    assert set(NAME.findall(page)) <= names | rows


def test_the_benchmark_counts_what_it_times():
    script = ROOT / "benchmarks" / "telemetry.py"
    ran = subprocess.run(
        [sys.executable, "-P", script, "--quick"], capture_output=True, text=True, timeout=120, check=False
    )
    report = json.loads(ran.stdout.splitlines()[-1])
    assert (ran.returncode, report["holds"], report["counted"], report["calls"]) == (0, True, True, 400), ran.stderr
