"""Every benchmark, one after the other: tables of what they found, and build/bench.json.

    python -P benchmarks/every.py [--quick] [NAME ...]
    python -P benchmarks/every.py --markdown [PAGE]     # the last run's tables into docs/benchmarks.md

The machine's ceilings (machine.py) are measured first, and with any choice of names: the table of roofs holds the
others against them. Exit code 1: one does not hold. Figures are of an idle machine or of nothing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
KEPT = HERE.parent / "build" / "bench.json"
PLACE = re.compile(r"(<!-- bench -->\n).*?(<!-- end -->)", re.DOTALL)

MAIN: Mapping[str, Sequence[str]] = {
    "artifact": ("best_int8", "int8_over_fp32", "best_fp32", "fp32_over_eager", "folded_over_unfolded"),
    "consistency": ("kills", "searches_equal_to_brute_force", "generations", "cut_off_and_in"),
    "crash": ("kills", "acknowledged", "inside", "outside"),
    "evaluate": ("evaluate_over_product", "rerank_over_products", "market1501_evaluate_extra_MB"),
    "gallery": ("one_query_over_product", "recall_at_10", "batch_product_over_exact", "build_over_bare"),
    "hostile": ("calls", "codes", "memory_after_warm_up_MiB", "memory_at_the_end_MiB"),
    "machine": ("read_GB_per_second",),
    "overload": ("offered_over_capacity", "goodput_over_capacity", "refused_p99_ms", "accepted_p99_over_queue"),
    "peer": ("ours_over_peer_fp32", "ours_over_peer_int8", "ours_over_engine_int8"),
    "reload": ("answered_meanwhile", "failed_meanwhile", "failed_at_stops", "exit_codes"),
    "scaling": ("gallery", "two_over_one", "two_over_one_by_the_model", "two_over_model"),
    "search": ("one_client_time_over_bare", "eight_clients_time_over_bare", "ready_seconds"),
    "serve": (
        "served_over_bare_fp32",
        "served_over_bare_int8",
        "one_client_over_bare_fp32",
        "free_calls_per_core_second",
    ),
    "soak": ("calls", "memory_bytes_a_call", "exit_code"),
    "telemetry": ("metrics_us", "counted"),
    "train": ("over_bare", "images_per_second"),
    "workers": ("one_over_many_fp32", "one_over_many_int8", "memory_of_many_over_one_int8"),
}
"""What the table says of each; of a benchmark that is not named here, its first figures."""

FIRST = 4

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Roof:
    """A figure and the ceiling above it.

    Attributes:
        what: is done.
        rate: at which it is done, with its unit.
        ceiling: what could be had at most, as it was measured, with its unit.
        share: of the ceiling; None where nothing measures it yet.
        bound: what the ceiling is of.
    """

    what: str
    rate: str
    ceiling: str
    share: float | None
    bound: str


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help="all, if none is named")
    arguments.add_argument(
        "--quick", action="store_true", help="minutes: each benchmark's --quick, no bounds on ratios"
    )
    arguments.add_argument(
        "--markdown", nargs="?", type=Path, const=PAGE, metavar="PAGE", help="fill the page's tables"
    )
    arguments.add_argument("--kept", type=Path, default=KEPT, metavar="FILE", help="build/bench.json")
    arguments.add_argument("--folder", type=Path, default=HERE, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.markdown:
        fill(asked.markdown, json.loads(asked.kept.read_text(encoding="utf-8")))
        return 0
    found = {path.stem: path for path in sorted(asked.folder.glob("*.py")) if path.name != Path(__file__).name}
    if strangers := sorted(set(asked.names) - set(found)):
        arguments.error(f"no benchmark {', '.join(strangers)}; there are {', '.join(found)}")
    load = os.getloadavg()[0]
    chosen = ["machine", *(name for name in found if name != "machine" and (not asked.names or name in asked.names))]
    reports = [run(found[name], quick=asked.quick) for name in chosen]
    record = record_of(reports, quick=asked.quick, load=load)
    keep(asked.kept, record)
    print(render(record))
    return 0 if record["holds"] else 1


def run(path: Path, *, quick: bool) -> Figures:
    """What a benchmark reports, and how long it took; one that ends without a report does not hold."""
    print(f"== {path.stem}", file=sys.stderr)
    start = time.perf_counter()
    child = [sys.executable, "-P", str(path), *(["--quick"] if quick else [])]
    ended = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
    last = (ended.stdout.splitlines() or [""])[-1]
    try:
        report: Figures = json.loads(last)
        holds = ended.returncode == 0 and report["holds"] is True
    except (json.JSONDecodeError, KeyError, TypeError):
        report, holds = {"error": f"ended with {ended.returncode} and no report"}, False
    return {**report, "name": path.stem, "holds": holds, "seconds": round(time.perf_counter() - start, 1)}


def record_of(reports: Sequence[Figures], *, quick: bool, load: float) -> Figures:
    """What is kept of a run; `load` is how many processes ran or waited in the minute before it."""
    by_name = {report["name"]: report for report in reports}
    versions = {name: number for report in reports for name, number in report.get("versions", {}).items()}
    machine = by_name["machine"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": {name: machine.get(name) for name in ("processor", "cores", "instructions", "caches", "memory_GB")},
        "versions": dict(sorted(versions.items())),
        "load_before": round(load, 2),
        "quick": quick,
        "holds": all(report["holds"] for report in reports),
        "benchmarks": by_name,
        "roofs": [asdict(roof) for roof in roofs(by_name)],
    }


def keep(path: Path, record: Figures) -> None:
    """Write the record, or leave the old one as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def fill(page: Path, record: Figures) -> None:
    """Put the record's tables in their place on a page."""
    text, filled = PLACE.subn(lambda found: f"{found[1]}{render(record)}\n{found[2]}", page.read_text(encoding="utf-8"))
    if filled != 1:
        raise SystemExit(
            f"{page} has {filled} places for the tables, one was expected: <!-- bench --> ... <!-- end -->"
        )
    page.write_text(text, encoding="utf-8")


