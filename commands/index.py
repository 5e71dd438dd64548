"""reid-index: build, describe and search galleries."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from reidserve.commands.console import (
    DONE,
    FAILED,
    Device,
    Json,
    Pattern,
    make_app,
    print_facts,
    print_json,
    progress,
    run,
    warn_failures,
)
from reidserve.commands.hits import print_hits
from reidserve.datasets.crop import Crop

app = make_app(
    "reid-index", "Build, describe and search galleries: folders of embeddings that a model was run for once."
)


@app.command
def build(
    crops: Path,
    *,
    model: Path = Path("model"),
    out: Annotated[Path | None, Parameter(show_default=False)] = None,
    pattern: Pattern = None,
    layout: Literal["auto", "market1501", "dukemtmc", "veri776", "folders"] = "auto",
    device: Device = "cpu",
    force: Annotated[bool, Parameter(negative="", help="Bring a finished gallery up to date.")] = False,
    json: Json = False,
) -> int:
    """Embed the images below a folder (or of a CSV table) into a gallery.

    An image that cannot be read is reported and left out; the exit code is then 1. A build that was cut off goes
    on where it stopped when it is run again. --force brings a finished gallery up to date with the folder: new
    and changed images are embedded, gone ones removed, the rest stays.

    Args:
        crops: A folder of JPEG, PNG, WebP or BMP crops, or a .csv with the columns path, pid, camid, timestamp.
        model: The artifact that embeds them, as reid-export wrote it.
        out: The gallery to write, by default the folder's name with .gallery.
        layout: What file names mean; auto knows the names of Market-1501, DukeMTMC-reID and VeRi-776 and labels
            nothing else. folders: the first folder's name is the pid.
    """
    from reidserve.datasets import path_to_text, read_crops
    from reidserve.embed import open_embedder
    from reidserve.index import build_gallery

    found = read_crops(crops, pattern=pattern, layout=layout)
    out = out if out is not None else Path(f"{crops.resolve().name.removesuffix('.csv')}.gallery")
    root = crops if crops.is_dir() else crops.parent
    embedder = open_embedder(model, device=device)
    with progress("embedding") as advance:
        report = build_gallery(found, root, out, embedder, force=force, progress=advance)
    if json:
        print_json({"gallery": path_to_text(out), "identity": embedder.contract.identity, **asdict(report)})
    else:
        warn_failures(report.failures)
        print_facts(
            {
                "wrote": path_to_text(out),
                "entries": report.entries,
                "embedded": report.embedded,
                "unchanged": report.kept,
                "reused": f"{report.reused} (the embedding of an equal image)",
                "removed": report.removed,
                "left out": len(report.failures),
                "labels": _labels(found),
                "model": embedder.contract.identity[:12],
            }
        )
    return FAILED if report.failures else DONE


@app.command
def info(gallery: Path, *, json: Json = False) -> None:
    """Describe a gallery.

    Args:
        gallery: The gallery's folder.
    """
    from reidserve.datasets import path_to_text
    from reidserve.index import open_gallery

    opened = open_gallery(gallery)
    snapshot = opened.snapshot
    facts = {
        "gallery": path_to_text(gallery),
        "entries": len(snapshot),
        "pids": len({entry.pid for entry in snapshot.entries.values() if entry.pid is not None}),
        "camids": len({entry.camid for entry in snapshot.entries.values() if entry.camid is not None}),
        "dim": opened.origin.dim,
        "identity": opened.origin.identity,
        "engine": opened.origin.engine,
        "generation": snapshot.generation,
    }
    opened.close()
    if json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command
def search(
    query: str,
    *,
    gallery: Path,
    model: Path = Path("model"),
    entry: Annotated[bool, Parameter(negative="")] = False,
    top_k: int = 10,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Search a gallery without a server.

    Args:
        query: An image file, or with --entry the id of an entry, which is then left out of its own hits.
        gallery: The gallery's folder.
        model: The artifact that embeds the query.
        entry: Take the query for an entry's id.
        top_k: How many hits.
    """
    from reidserve.embed import open_embedder, read_image
    from reidserve.index import read_snapshot

    if entry:
        snapshot = read_snapshot(gallery)
        ranking = snapshot.search_entry(query, top_k=top_k)
    else:
        embedder = open_embedder(model, device=device)
        snapshot = read_snapshot(gallery, identity=embedder.contract.identity)
        ranking = snapshot.search(embedder.embed_encoded([read_image(Path(query))]), top_k=top_k)
    (hits,) = snapshot.hits(ranking)
    facts = [
        {
            "entry_id": hit.entry.id,
            "pid": hit.entry.pid,
            "camid": hit.entry.camid,
            "score": hit.score,
            "rank": hit.rank,
        }
        for hit in hits
    ]
    if json:
        print_json({"generation": snapshot.generation, "hits": facts})
    else:
        print_hits(facts)


def _labels(crops: Sequence[Crop]) -> str:
    pids = {crop.pid for crop in crops if crop.pid is not None}
    camids = {crop.camid for crop in crops if crop.camid is not None}
    return (
        f"{len(pids)} pids, {len(camids)} camids" if pids else "none (say what names mean with --pattern or --layout)"
    )


def main() -> None:
    """Run the command."""
    run(app)
