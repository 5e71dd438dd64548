"""reid-eval: Rank@k and mAP of an artifact on a dataset."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
from reidserve.errors import UsageError

app = make_app("reid-eval")


@app.default
def evaluate(
    data: Annotated[Path | None, Parameter(show_default=False)] = None,
    /,
    *,
    model: Path = Path("model"),
    query_crops: Annotated[Path | None, Parameter(show_default=False)] = None,
    gallery_crops: Annotated[Path | None, Parameter(show_default=False)] = None,
    pattern: Pattern = None,
    picture: Annotated[Path | None, Parameter(show_default=False)] = None,
    device: Device = "cpu",
    json: Json = False,
) -> int:
    """Score an artifact by the rule of Market-1501: Rank-1/5/10, mAP and mINP.

    For each query, gallery images with its pid and its camid are dropped, as is junk (pid -1); queries without a
    right image are left out of the means and counted. An image that cannot be read is reported and left out; the
    exit code is then 1.

    Args:
        data: A dataset in the layout of Market-1501, DukeMTMC-reID, VeRi-776, query/ and gallery/ with a folder per
            identity, or a .csv with the columns path, pid, camid and split.
        model: The artifact to score, as reid-export wrote it.
        query_crops: In place of a dataset: the folder of queries.
        gallery_crops: In place of a dataset: the folder of gallery crops.
        picture: A PNG to write: queries from the best ranked to the worst, each with its best gallery crops, framed
            green where they are right.
    """
    from reidserve.datasets import Dataset, path_to_text, read_crops, read_dataset
    from reidserve.embed import open_embedder
    from reidserve.evaluate import draw_rankings, embed_crops
    from reidserve.evaluate import evaluate as score

    if data is not None and query_crops is None and gallery_crops is None and pattern is None:
        dataset = read_dataset(data)
    elif data is None and query_crops is not None and gallery_crops is not None:
        parts = [read_crops(folder, pattern=pattern) for folder in (query_crops, gallery_crops)]
        dataset = Dataset("crops", query=parts[0], gallery=parts[1])
    else:
        raise UsageError("expected a dataset, or --query-crops and --gallery-crops (and --pattern) in its place")
    if picture is not None and (picture.is_dir() or not picture.absolute().parent.is_dir()):
        raise UsageError(f"--picture must be a file in a folder that is there, got {path_to_text(picture)}")
    embedder = open_embedder(model, device=device)
    with progress("embedding") as advance:
        query, gallery, failures = embed_crops(dataset.query, dataset.gallery, embedder, progress=advance)
    report = score(query, gallery)
    if picture is not None:
        draw_rankings(query, gallery, picture)
    if json:
        print_json(
            {
                **asdict(report),
                "layout": dataset.layout,
                "identity": embedder.contract.identity,
                "engine": embedder.engine,
                "failures": failures,
            }
        )
    else:
        warn_failures(failures)
        print_facts(
            {
                "Rank-1": f"{report.rank1:.4f}",
                "Rank-5": f"{report.rank5:.4f}",
                "Rank-10": f"{report.rank10:.4f}",
                "mAP": f"{report.mAP:.4f}",
                "mINP": f"{report.mINP:.4f}",
                "queries": f"{report.queries} scored, {report.unmatchable} without a right image left out",
                "gallery": f"{report.gallery} images, {report.positives} right answers over all queries",
                "rule": f"{report.protocol} on {dataset.layout}",
                **({"picture": path_to_text(picture)} if picture is not None else {}),
                "model": f"{embedder.contract.identity[:12]} on {embedder.engine}",
            }
        )
    return FAILED if failures else DONE


def main() -> None:
    """Run the command."""
    run(app)
