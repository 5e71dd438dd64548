"""reid-index tune: what an index costs on a gallery's own labels."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from reidserve.commands.console import IndexDevice, Json, print_json, print_lines, progress
from reidserve.commands.place import GalleryFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reidserve.evaluate import KindReport


def tune(
    gallery: GalleryFolder,
    *,
    kinds: Annotated[
        list[Literal["flat-fp16", "rabitq"]] | None, Parameter(name="--index", negative="", show_default=False)
    ] = None,
    queries: int = 1000,
    top_k: int = 50,
    seed: int = 0,
    index_device: IndexDevice = "cpu",
    json: Json = False,
) -> None:
    """Compare indexes with exact search: recall, and what it costs in Rank@k.

    A sample of the gallery's own entries is searched for, each left out of its own hits, by the rule of Market-1501:
    entries of the query's pid and camid do not count. Where fewer of the --top-k best count than Rank@k needs, it says
    "-". There is no mAP, which needs every rank. Rows in no full block of 8,192 are always multiplied.

    Args:
        gallery: The gallery's folder; its entries need pids and camids.
        kinds: What to compare with exact search, by default rabitq; may be given several times.
        queries: How many entries to search for.
        top_k: How many hits, as will be asked for in use.
        seed: Draws the sample.
    """
    from reidserve.datasets import path_to_text
    from reidserve.evaluate import tune as compare
    from reidserve.index import read_kinds

    snapshots = read_kinds(gallery, ["flat", *(kinds or ["rabitq"])], device=index_device)
    with progress("searching") as advance:
        reports = compare(
            {str(kind): one for kind, one in snapshots.items()},
            queries=queries,
            top_k=top_k,
            seed=seed,
            progress=advance,
        )
    covered: dict[str, int] = {
        kind: 0 if snapshot.covered is None else sum(block.count for block in snapshot.covered.blocks)
        for kind, snapshot in snapshots.items()
    }
    if json:
        print_json(
            {
                "gallery": path_to_text(gallery),
                "entries": len(snapshots["flat"]),
                "top_k": top_k,
                "seed": seed,
                "kinds": [{**asdict(report), "covered": covered[report.kind]} for report in reports],
            }
        )
    else:
        entries = len(snapshots["flat"])
        proposed = [
            f"{kind} proposes from {count} of {entries} entries; those in no full block are multiplied"
            for kind, count in covered.items()
            if kind != "flat"
        ]
        print_lines([*_table(reports, top_k), *proposed])


def _table(reports: "Sequence[KindReport]", top_k: int) -> list[str]:
    """A line for each kind; beside Rank@k what it loses against exact search."""
    exact = reports[0]
    head = ["index", "recall@1", "recall@10", f"recall@{top_k}", "Rank-1", "Rank-5", "Rank-10", "ms"]
    rows = [head]
    for report in reports:
        pairs = ((report.rank1, exact.rank1), (report.rank5, exact.rank5), (report.rank10, exact.rank10))
        scores = [_share(value, None if report is exact else best) for value, best in pairs]
        recalls = [f"{value:.4f}" for value in (report.recall1, report.recall10, report.recall)]
        rows.append([report.kind, *recalls, *scores, f"{report.query_ms:.2f}"])
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _share(value: float | None, best: float | None) -> str:
    """A share, and how far it is from the best one."""
    if value is None:
        return "-"
    return f"{value:.4f}" if best is None else f"{value:.4f} ({value - best:+.4f})"
