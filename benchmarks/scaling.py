"""What several servers on one gallery do, against a model of it that goes on to a billion entries.

    python -P benchmarks/scaling.py [--quick]
    python -P benchmarks/scaling.py --model        # only the model's table, as it stands in docs/scaling.md

The model has one idea: a query costs each part it goes through some processor time and bytes, whoever else is asked
meanwhile, so N servers do N times what one does until the processors are all busy. It is held against two measured
points: one and two reid-serve with a core each, read-only on one gallery, behind HAProxy with deploy/haproxy.cfg, their
clients beside them on the same machine. The gallery is in a Milvus of the package milvus (2.3) on that machine too, or
in a folder where that package is not installed; the report says in which. What server, proxy, Milvus and clients take
of a processor for each query is measured with one server; from that the model says what two would do, and then they do
it. Answers must be those of a server that is asked directly, and each of the two must get its part of the calls of one
connection. It holds if two do what the model says, give or take a quarter.

Needs haproxy.
"""

import argparse
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SERVERS = 2
WITHIN = 0.25
"""How far what two servers do may be from what the model says."""
LEAST_SHARE = 0.3
"""Least part of one connection's calls that each of two servers gets."""
START_SECONDS = 30

ENTRIES = (10**5, 10**6, 10**7, 10**8, 10**9)

Backend = Literal["folder", "Milvus, exact", "Milvus, graph"]
Figures = dict[str, Any]


# The model.


class Assumptions(NamedTuple):
    """What the model is told; docs/scaling.md says of each where it comes from."""

    dim: int = 512
    rows_fetched: int = 26
    peak_queries_per_second: float = 1_000
    mean_over_peak: float = 0.4
    busy_at_peak: float = 0.6
    spare_servers: int = 1
    images_per_core_second: float = 51
    served_over_engine: float = 0.91
    read_gb_per_core_second: float = 13.5
    quantised_over_exact: float = 0.34
    server_cores: int = 8
    server_memory_gb: float = 2
    largest_server_gb: float = 1_000
    entry_memory_bytes: int = 1_000
    node_cores: int = 16
    node_memory_gb: float = 128
    node_memory_filled: float = 0.7
    milvus_entry_bytes: int = 300
    graph_over_vectors: float = 1.3
    segment_gb: float = 1
    segment_ms: float = 1
    query_bytes: int = 20_000
    answer_bytes: int = 2_000
    dollars_per_core_hour: float = 0.04
    dollars_per_gb_hour: float = 0.005


class Plan(NamedTuple):
    """What a gallery of that size takes at the peak.

    Attributes:
        servers: reid-serve processes, spare ones included; None where one machine cannot hold the gallery.
        server_gb: memory of each.
        nodes: of Milvus; 0 for a folder.
        nodes_gb: memory of all of them that vectors and entries take.
        callers_mb_per_second: images in and answers out.
        milvus_mb_per_second: between servers and Milvus.
        dollars_per_million: queries, all machines at the mean load.
    """

    backend: Backend
    entries: int
    servers: int | None
    server_gb: float
    nodes: int
    nodes_gb: float
    callers_mb_per_second: float
    milvus_mb_per_second: float
    dollars_per_million: float


def plan(backend: Backend, entries: int, told: Assumptions = Assumptions()) -> Plan:  # noqa: B008  # it is immutable
    """What so many entries take, held by every server or by Milvus."""
    queries = told.peak_queries_per_second
    rows_gb = entries * 4 * told.dim / 1e9
    embed_seconds = 1 / (told.images_per_core_second * told.served_over_engine)
    if backend == "folder":
        codes_gb = entries * 2 * (told.dim / 8 + 8) / 1e9
        server_gb = told.server_memory_gb + rows_gb + codes_gb + entries * told.entry_memory_bytes / 1e9
        scan_seconds = told.quantised_over_exact * rows_gb / told.read_gb_per_core_second
        nodes, nodes_gb, exchanged = 0, 0.0, 0.0
    else:
        server_gb, scan_seconds = told.server_memory_gb, 0.0
        nodes, nodes_gb = milvus_nodes(backend, entries, told)
        exchanged = 4 * told.dim * (1 + told.rows_fetched) + told.answer_bytes
    busy_cores = queries * (embed_seconds + scan_seconds) / told.busy_at_peak
    servers = ceil(busy_cores / told.server_cores) + told.spare_servers
    hourly = servers * price(told.server_cores, server_gb, told) + nodes * price(
        told.node_cores, told.node_memory_gb, told
    )
    return Plan(
        backend,
        entries,
        servers if server_gb <= told.largest_server_gb else None,
        server_gb,
        nodes,
        nodes_gb,
        queries * (told.query_bytes + told.answer_bytes) / 1e6,
        queries * exchanged / 1e6,
        1e6 * hourly / (3600 * queries * told.mean_over_peak),
    )


