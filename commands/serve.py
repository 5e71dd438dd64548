"""reid-serve: answer searches over gRPC."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reidserve.commands.console import (
    Device,
    Index,
    IndexDevice,
    Json,
    Memory,
    Precision,
    make_app,
    print_facts,
    print_json,
    quiet_grpc,
    run,
)

app = make_app("reid-serve")


@app.default
def serve(
    *,
    gallery: Annotated[list[Path], Parameter(negative="")],
    model: Path = Path("model"),
    listen: str = "127.0.0.1:50051",
    precision: Precision = "fp32",
    device: Device = "cpu",
    grace: float = 30.0,
    kind: Index = "auto",
    index_device: IndexDevice = "cpu",
    max_memory: Memory = None,
    threshold: Path | None = None,
    json: Json = False,
) -> None:
    """Serve galleries over gRPC (reid.v1) until SIGTERM or Ctrl-C.

    Health (grpc.health.v1) is SERVING from the moment the model's canaries hold and the galleries are open; then a
    line says so. What other processes write to the galleries is served within about a second. SIGTERM finishes the
    calls under way and exits with 0.

    Args:
        gallery: A gallery's folder; may be given several times, names are the folders' without .gallery.
        model: The artifact that the galleries were built with.
        listen: Host and port; port 0 takes a free one, which the ready line names.
        grace: Seconds that calls under way may take after SIGTERM.
        threshold: A file with the model's calibrated threshold; searches are then told whether they found a match.
    """
    import asyncio
    import logging

    quiet_grpc()

    from reidserve.datasets import path_to_text
    from reidserve.server import Ready, Settings
    from reidserve.server import serve as serve_until_stopped

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # It tells of every kernel that its package has not, as of a failure.
    logging.getLogger("faiss").setLevel(logging.WARNING)

    def tell(ready: Ready) -> None:
        embedder, galleries = ready.pipeline.embedder, ready.pipeline.galleries
        entries = {name: len(opened.snapshot) for name, opened in galleries.items()}
        damaged = {name: len(opened.snapshot.damaged) for name, opened in galleries.items()}
        if json:
            print_json(
                {
                    "listening": ready.address,
                    "identity": embedder.contract.identity,
                    "engine": embedder.engine,
                    "unverified": embedder.unverified,
                    "galleries": entries,
                    "damaged": damaged,
                    "threshold": ready.pipeline.threshold,
                }
            )
            return
        print_facts(
            {
                "listening": ready.address,
                "model": f"{path_to_text(model)} {embedder.contract.identity[:12]} on {embedder.engine}"
                f"{' (unverified)' * embedder.unverified}",
                "galleries": ", ".join(
                    f"{name} ({count} entries{f', {damaged[name]} damaged left out' * bool(damaged[name])})"
                    for name, count in entries.items()
                ),
                **(
                    {}
                    if threshold is None
                    else {"threshold": f"{ready.pipeline.threshold} from {path_to_text(threshold)}"}
                ),
            }
        )

    settings = Settings(model, gallery, listen, device, grace, kind, index_device, max_memory, threshold, precision)
    asyncio.run(serve_until_stopped(settings, on_ready=tell))


def main() -> None:
    """Run the command."""
    run(app)