# The roofs.


def roofs(reports: Mapping[str, Figures]) -> list[Roof]:
    """Of every benchmark that ran to its end, what stands above its figures."""
    told = {name: report for name, report in reports.items() if "error" not in report}
    if "machine" not in told:
        return []
    sections = {"artifact": artifact_roofs, "gallery": gallery_roofs, "evaluate": evaluate_roofs}
    found = [roof for name, tell in sections.items() if name in told for roof in tell(told[name], told["machine"])]
    return [*found, *bare_roofs(told)]


def artifact_roofs(report: Figures, machine: Figures) -> Iterator[Roof]:
    """Of each engine at the batch that ratios are given for."""
    for row in report["rows"]:
        if row["batch"] == report["ratios_at_batch"] and "of_roof" in row:
            peak = max(
                rate
                for engine, rate in report["peak_GFLOP_per_second"].items()
                if engine.startswith(row["engine"][: row["engine"].index("/") + 1])
            )
            ceiling = f"{row['GFLOP_per_second'] / row['of_roof']:,.0f} GFLOP/s (products alone: {peak:,})"
            what = f"embedding, {row['engine']}, batch {row['batch']}"
            yield Roof(what, f"{row['GFLOP_per_second']:,.0f} GFLOP/s", ceiling, row["of_roof"], row["roof"])


def gallery_roofs(report: Figures, machine: Figures) -> Iterator[Roof]:
    """Of exact searches for one query and for 512."""
    entries, dim = report["entries"], report["dim"]
    one = report["one_query_product_ms"] * report["one_exact_query_over_product"] / 1000
    yield product_roof(f"search, 1 query in {entries:,} x {dim}", machine, sides=(1, entries, dim), seconds=one)
    each = report["batch_product_ms_a_query"] / report["batch_product_over_exact"] / 1000
    yield product_roof(
        f"search, 512 queries in {entries:,} x {dim}", machine, sides=(512, entries, dim), seconds=512 * each
    )


def evaluate_roofs(report: Figures, machine: Figures) -> Iterator[Roof]:
    """Of scoring."""
    sides = (report["queries"], report["gallery"], report["dim"])
    seconds = report["product_seconds"] * report["evaluate_over_product"]
    if seconds:  # which a quick run rounds to nothing
        what = f"evaluation, {sides[0]:,} x {sides[1]:,} x {sides[2]}"
        yield product_roof(what, machine, sides=sides, seconds=seconds)


def product_roof(what: str, machine: Figures, *, sides: tuple[int, int, int], seconds: float) -> Roof:
    """Of work that stands on a float32 product (queries, dim) x (dim, rows), which reads each number once at least."""
    queries, rows, dim = sides
    flops, size = 2 * queries * rows * dim, 4 * dim * (queries + rows)
    fp32 = [rate for engine, rate in machine["product_GFLOP_per_second"].items() if engine.startswith("fp32/")]
    peak, bandwidth = 1e9 * max(fp32), 1e9 * machine["read_GB_per_second"]
    if flops / peak > size / bandwidth:
        rate, ceiling, unit, bound = flops / seconds, peak, "GFLOP/s", "arithmetic"
    else:
        rate, ceiling, unit, bound = size / seconds, bandwidth, "GB/s", "bandwidth"
    return Roof(what, f"{rate / 1e9:,.1f} {unit}", f"{ceiling / 1e9:,.1f} {unit}", round(rate / ceiling, 3), bound)


