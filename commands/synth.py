"""reid-synth: draw a dataset to try, test and benchmark with."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from reidserve.commands.console import Json, make_app, print_facts, print_json, progress, run

app = make_app("reid-synth", "Draw a synthetic ReID dataset of persons or vehicles, in Market-1501 layout with masks.")


@app.default
def synth(
    out: Path,
    /,
    *,
    kind: Literal["person", "vehicle"] = "person",
    domain: Literal["a", "b"] = "a",
    train_identities: int = 300,
    test_identities: int = 200,
    cameras: int = 4,
    images_per_camera: int = 3,
    junk: int = 50,
    distractors: int = 200,
    seed: int = 0,
    processes: Annotated[int | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> None:
    """Draw a synthetic ReID dataset.

    The pictures depend on the numbers below and on nothing else: the same ones give the same bytes, and asking for
    more identities or pictures keeps those there were. A model trained on one domain drops on the other.
    What is written is whole or not there at all.

    Args:
        out: The folder to write; it must not exist.
        kind: What is photographed.
        domain: The world it is photographed in: two palettes, bodies, places and lights.
        train_identities: Identities in bounding_box_train.
        test_identities: Identities in query and bounding_box_test, none of them in train.
        cameras: Cameras, each of which sees every identity.
        images_per_camera: Pictures of an identity by a camera; of a test identity the first is a query.
        junk: Boxes with hardly anything in them, named -1.
        distractors: Strangers nobody asks for, named 0000.
        seed: Another seed is another world of the same kind.
        processes: Processes that draw; as many as there are processors when left out.
    """
    import os

    from reidserve.datasets import path_to_text
    from reidserve.datasets.synth import SynthSpec, write_dataset

    spec = SynthSpec(
        kind=kind,
        domain=domain,
        train_identities=train_identities,
        test_identities=test_identities,
        cameras=cameras,
        images_per_camera=images_per_camera,
        junk=junk,
        distractors=distractors,
        seed=seed,
    )
    with progress("drawing") as report:
        summary = write_dataset(
            out, spec, processes=os.cpu_count() or 1 if processes is None else processes, progress=report
        )
    if json:
        print_json({"dataset": path_to_text(out), "spec": spec, "counts": summary})
        return
    print_facts(
        {
            "wrote": out,
            "train": f"{summary.train} pictures of {train_identities} identities",
            "query": f"{summary.query} pictures of {test_identities} identities",
            "gallery": f"{summary.gallery} pictures, with {summary.junk} junk and {summary.distractors} distractors",
        }
    )


def main() -> None:
    """Run the command."""
    run(app)