def milvus_nodes(backend: Backend, entries: int, told: Assumptions) -> tuple[int, float]:
    """How many nodes hold the entries and answer in time, and the memory that the entries take of them, GB."""
    rows_gb = entries * 4 * told.dim / 1e9
    if backend == "Milvus, exact":
        held_gb, seconds = rows_gb, rows_gb / told.read_gb_per_core_second
    else:
        held_gb = told.graph_over_vectors * rows_gb
        seconds = ceil(rows_gb / told.segment_gb) * told.segment_ms / 1000
    held_gb += entries * told.milvus_entry_bytes / 1e9
    by_memory = held_gb / (told.node_memory_gb * told.node_memory_filled)
    by_cores = told.peak_queries_per_second * seconds / (told.busy_at_peak * told.node_cores)
    return ceil(max(by_memory, by_cores)), held_gb


def price(cores: float, memory_gb: float, told: Assumptions) -> float:
    """Dollars an hour of a machine."""
    return cores * told.dollars_per_core_hour + memory_gb * told.dollars_per_gb_hour


def plans() -> list[Plan]:
    backends: Sequence[Backend] = ("folder", "Milvus, exact", "Milvus, graph")
    return [plan(backend, entries) for backend in backends for entries in ENTRIES]


def table(found: Sequence[Plan]) -> str:
    """The plans as Markdown."""
    titles = (
        "| gallery | entries | servers | GB each | Milvus nodes | GB held by them "
        "| MB/s with callers | MB/s with Milvus | $ a million queries |"
    )
    lines = [titles, "|---" * titles.count(" | ") + "|---|"]
    for one in found:
        if one.servers is None:
            cells = ["**none is large enough**", f"{one.server_gb:,.0f}", *["–"] * 5]
        else:
            dollars = (
                f"{one.dollars_per_million:,.2f}"
                if one.dollars_per_million < 100
                else f"{one.dollars_per_million:,.0f}"
            )
            cells = [f"{one.servers:,}", f"{one.server_gb:,.1f}", f"{one.nodes:,}" if one.nodes else "–"]
            cells += [f"{one.nodes_gb:,.1f}" if one.nodes else "–", f"{one.callers_mb_per_second:,.0f}"]
            cells += [f"{one.milvus_mb_per_second:,.0f}" if one.nodes else "–", dollars]
        lines.append("| " + " | ".join([one.backend, f"{one.entries:,}", *cells]) + " |")
    return "\n".join(lines)


# The measured points.


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="seconds: ResNet-18-IBN-a at 64x32, 1,000 entries")
    arguments.add_argument("--model", action="store_true", help="print the model's table and measure nothing")
    asked = arguments.parse_args()
    if asked.model:
        print(table(plans()))
        return 0
    if shutil.which("haproxy") is None:
        arguments.error("haproxy was expected on the PATH: apt-get install haproxy, or --model")
    quick = bool(asked.quick)
    parts: dict[str, Any] = {}
    for name in ("serve", "overload"):
        parts |= runpy.run_path(str(Path(__file__).with_name(f"{name}.py")), run_name=name)
    with tempfile.TemporaryDirectory() as folder:
        parts["prepare"](Path(folder), quick=quick)
        figures = measure(parts, Path(folder), quick=quick)
    right = figures["equal_answers"] and min(figures["shares"]) >= LEAST_SHARE
    report = {
        "name": "scaling",
        "holds": right and (quick or abs(figures["two_over_model"] - 1) <= WITHIN),
        "quick": quick,
        "cores": len(os.sched_getaffinity(0)),
        "two_over_one": figures.pop("two_over_one"),
        "two_over_one_by_the_model": figures.pop("two_over_one_by_the_model"),
        **figures,
        "model": [one._asdict() for one in plans()],
        "versions": {name: version(name) for name in ("reidserve", "numpy", "onnxruntime", "grpcio")} | proxy_version(),
    }
    print(json.dumps(report))
    return 0 if report["holds"] else 1


def measure(parts: dict[str, Any], work: Path, *, quick: bool) -> Figures:
    """One server and two behind a proxy, turn by turn."""
    seconds, turns, clients = (1.0, 1, parts["CLIENTS"]) if quick else (5.0, 5, parts["CLIENTS"])
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as opened:
        gallery, milvus = opened.enter_context(held(work))
        servers = []
        for place in range(SERVERS):
            with parts["on_cores"]({cores[place % len(cores)]}):
                servers.append(opened.enter_context(serving(parts, work, gallery)))
        ask = opened.enter_context(parts["clients_beside"]())
        groups = [servers[:1], servers]
        proxies = [opened.enter_context(proxy(group, work / f"{len(group)}.cfg")) for group in groups]
        points = [partial(ask, address, work / "images") for _, address in proxies]
        expected = ask(servers[0].address, work / "images", do="answers")
        equal = all(point(do="answers") == expected for point in points)
        before = [calls_of(server) for server in servers]
        found: list[list[Spent]] = [[], []]
        for _ in range(turns):
            for spent, group, (process, _), point in zip(found, groups, proxies, points, strict=True):
                work_of = partial(point, do="closed", clients=clients, seconds=seconds)
                spent.append(watch(work_of, [server.pid for server in group], [process.pid], milvus))
        after = [calls_of(server) for server in servers]
    where = "Milvus" if milvus else "folder"
    return {"gallery": where, "equal_answers": equal, "shares": shares(before, after, found)} | compare(
        found, len(cores)
    )