def bare_roofs(reports: Mapping[str, Figures]) -> Iterator[Roof]:
    """Of work whose ceiling is the same work bare, timed beside it."""
    if "gallery" in reports:
        share = reports["gallery"]["build_over_bare"]
        yield Roof("build of a gallery", f"{share} x", "decoding and the engine, overlapped", share, "decoding, engine")
    if "search" in reports:
        for clients in ("one_client", "eight_clients"):
            share = round(1 / reports["search"][f"{clients}_time_over_bare"], 3)
            what = f"server, {clients.replace('_', ' ')}"
            yield Roof(what, f"{share} x", "decode, embed, rank in one process", share, "the same, and gRPC")
    if "serve" in reports:
        for precision in ("fp32", "int8"):
            share = reports["serve"][f"served_over_bare_{precision}"]
            what = f"server, 16 clients, {precision}"
            yield Roof(what, f"{share} x", "decode, embed, rank in batches in one process", share, "the same, and gRPC")
    if "train" in reports:
        report = reports["train"]
        rate, ceiling = (f"{report[name]} images/s" for name in ("images_per_second", "bare_images_per_second"))
        yield Roof("training", rate, ceiling, report["over_bare"], "forward and back, bare")


# The tables.


def render(record: Figures) -> str:
    """The record as Markdown, aligned to be read as it is."""
    machine, reports = record["machine"], record["benchmarks"]
    caches = ", ".join(f"{level} {size}" for level, size in (machine["caches"] or {}).items())
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    parts = [
        f"{record['date']}, {machine['processor']}, {machine['cores']} cores ({caches}), {machine['memory_GB']} GB, "
        f"load {record['load_before']} before; {versions}."
        + (" **Quick: no figure to be trusted.**" if record["quick"] else ""),
        table(
            ["benchmark", "holds", "figures", "seconds"],
            [[name, "yes" if report["holds"] else "NO", *said(report)] for name, report in reports.items()],
        ),
    ]
    if rows := reports.get("artifact", {}).get("rows"):
        parts.append(table(*embedding_table(rows)))
    parts.append(table(["ceiling", "at most"], ceilings_table(reports["machine"])))
    if record["roofs"]:
        titles = ["what", "rate", "ceiling", "share", "bound by"]
        parts.append(table(titles, [[cell(value) for value in roof.values()] for roof in record["roofs"]]))
    return "\n\n".join(parts)


def said(report: Figures) -> list[str]:
    """A report's main figures, and its seconds."""
    numbers = [name for name, value in report.items() if type(value) in (int, float) and name != "seconds"]
    names = [name for name in MAIN.get(report["name"], numbers[:FIRST]) if name in report]
    figures = "; ".join(f"{name} {cell(report[name])}" for name in names)
    return [report.get("error", figures), cell(report["seconds"])]


def ceilings_table(machine: Figures) -> list[list[str]]:
    """Copies by size and products by precision and library."""
    copies, products = machine.get("copy_GB_per_second", {}), machine.get("product_GFLOP_per_second", {})
    return [
        *([f"copies, {size} MB read and written", f"{rate} GB/s"] for size, rate in copies.items()),
        *([f"products, {engine}", f"{rate:,} GFLOP/s"] for engine, rate in products.items()),
    ]


def embedding_table(rows: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """Engines x flavours x batch."""
    titles = {
        "engine": "engine",
        "batch": "batch",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "images_per_second": "images/s",
        "over_fp32": "/ ONNX Runtime fp32",
        "over_eager": "/ torch eager",
        "of_peak": "of peak",
        "of_roof": "of roof",
        "roof": "bound by",
    }
    return list(titles.values()), [[cell(row.get(name)) for name in titles] for row in rows]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with columns of even width."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    padded.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" if place != 1 else f"|-{line}-|" for place, line in enumerate(padded))


def cell(value: object) -> str:
    """A value as a table shows it; nothing for None."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {cell(inner)}" for name, inner in value.items())
    if value is None:
        return ""
    return f"{value:,}" if type(value) in (int, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
