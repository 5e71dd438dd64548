"""A build by workers of a local Ray cluster, one for each processor, against the same build in one process.

    python -P benchmarks/bulk.py [--quick]

On one machine workers can win nothing but what a single process leaves idle, and lose what carrying images to them
costs: this is the price of the way. The network and the crops are those of benchmarks/gallery.py, built turn by turn in
one run; the cluster stands before the first turn. It holds if both galleries are equal, entry by entry and bit by bit.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reidserve.datasets import read_crops
from reidserve.embed import BulkEmbedder
from reidserve.embed.workers import LOCAL, embed_on_cluster
from reidserve.index import Entry, build_gallery, read_snapshot


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="few images")
    asked = arguments.parse_args()
    parts = runpy.run_path(str(Path(__file__).with_name("gallery.py")))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        local = parts["make_model"](work)
        images = len(parts["draw_crops"](work / "crops", 64 if asked.quick else 512))
        with embed_on_cluster(work / "model", LOCAL) as workers:
            turns = parts["Turns"](
                {"one": lambda: build(work, "one", local), "workers": lambda: build(work, "workers", workers)},
                1 if asked.quick else 5,
            )
        equal = contents(work / "one") == contents(work / "workers")
    report = {
        "name": "bulk",
        "holds": equal,
        "quick": asked.quick,
        "workers": workers.workers,
        "images": images,
        "workers_over_one": round(turns.ratio("one", "workers"), 3),
        "images_per_second": {name: round(images / turns.seconds(name), 1) for name in ("one", "workers")},
        "cores": len(os.sched_getaffinity(0)),
        "versions": {package: version(package) for package in ("ray", "onnxruntime", "pillow")},
    }
    print(json.dumps(report))
    return 0 if equal else 1


def build(work: Path, name: str, embedder: BulkEmbedder[Any]) -> None:
    """Build a gallery of all crops anew."""
    for left in (work / name).glob("*"):
        left.unlink()
    report = build_gallery(read_crops(work / "crops" / "bounding_box_test"), work / "crops", work / name, embedder)
    assert report.embedded == report.entries > 0, report


def contents(gallery: Path) -> list[tuple[Entry, bytes]]:
    """Entries and the bits of their embeddings, in the order of rows."""
    snapshot = read_snapshot(gallery)
    return [(entry, snapshot.vector(snapshot.row(entry.id)).tobytes()) for entry in snapshot.entries()]


if __name__ == "__main__":
    sys.exit(main())