class Server(NamedTuple):
    """A reid-serve, where it answers gRPC, and where HTTP."""

    pid: int
    address: str
    http: str


class Spent(NamedTuple):
    """What a turn gave and took: queries a second, all of them, and seconds of processor for each."""

    rate: float
    queries: int
    server: float
    proxy: float
    milvus: float
    client: float


@contextmanager
def held(work: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """The prepared gallery where servers find it, and the processes that hold it."""
    folder = work / "bench.gallery"
    if find_spec("milvus") is None:
        yield str(folder), ()
        return
    milvus = runpy.run_path(str(ROOT / "tests" / "milvus_running.py"))["RunningMilvus"](work / "milvus")
    try:
        milvus.start()
        url = f"milvus://{milvus.address}/bench"
        subprocess.run([BIN / "reid-index", "copy", folder, url], check=True, stdout=subprocess.DEVNULL)
        yield url, processes_of(work / "milvus")
    finally:
        milvus.kill()


def processes_of(folder: Path) -> list[int]:
    """Those whose program lies in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "exe").readlink().is_relative_to(folder.resolve()):
                found.append(int(process.name))
    return found


@contextmanager
def serving(parts: dict[str, Any], work: Path, gallery: str) -> Iterator[Server]:
    command = (
        BIN / "reid-serve",
        "--model",
        work / "model",
        "--gallery",
        gallery,
        "--read-only",
        "--metrics",
        "--json",
    )
    with parts["running"]([*command, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--probe-period", "0"]) as (
        process,
        said,
    ):
        yield Server(process.pid, said["listening"], said["http"].removeprefix("http://"))


@contextmanager
def proxy(servers: Sequence[Server], config: Path) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """HAProxy as deploy/haproxy.cfg has it, before these servers, once it sends them calls."""
    address = f"127.0.0.1:{free_port()}"
    config.write_text(configured((ROOT / "deploy" / "haproxy.cfg").read_text(encoding="utf-8"), address, servers))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        wait_until_listening(address)
        yield process, address
    finally:
        process.terminate()
        process.wait(30)


def configured(text: str, address: str, servers: Sequence[Server]) -> str:
    """The configuration with another address to listen on, and other servers."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith("server ")]
    bound = re.sub(r"bind \S+", f"bind {address}", "\n".join(kept).rstrip())
    named = [
        f"    server reidserve-{place} {server.address} port {server.http.rpartition(':')[2]}"
        for place, server in enumerate(servers, start=1)
    ]
    return "\n".join([bound, *named, ""])


def wait_until_listening(address: str) -> None:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def watch(work: Callable[[], Figures], *groups: Sequence[int]) -> Spent:
    """What clients got, and what servers, proxy and Milvus took for it."""
    before = [processor_seconds(group) for group in groups]
    said = work()
    took = [processor_seconds(group) - first for group, first in zip(groups, before, strict=True)]
    client = said["cpu"] * said["calls"] / said["rate"]
    return Spent(said["rate"], said["calls"], *(each / said["calls"] for each in (*took, client)))


def processor_seconds(processes: Sequence[int]) -> float:
    """What processes took of the processors since they began."""
    taken = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        taken += int(fields[11]) + int(fields[12])
    return taken / os.sysconf("SC_CLK_TCK")


def calls_of(server: Server) -> int:
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return round(sum(float(count) for count in re.findall(r'reidserve_requests_total{.*/Search".*} (\S+)', text)))


def shares(before: Sequence[int], after: Sequence[int], found: Sequence[Sequence[Spent]]) -> list[float]:
    """Which part of the two servers' calls each got; what the first had to itself is taken off."""
    alone = sum(spent.queries for spent in found[0])
    got = [last - first - own for first, last, own in zip(before, after, [alone, 0], strict=True)]
    return [round(some / sum(got), 3) for some in got]


def compare(found: Sequence[Sequence[Spent]], cores: int) -> Figures:
    """What was found, and what the model makes of the first point."""
    one, two = found
    took = {name: median(getattr(spent, name) for spent in one) for name in ("server", "proxy", "milvus", "client")}
    whole = sum(took.values())
    expected = min(min(SERVERS, cores) / took["server"], cores / whole)
    expected_one = min(1 / took["server"], cores / whole)
    ratio = median(second.rate / first.rate for first, second in zip(one, two, strict=True))
    return {
        "two_over_one": round(ratio, 3),
        "two_over_one_by_the_model": round(expected / expected_one, 3),
        "one_over_model": round(median(spent.rate for spent in one) / expected_one, 3),
        "two_over_model": round(median(spent.rate for spent in two) / expected, 3),
        **{f"{name}_ms_a_query": round(1000 * value, 3) for name, value in took.items()},
        "server_ms_a_query_of_two": round(1000 * median(spent.server for spent in two), 3),
    }


def proxy_version() -> dict[str, str]:
    said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout
    return {"haproxy": said.split()[2]}


if __name__ == "__main__":
    sys.exit(main())
