"""Calls, not connections, divided among servers: by HAProxy as it is deployed, and by the client."""

import re
import runpy
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from reidserve.client import Client
from reidserve.errors import RequestError
from tests.conftest import BIN

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "deploy" / "haproxy.cfg"
PAGE = ROOT / "docs" / "deploying.md"


@pytest.fixture(scope="module")
def haproxy() -> str:
    found = shutil.which("haproxy")
    if found is None:
        pytest.skip("needs haproxy, which .ci/run installs")
    return found


@pytest.fixture(scope="module")
def scaling():
    return runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"), run_name="scaling")


@contextmanager
def serving(scaling, model: Path, gallery: Path, *options: str) -> Iterator[tuple[subprocess.Popen, object]]:
    """A server that only reads; its process, and how the benchmark names it."""
    pytest.importorskip("prometheus_client", reason="needs the [telemetry] extra")
    command = [BIN / "reid-serve", "--model", model, "--gallery", gallery, "--read-only", "--json", *options]
    command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--metrics"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = scaling["json"].loads(process.stdout.readline())
        yield process, scaling["Server"](process.pid, said["listening"], said["http"].removeprefix("http://"))
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


def wait_until(holds, *, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.02)


def test_the_configuration_is_whole(haproxy):
    checked = subprocess.run([haproxy, "-c", "-f", CONFIG], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warning" not in checked.stderr.lower()


def test_one_connections_calls_go_to_both_servers_and_answers_are_theirs(
    haproxy, scaling, model, gallery, crops, tmp_path
):
    query = sorted(crops.iterdir())[3]
    with ExitStack() as opened:
        servers = [opened.enter_context(serving(scaling, model, gallery, "--probe-period", "0"))[1] for _ in range(2)]
        _, address = opened.enter_context(scaling["proxy"](servers, tmp_path / "haproxy.cfg"))
        with Client(address) as client, Client(servers[0].address) as direct:
            found = [client.search(query, top_k=5).hits for _ in range(40)]
            expected = direct.search(query, top_k=5).hits
        counts = [scaling["calls_of"](server) for server in servers]
    assert all(hits == expected for hits in found)
    assert sum(counts) >= 41
    assert min(counts) >= 10


def test_a_server_that_ends_costs_no_call(haproxy, scaling, model, gallery, crops, tmp_path):
    query, failed, answered, stopped = sorted(crops.iterdir())[3], list[RequestError](), [0], threading.Event()

    def ask(address: str) -> None:
        with Client(address, retries=0) as client:
            while not stopped.is_set():
                try:
                    client.search(query, top_k=1)
                    answered[0] += 1
                except RequestError as error:
                    failed.append(error)

    with ExitStack() as opened:
        (ends, first), (_, second) = (
            opened.enter_context(serving(scaling, model, gallery, "--probe-period", "4")) for _ in range(2)
        )
        _, address = opened.enter_context(scaling["proxy"]([first, second], tmp_path / "haproxy.cfg"))
        asking = threading.Thread(target=ask, args=(address,))
        asking.start()
        try:
            wait_until(lambda: min(map(scaling["calls_of"], (first, second))) >= 5)
            ends.send_signal(signal.SIGTERM)
            assert ends.wait(60) == 0
            before = answered[0]
            wait_until(lambda: answered[0] > before + 20)
        finally:
            stopped.set()
            asking.join()
    assert failed == []


def test_metrics_have_what_the_autoscaler_asks_for(scaling, model, gallery):
    with (
        serving(scaling, model, gallery, "--probe-period", "0") as (_, server),
        urllib.request.urlopen(f"http://{server.http}/metrics", timeout=30) as answer,
    ):
        text = answer.read().decode()
    assert re.search(r"^reidserve_queue_images 0(\.0)?$", text, flags=re.MULTILINE)


def test_a_client_takes_turns_among_the_addresses_of_its_server(scaling, model, gallery, crops):
    query = sorted(crops.iterdir())[3]
    with ExitStack() as opened:
        servers = [opened.enter_context(serving(scaling, model, gallery, "--probe-period", "0"))[1] for _ in range(2)]
        with Client("ipv4:" + ",".join(server.address for server in servers)) as client:

            def both() -> bool:
                client.search(query, top_k=1)
                return min(map(scaling["calls_of"], servers)) >= 5

            wait_until(both)
